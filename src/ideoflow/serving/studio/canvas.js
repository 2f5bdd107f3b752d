// The canvas: the picture or its preview, the boxes of the elements over it, and the frame around what is selected.

import { bounds } from "./geometry.js";
import { nameOf, pathOf } from "./layout.js";
import { byId, h, icon, renderList } from "./dom.js";

const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];

export class Canvas {
  constructor(studio) {
    this.studio = studio;
    this.viewport = byId("viewport");
    this.stage = byId("stage");
    this.backdrop = h("img.backdrop", { alt: "", hidden: true, draggable: false });
    this.before = h("img.before", { alt: "", hidden: true, draggable: false });
    this.grid = h("div.grid", { "aria-hidden": "true" });
    this.boxes = h("div.boxes");
    this.frame = h(
      "div.frame",
      { hidden: true, "aria-hidden": "true" },
      ...HANDLES.map((name) => h(`span.handle.handle-${name}`, { dataset: { handle: name } })),
    );
    this.guideX = h("div.guide.guide-x", { hidden: true });
    this.guideY = h("div.guide.guide-y", { hidden: true });
    this.marquee = h("div.marquee", { hidden: true });
    this.stage.append(this.backdrop, this.before, this.grid, this.boxes, this.guideX, this.guideY, this.marquee, this.frame);
    this.editor = null; // of a box's words, while they are edited in place
    new ResizeObserver(() => this.#fit()).observe(this.viewport);
    studio.subscribe(() => this.render());
  }

  render() {
    const { studio } = this;
    const { view, backdrop, layout } = studio;
    this.#fit();
    this.stage.dataset.tool = studio.tool;
    this.stage.classList.toggle("without-boxes", !view.boxes);
    this.stage.classList.toggle("with-picture", backdrop !== null);
    this.grid.hidden = !view.grid;
    this.grid.style.backgroundSize = `${view.step / 10}% ${view.step / 10}%`;
    this.#setBackdrop(backdrop);
    const placed = layout.elements.map((element, index) => ({ element, index })).filter(({ element }) => element.box);
    renderList(
      this.boxes,
      placed,
      ({ element }) => element.id,
      ({ element }) => this.#makeBox(element.id),
      (node, { element, index }) => this.#updateBox(node, element, index),
    );
    const boxes = studio.selected.filter((element) => element.box).map((element) => element.box);
    this.frame.hidden = boxes.length === 0 || !view.boxes;
    if (boxes.length) {
      put(this.frame, bounds(boxes));
      this.frame.classList.toggle("fixed", studio.movable.length === 0);
      this.frame.classList.toggle("several", boxes.length > 1);
    }
    byId("empty-hint").hidden = placed.length > 0 || backdrop !== null || studio.tool !== "select";
  }

  /** Show the lines, in thousandths, that the boxes under the pointer have snapped to. */
  setGuides({ x, y }) {
    this.guideX.hidden = x === null;
    this.guideY.hidden = y === null;
    if (x !== null) this.guideX.style.left = `${x / 10}%`;
    if (y !== null) this.guideY.style.top = `${y / 10}%`;
  }

  setMarquee(box, kind = "select") {
    this.marquee.hidden = box === null;
    this.marquee.dataset.kind = kind;
    if (box) put(this.marquee, box);
  }

  /** A pointer's place in thousandths of the picture's sides. */
  pointOf(event) {
    const rect = this.stage.getBoundingClientRect();
    return { x: ((event.clientX - rect.left) / rect.width) * 1000, y: ((event.clientY - rect.top) / rect.height) * 1000 };
  }

  /** How many thousandths a number of pixels on the screen are, along each side. */
  reach(pixels) {
    const rect = this.stage.getBoundingClientRect();
    return { x: (pixels / rect.width) * 1000, y: (pixels / rect.height) * 1000 };
  }

  boxNode(id) {
    return [...this.boxes.children].find((node) => node.dataset.key === id) ?? null;
  }

  focusBox(id) {
    this.boxNode(id)?.focus({ preventScroll: true });
  }

  /** Edit the words of an element in its box: the letters of a text, the description of an object. */
  editInPlace(id) {
    const element = this.studio.layout.elements.find((one) => one.id === id);
    if (!element?.box || element.locked || this.editor) return;
    const field = element.kind === "text" ? "text" : "desc";
    const label = field === "text" ? "Text in the box" : "Description of the object";
    const editor = h("textarea.in-place", { value: element[field], "aria-label": label, spellcheck: false });
    put(editor, element.box);
    this.editor = editor;
    let open = true;
    const finish = () => {
      if (!open) return;
      open = false;
      this.editor = null;
      if (editor.value !== element[field]) this.studio.change(id, { [field]: editor.value });
      editor.remove();
      this.focusBox(id);
    };
    editor.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key !== "Escape" && (event.key !== "Enter" || event.shiftKey)) return;
      finish();
      event.preventDefault();
    });
    editor.addEventListener("pointerdown", (event) => event.stopPropagation());
    editor.addEventListener("blur", finish);
    this.stage.append(editor);
    editor.focus();
    editor.select();
  }

  #makeBox(id) {
    return h(
      "div.box",
      {
        tabIndex: 0,
        role: "button",
        dataset: { id },
        onfocus: (event) => {
          // By the keyboard: what is clicked has been selected by the pointer.
          if (event.target.matches(":focus-visible") && !this.studio.selection.includes(id)) {
            this.studio.set({ selection: [id] });
          }
        },
      },
      h("span.box-kind", {}),
      h("span.lettering", {}),
      h("span.box-words", {}),
      h("span.box-colours", {}),
    );
  }

  #updateBox(node, element, index) {
    const { studio } = this;
    const selected = studio.selection.includes(element.id);
    const path = pathOf(index);
    const wrong = studio.breaches.some((breach) => breach.path === path || breach.path.startsWith(`${path}.`));
    put(node, element.box);
    node.classList.toggle("text", element.kind === "text");
    node.classList.toggle("selected", selected);
    node.classList.toggle("locked", element.locked);
    node.classList.toggle("wrong", wrong);
    node.setAttribute("aria-pressed", String(selected));
    const [top, left, bottom, right] = element.box.map((edge) => Math.round(edge / 10));
    const place = `from ${left} to ${right} % across, ${top} to ${bottom} % down`;
    const kind = element.kind === "text" ? "Text" : "Object";
    node.setAttribute(
      "aria-label",
      `${kind}: ${nameOf(element)}, ${place}${element.locked ? ", locked" : ""}${wrong ? ", has a problem" : ""}`,
    );
    const [mark, lettering, words, colours] = node.children;
    if (mark.dataset.kind !== `${element.kind}${element.locked}`) {
      mark.dataset.kind = `${element.kind}${element.locked}`;
      mark.replaceChildren(icon(element.locked ? "lock" : element.kind === "text" ? "text" : "object"));
    }
    lettering.hidden = element.kind !== "text";
    if (element.kind === "text") this.#setLettering(lettering, element);
    words.textContent = element.desc;
    if (colours.dataset.of !== element.palette.join()) {
      colours.dataset.of = element.palette.join();
      colours.replaceChildren(
        ...element.palette.map((colour) => {
          const dot = h("i");
          dot.style.backgroundColor = colour;
          return dot;
        }),
      );
    }
  }

  /** The letters as large as the box allows. */
  #setLettering(node, element) {
    const text = element.text || "text";
    node.classList.toggle("missing", element.text === "");
    if (node.textContent !== text) node.textContent = text;
    const rect = { width: this.stage.clientWidth, height: this.stage.clientHeight };
    const wide = ((element.box[3] - element.box[1]) / 1000) * rect.width - 8;
    const high = ((element.box[2] - element.box[0]) / 1000) * rect.height - 4;
    const lines = text.split("\n");
    const longest = Math.max(...lines.map(widthAt100));
    const size = Math.max(6, Math.min((wide / longest) * 100, high / (lines.length * 1.15)));
    node.style.fontSize = `${size}px`;
  }

  /** Show the picture before the change up to this share of the width, in per cent. */
  compare(share) {
    this.before.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  }

  #setBackdrop(backdrop) {
    this.before.hidden = !backdrop?.before;
    if (backdrop?.before && this.before.getAttribute("src") !== backdrop.before) {
      this.before.src = backdrop.before;
      byId("compare").value = "0";
      this.compare(0);
    }
    const image = this.backdrop;
    image.hidden = backdrop === null;
    if (!backdrop) {
      image.removeAttribute("src");
      return;
    }
    if (image.getAttribute("src") !== backdrop.url) image.src = backdrop.url;
    image.alt = backdrop.label;
    image.classList.toggle("preview", backdrop.preview);
  }

  /** The stage as large as fits, with the sides of the picture, times the zoom. */
  #fit() {
    const { settings } = this.studio.layout;
    const space = { width: this.viewport.clientWidth - 32, height: this.viewport.clientHeight - 32 };
    if (space.width <= 0 || space.height <= 0) return;
    const scale = Math.min(space.width / settings.width, space.height / settings.height) * this.studio.view.zoom;
    const size = [`${Math.round(settings.width * scale)}px`, `${Math.round(settings.height * scale)}px`];
    if (this.stage.style.width === size[0] && this.stage.style.height === size[1]) return;
    [this.stage.style.width, this.stage.style.height] = size;
    this.studio.notify(); // letters depend on the size
  }
}

/** Put a node where a box is. */
export function put(node, box) {
  node.style.top = `${box[0] / 10}%`;
  node.style.left = `${box[1] / 10}%`;
  node.style.height = `${(box[2] - box[0]) / 10}%`;
  node.style.width = `${(box[3] - box[1]) / 10}%`;
}

const ruler = document.createElement("canvas").getContext("2d");

function widthAt100(line) {
  ruler.font = "600 100px system-ui, sans-serif";
  return Math.max(ruler.measureText(line).width, 30);
}
