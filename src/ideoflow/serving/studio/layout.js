// What is edited: a caption taken apart into fields and elements, and the settings that it is drawn with.
//
// A layout is never changed in place. Whatever JSON holds that no field shows (unknown keys, values of another kind) is
// kept in `extra` and written back where it stood, so that nothing of a caption is lost by opening it. A key that must be
// there and is not is null in `extra`: it is not written either, until its field is typed into.

import { isBox, moved, held, rounded } from "./geometry.js";

export const MOST_STYLE_COLOURS = 16;
export const MOST_ELEMENT_COLOURS = 5;

const TOP = ["high_level_description", "style_description", "compositional_deconstruction"];
const COMPOSITION = ["background", "elements"];
const STYLE = {
  photo: ["aesthetics", "lighting", "photo", "medium", "color_palette"],
  art_style: ["aesthetics", "lighting", "medium", "art_style", "color_palette"],
};
const ELEMENT = {
  obj: ["type", "bbox", "desc", "color_palette"],
  text: ["type", "bbox", "text", "desc", "color_palette"],
};

export const DEFAULT_SETTINGS = {
  width: 1024,
  height: 1024,
  preset: null, // the server's default
  steps: null, // that of the preset
  guidance: null, // the server's default
  seed: null, // a fresh one each time
  count: 1,
  adapters: {},
  format: "png",
};

/** A name for an element within the page; captions have none. */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(9))].map((byte) => byte.toString(36).padStart(2, "0")).join("");
}

export function emptyLayout(settings = DEFAULT_SETTINGS) {
  return { description: "", style: null, background: "", elements: [], extra: {}, compositionExtra: {}, settings };
}

export function newStyle(kind) {
  return { kind, aesthetics: "", lighting: "", medium: "", look: "", palette: [], extra: {} };
}

