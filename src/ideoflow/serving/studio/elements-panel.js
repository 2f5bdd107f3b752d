// The panels for the elements: their list from front to back, and the fields of those that are selected.

import { field, setProblem, setValue, textArea } from "./fields.js";
import { h, icon, iconButton, renderList } from "./dom.js";
import { clamp } from "./geometry.js";
import { MOST_ELEMENT_COLOURS, nameOf, pathOf } from "./layout.js";
import { Palette } from "./palette.js";

export class ElementsPanel {
  constructor(studio, root, { below }) {
    this.studio = studio;
    const add = (kind, placed) => () => {
      studio.add(kind, placed ? studio.freeBox(kind) : null);
      this.focusWords();
    };
    this.list = h("ol.elements", { "aria-label": "Elements, the front one first" });
    this.none = h("p.hint", {}, "No elements yet. Draw a box on the canvas, or add one here.");
    this.editor = h("div.element-editor", {});
    root.append(
      h(
        "div.row",
        {},
        h("button", { type: "button", onclick: add("obj", true) }, icon("object"), "Object"),
        h("button", { type: "button", onclick: add("text", true) }, icon("text"), "Text"),
        h(
          "button.quiet",
          { type: "button", title: "An element for which the model finds the place", onclick: add("obj", false) },
          icon("plus"),
          "Without a place",
        ),
      ),
      this.none,
      this.list,
      this.editor,
    );
    this.one = new OneElement(studio);
    this.several = severalElements(studio, below);
    this.editor.append(this.several, this.one.node);
    studio.subscribe(() => this.render());
  }

  render() {
    const { studio } = this;
    const { elements } = studio.layout;
    this.none.hidden = elements.length > 0;
    renderList(
      this.list,
      elements.map((element, index) => ({ element, index })).reverse(),
      ({ element }) => element.id,
      ({ element }) => this.#makeItem(element.id),
      (node, { element, index }) => this.#updateItem(node, element, index),
    );
    const { selected } = studio;
    this.editor.hidden = selected.length === 0;
    this.one.node.hidden = selected.length !== 1;
    this.several.hidden = selected.length === 0;
    this.several.update(selected);
    if (selected.length === 1) this.one.render(selected[0], studio.indexOf(selected[0].id));
  }

  /** Put the cursor into the words of the selected element. */
  focusWords() {
    queueMicrotask(() => {
      const [element] = this.studio.selected;
      if (!element) return;
      const control = element.kind === "text" ? this.one.text : this.one.desc;
      control.focus();
      control.select();
    });
  }

  #makeItem(id) {
    const { studio } = this;
    const choose = (event) => {
      const several = event.shiftKey || event.ctrlKey || event.metaKey;
      const others = studio.selection.filter((one) => one !== id);
      const selection = !several ? [id] : others.length < studio.selection.length ? others : [...others, id];
      studio.set({ selection });
    };
    const move = (where) => () => {
      if (!studio.selection.includes(id)) studio.set({ selection: [id] });
      studio.reorder(where);
    };
    return h(
      "li",
      {},
      h("button.element-name", { type: "button", onclick: choose }, h("span.box-kind"), h("span.element-title"), h("span.element-note")),
      iconButton("up", "Bring forward", move("forward")),
      iconButton("down", "Send backward", move("backward")),
      iconButton("lock", "Lock", () => studio.toggleLock([id])),
    );
  }

  #updateItem(node, element, index) {
    const [name, up, down, lock] = node.children;
    const [kind, title, note] = name.children;
    const label = nameOf(element);
    const selected = this.studio.selection.includes(element.id);
    const path = pathOf(index);
    const wrong = this.studio.breaches.filter((one) => one.path === path || one.path.startsWith(`${path}.`)).length;
    node.classList.toggle("selected", selected);
    node.classList.toggle("text", element.kind === "text");
    name.setAttribute("aria-pressed", String(selected));
    if (kind.dataset.kind !== element.kind) {
      kind.dataset.kind = element.kind;
      kind.replaceChildren(icon(element.kind === "text" ? "text" : "object"));
    }
    title.textContent = label;
    note.textContent = wrong ? (wrong === 1 ? "1 problem" : `${wrong} problems`) : element.box ? "" : "no place";
    note.classList.toggle("wrong", wrong > 0);
    up.setAttribute("aria-label", `Bring ${label} forward`);
    down.setAttribute("aria-label", `Send ${label} backward`);
    up.disabled = index === this.studio.layout.elements.length - 1;
    down.disabled = index === 0;
    lock.setAttribute("aria-label", `${element.locked ? "Unlock" : "Lock"} ${label}`);
    lock.setAttribute("aria-pressed", String(element.locked));
    if (lock.dataset.locked !== String(element.locked)) {
      lock.dataset.locked = String(element.locked);
      lock.replaceChildren(icon(element.locked ? "lock" : "unlock"));
      lock.title = element.locked ? "Unlock" : "Lock";
    }
  }
}

