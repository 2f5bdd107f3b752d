// Captions that come in by paste, file or drop: JSON, text with JSON in it, or a picture with the settings it was drawn with.

import { commentOf, isJpeg, isWebp } from "./exif.js";
import { isPng, textOf } from "./png.js";
import { elementOf } from "./layout.js";
import { objectWithin } from "./json-text.js";
import { settingsOf } from "./settings-panel.js";

const LARGEST = 64 * 2 ** 20; // bytes of a file
const CAPTION_KEYS = ["compositional_deconstruction", "high_level_description", "style_description", "elements", "background"];

export class NoCaption extends Error {}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * What a text says: {caption}, {caption, settings} of a job or a picture, or {elements} that were copied.
 *
 * What is broken goes to the server, which knows how captions break: then `changes` tells what was mended.
 */
export async function readText(text, api, server) {
  const found = objectWithin(text);
  if (found !== undefined) {
    if (Array.isArray(found.elements) && Object.keys(found).length === 1) return { elements: found.elements.map(elementOf) };
    const caption = captionIn(found);
    const loose = caption && "elements" in caption && !("compositional_deconstruction" in caption); // the server mends that
    if (caption && !loose) {
      const request = isObject(found.request) ? found.request : found;
      return caption === found ? { caption } : { caption, settings: settingsOf(request, server) };
    }
  }
  if (!text.includes("{")) throw new NoCaption("This holds no caption: paste or drop JSON, or a picture made by ideoflow.");
  try {
    const { caption, changes } = await api.json("v1/captions/repair", { method: "POST", body: { caption: text } });
    return { caption, changes };
  } catch (error) {
    throw new NoCaption(error.message);
  }
}

/** A caption's data that an object is or holds, also as a line of JSON; null if it does not. */
function captionIn(found) {
  if (CAPTION_KEYS.some((key) => key in found)) return found;
  for (const key of ["caption", "prompt", "json_prompt"]) {
    const inner = typeof found[key] === "string" ? objectWithin(found[key]) : found[key];
    if (isObject(inner)) return inner;
  }
  return null;
}

/** What a file says, as `readText`; of a picture also `picture`, its address. */
export async function readFile(file, api, server) {
  if (file.size > LARGEST) throw new NoCaption(`${file.name} is larger than 64 MB.`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  const format = formatOf(bytes);
  if (format) return readPicture(file, bytes, format, server);
  if (/^image\//.test(file.type)) {
    throw new NoCaption(`${file.name} is no PNG, JPEG or WebP: the studio reads captions from those.`);
  }
  return readText(new TextDecoder().decode(bytes), api, server);
}

const formatOf = (bytes) => (isPng(bytes) ? "png" : isJpeg(bytes) ? "jpeg" : isWebp(bytes) ? "webp" : null);

/** A picture's comment if it is settings of ours: cameras and other programs leave comments too. */
const ours = (comment) => (comment?.includes('"ideoflow": "') ? comment : null);

async function readPicture(file, bytes, format, server) {
  const text = format === "png" ? await textOf(bytes) : ours(commentOf(bytes));
  if (text === null) {
    throw new NoCaption(`${file.name} holds no caption: it was not made by ideoflow, or a program took its text away.`);
  }
  let kept;
  try {
    kept = JSON.parse(text);
  } catch {
    throw new NoCaption(`The settings in ${file.name} cannot be read.`);
  }
  const caption = isObject(kept) ? (captionIn(kept) ?? wrapped(kept.caption)) : null;
  if (!caption) throw new NoCaption(`The settings in ${file.name} hold no caption.`);
  const { adapters, unknown } = adaptersOf(kept.loras ?? [], server);
  return {
    caption,
    settings: { ...settingsOf(kept, server), adapters, format },
    picture: URL.createObjectURL(file),
    warning: unknown.length ? `The picture was drawn with ${unknown.join(", ")}, which this server does not have.` : null,
  };
}

/** A prompt of plain words as a caption. */
function wrapped(words) {
  return typeof words === "string" && words.trim() ? { high_level_description: words } : null;
}

/** The adapters of a picture by the names that the server has for them. */
function adaptersOf(loras, server) {
  const adapters = {};
  const unknown = [];
  for (const { path, scale } of loras) {
    const stem = String(path).split(/[\\/]/).pop().replace(/\.[^.]*$/, "");
    const name = server.adapters.find((one) => one === path || one === stem);
    if (name) adapters[name] = scale;
    else unknown.push(stem);
  }
  return { adapters, unknown };
}