export function newElement(kind, box) {
  return { id: newId(), kind, box, text: "", desc: "", palette: [], locked: false, extra: {} };
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isPalette = (value) => Array.isArray(value) && value.length > 0 && value.every((one) => typeof one === "string");

/** The values of `data` that the reader of their key accepts, and the rest; `must` are keys that should be there. */
function taken(data, readers, must = []) {
  const known = {};
  const extra = Object.fromEntries(must.filter((key) => !(key in data)).map((key) => [key, null]));
  for (const [key, value] of Object.entries(data)) {
    if (key in readers && readers[key](value)) known[key] = value;
    else if (value !== null) extra[key] = value;
  }
  return { known, extra };
}

const emptyComposition = { background: "", elements: [] };
const isString = (value) => typeof value === "string";

/** A layout of a caption's JSON data; settings, and where they fit the ids and locks of elements, come from `previous`. */
export function fromCaption(caption, previous = emptyLayout()) {
  const readers = { high_level_description: isString, style_description: isObject, compositional_deconstruction: isObject };
  const { known, extra } = taken(caption, readers, ["compositional_deconstruction"]);
  const composition = taken(
    known.compositional_deconstruction ?? emptyComposition,
    { background: isString, elements: Array.isArray },
    COMPOSITION,
  );
  const elements = (composition.known.elements ?? []).map((data, index) => {
    const before = previous.elements[index];
    return { ...elementOf(data), ...(before ? { id: before.id, locked: before.locked } : {}) };
  });
  return {
    description: known.high_level_description ?? "",
    style: known.style_description ? styleOf(known.style_description) : null,
    background: composition.known.background ?? "",
    elements,
    extra,
    compositionExtra: composition.extra,
    settings: previous.settings,
  };
}

function styleOf(data) {
  const kind = isString(data.art_style) && (data.art_style !== "" || !isString(data.photo)) ? "art_style" : "photo";
  const texts = ["aesthetics", "lighting", "medium", kind];
  const readers = { ...Object.fromEntries(texts.map((key) => [key, isString])), color_palette: isPalette };
  const { known, extra } = taken(data, readers, texts);
  return {
    kind,
    aesthetics: known.aesthetics ?? "",
    lighting: known.lighting ?? "",
    medium: known.medium ?? "",
    look: known[kind] ?? "",
    palette: known.color_palette ?? [],
    extra,
  };
}

/** An element of its JSON data; what is no object is kept whole in `odd`. */
export function elementOf(data) {
  if (!isObject(data)) return { ...newElement("obj", null), odd: data };
  const kind = data.type === "text" || (data.type !== "obj" && "text" in data) ? "text" : "obj";
  const readers = {
    type: (value) => value === kind,
    bbox: isBox,
    desc: isString,
    color_palette: isPalette,
    ...(kind === "text" ? { text: isString } : {}),
  };
  const { known, extra } = taken(data, readers, kind === "text" ? ["text", "desc"] : ["desc"]);
  return {
    ...newElement(kind, known.bbox ?? null),
    text: known.text ?? "",
    desc: known.desc ?? "",
    palette: known.color_palette ?? [],
    extra,
  };
}

/** An object with the given keys in order, each from `values` or else from `extra`, then the rest of `extra`. */
function inOrder(keys, values, extra) {
  const result = {};
  for (const key of keys) {
    const value = values[key] !== undefined ? values[key] : extra[key];
    if (value !== undefined && value !== null) result[key] = value;
  }
  for (const [key, value] of Object.entries(extra)) if (!(key in result) && value !== null) result[key] = value;
  return result;
}

/** A text that must be there: empty unless `extra` says what is in its place. */
const needed = (text, key, extra) => (text === "" && key in extra ? undefined : text);
const optional = (list) => (list.length > 0 ? list : undefined);

export function toElement(element) {
  if (element.odd !== undefined) return element.odd;
  const { kind, extra } = element;
  const values = {
    type: "type" in extra ? undefined : kind,
    bbox: element.box ?? undefined,
    text: kind === "text" ? needed(element.text, "text", extra) : undefined,
    desc: needed(element.desc, "desc", extra),
    color_palette: optional(element.palette),
  };
  return inOrder(ELEMENT[kind], values, extra);
}

/** Whether something else stands in the caption's place for background and elements, and nothing was put there since. */
const isOdd = ({ extra, background, elements }) =>
  "compositional_deconstruction" in extra && background === "" && elements.length === 0;

/** The caption of a layout as JSON data, its keys in the order that the model was trained on. */
export function toCaption(layout) {
  const { style } = layout;
  const composition = inOrder(
    COMPOSITION,
    {
      background: needed(layout.background, "background", layout.compositionExtra),
      elements: "elements" in layout.compositionExtra && !layout.elements.length ? undefined : layout.elements.map(toElement),
    },
    layout.compositionExtra,
  );
  const described = style && {
    ...Object.fromEntries(["aesthetics", "lighting", "medium"].map((key) => [key, needed(style[key], key, style.extra)])),
    [style.kind]: needed(style.look, style.kind, style.extra),
    color_palette: optional(style.palette),
  };
  return inOrder(
    TOP,
    {
      high_level_description: layout.description || undefined,
      style_description: style ? inOrder(STYLE[style.kind], described, style.extra) : undefined,
      compositional_deconstruction: isOdd(layout) ? undefined : composition,
    },
    layout.extra,
  );
}

/** A layout with one element changed; what was odd about the changed fields is forgotten. */
export function withElement(layout, id, changes) {
  const key = { box: "bbox", kind: "type", text: "text", desc: "desc", palette: "color_palette" };
  const forgotten = Object.keys(changes).map((name) => key[name]);
  return {
    ...layout,
    elements: layout.elements.map((element) => {
      if (element.id !== id) return element;
      const extra = Object.fromEntries(Object.entries(element.extra).filter(([name]) => !forgotten.includes(name)));
      const { odd: _, ...rest } = element;
      return { ...rest, ...changes, extra };
    }),
  };
}

/** A layout with new boxes, given as a mapping of ids. */
export function withBoxes(layout, boxes) {
  return [...boxes].reduce((result, [id, box]) => withElement(result, id, { box: rounded(box) }), layout);
}

export function without(layout, ids) {
  return { ...layout, elements: layout.elements.filter((element) => !ids.includes(element.id)) };
}

/** Copies of elements with ids of their own, set off a little so that they can be seen. */
export function copies(elements, offset = 25) {
  return elements.map((element) => {
    const box = element.box;
    const by = box ? held(box, offset, offset) : null;
    return { ...element, id: newId(), locked: false, box: box ? rounded(moved(box, by.dx, by.dy)) : null };
  });
}

/** A layout with elements moved in the order from back to front: "front", "back", "forward" or "backward". */
export function reordered(layout, ids, where) {
  const chosen = layout.elements.filter((element) => ids.includes(element.id));
  const others = layout.elements.filter((element) => !ids.includes(element.id));
  if (where === "front") return { ...layout, elements: [...others, ...chosen] };
  if (where === "back") return { ...layout, elements: [...chosen, ...others] };
  const elements = [...layout.elements];
  const step = where === "forward" ? 1 : -1;
  const indices = elements.map((_, index) => index);
  if (step === 1) indices.reverse();
  for (const index of indices) {
    const other = elements[index + step];
    if (ids.includes(elements[index].id) && other && !ids.includes(other.id)) {
      [elements[index], elements[index + step]] = [other, elements[index]];
    }
  }
  return { ...layout, elements };
}

/** What an element is called in lists and by screen readers. */
export function nameOf(element) {
  const kind = element.kind === "text" ? "Text" : "Object";
  if (element.kind === "text" && element.text) return `“${element.text.replace(/\s+/g, " ")}”`;
  return element.desc || `${kind} without description`;
}

/** Where an element's data stands in the caption, as the server's checks name places. */
export const pathOf = (index) => `compositional_deconstruction.elements[${index}]`;