/** The fields of one element. */
class OneElement {
  constructor(studio) {
    this.studio = studio;
    this.id = null;
    const change = (values, merge) => studio.change(this.id, values, { merge: merge && `${merge}-${this.id}` });
    this.kinds = h(
      "div.choices",
      { role: "radiogroup", "aria-label": "Kind of element" },
      ...[
        ["obj", "Object"],
        ["text", "Text"],
      ].map(([value, label]) =>
        h(
          "label",
          {},
          h("input", { type: "radio", name: "element-kind", value, onchange: () => change({ kind: value }) }),
          h("span", {}, label),
        ),
      ),
    );
    this.text = textArea({ oninput: (event) => change({ text: event.target.value }, "text"), placeholder: "The letters to draw" });
    this.desc = textArea({ rows: 3, oninput: (event) => change({ desc: event.target.value }, "desc") });
    this.textField = field("Text", this.text);
    this.descField = field("Description", this.desc);
    this.place = h("input", {
      type: "checkbox",
      id: "element-place",
      onchange: (event) => change({ box: event.target.checked ? studio.freeBox(this.kind) : null }),
    });
    this.edges = Object.fromEntries(
      ["Left", "Top", "Width", "Height"].map((name) => [
        name,
        h("input", {
          type: "number",
          min: 0,
          max: 100,
          step: 0.1,
          onchange: () => this.#setBox(),
          dataset: { name },
        }),
      ]),
    );
    this.box = h(
      "div.four",
      { role: "group", "aria-label": "Place in per cent of the picture", id: "element-box" },
      ...Object.entries(this.edges).map(([name, input]) => h("label", {}, h("span", {}, `${name} %`), input)),
    );
    this.palette = new Palette("Colours of the element", MOST_ELEMENT_COLOURS, (palette, merge) =>
      change({ palette }, merge ? "palette" : null),
    );
    this.palette.node.id = "element-palette";
    this.node = h(
      "div",
      {},
      this.kinds,
      this.textField,
      this.descField,
      h(
        "div.field",
        {},
        h("label.check", { for: "element-place" }, this.place, "Has a place in the picture"),
        this.box,
        h("p.problem", { id: "element-box-problem", hidden: true }),
      ),
      h(
        "div.field",
        {},
        h("span.label", {}, "Colours"),
        this.palette.node,
        h("p.problem", { id: "element-palette-problem", hidden: true }),
      ),
    );
  }

  render(element, index) {
    this.id = element.id;
    this.kind = element.kind;
    const path = pathOf(index);
    for (const radio of this.kinds.querySelectorAll("input")) radio.checked = radio.value === element.kind;
    this.textField.hidden = element.kind !== "text";
    setValue(this.text, element.text);
    setValue(this.desc, element.desc);
    this.desc.placeholder = element.kind === "text" ? "How the letters look" : "What it is and looks like";
    this.place.checked = element.box !== null;
    this.box.hidden = element.box === null && !("bbox" in element.extra);
    const [top, left, bottom, right] = element.box ?? [];
    const values = { Left: left, Top: top, Width: right - left, Height: bottom - top };
    for (const [name, input] of Object.entries(this.edges)) {
      if (document.activeElement !== input) setValue(input, element.box ? values[name] / 10 : null);
    }
    for (const control of [this.place, ...Object.values(this.edges)]) control.disabled = element.locked;
    this.palette.set(element.palette);
    this.text.dataset.path = `${path}.text`;
    this.desc.dataset.path = `${path}.desc`;
    this.box.dataset.path = `${path}.bbox`;
    this.palette.node.dataset.path = `${path}.color_palette`;
    const breaches = this.studio.breaches.filter((breach) => breach.path.startsWith(path));
    if (!breaches.length && element.desc.trim() === "") setProblem(this.desc, "Say what it looks like: the model reads this.", "advice");
  }

  #setBox() {
    const [left, top, width, height] = Object.values(this.edges).map((input) => Math.round(Number(input.value) * 10));
    const x = clamp(left, 0, 995);
    const y = clamp(top, 0, 995);
    const box = [y, x, clamp(y + Math.max(height, 5), y + 1, 1000), clamp(x + Math.max(width, 5), x + 1, 1000)];
    this.studio.change(this.id, { box });
  }
}

/** What can be done with the selected elements: a row of buttons, and alignment for several. */
function severalElements(studio, below) {
  const title = h("h3", {});
  const act = (name, label, run) => iconButton(name, label, run);
  const align = h(
    "div.row.tight",
    { role: "group", "aria-label": "Align" },
    ...[
      ["left", "Align left edges"],
      ["centre", "Align centres"],
      ["right", "Align right edges"],
      ["top", "Align top edges"],
      ["middle", "Align middles"],
      ["bottom", "Align bottom edges"],
    ].map(([side, label]) => act(`align${side}`, label, () => studio.align(side))),
  );
  const spread = [
    act("distributex", "Equal gaps across", () => studio.distribute("x")),
    act("distributey", "Equal gaps down", () => studio.distribute("y")),
  ];
  align.append(...spread);
  const row = h(
    "div.row.tight",
    { role: "group", "aria-label": "Selected elements" },
    act("copy", "Duplicate (Ctrl+D)", () => studio.duplicate()),
    act("front", "Bring to the front", () => studio.reorder("front")),
    act("back", "Send to the back", () => studio.reorder("back")),
    act("below", "Select the one below (Alt+click)", below),
    act("lock", "Lock or unlock (L)", () => studio.toggleLock()),
    act("delete", "Delete (Del)", () => studio.remove()),
  );
  const node = h("div.actions", {}, title, row, align);
  node.update = (selected) => {
    title.textContent = selected.length === 1 ? nameOf(selected[0]) : `${selected.length} elements selected`;
    const boxes = studio.movable.map((element) => element.box);
    align.hidden = boxes.length < 2;
    for (const button of spread) button.disabled = boxes.length < 3;
  };
  return node;
}
