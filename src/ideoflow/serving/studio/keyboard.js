// Every key of the page, in one table that also makes the page of help.

import { h, isTyping } from "./dom.js";

const SMALL = 5; // thousandths that an arrow moves by, without a grid
const LARGE = 50;

/** Rows of [keys as shown, what they do]. */
export const KEYS = [
  ["Ctrl+Enter", "Generate"],
  ["V", "Select"],
  ["O / T", "Draw objects / texts"],
  ["P", "Paint over what may change of the picture"],
  ["Shift+O / Shift+T", "Add an object / a text in the middle"],
  ["Tab", "Go from box to box"],
  ["Arrows", "Move; with Shift far, with Alt resize"],
  ["Enter", "Edit the words in the box"],
  ["Ctrl+D", "Duplicate"],
  ["Ctrl+C / X / V", "Copy, cut, paste, also from tab to tab"],
  ["Del", "Delete"],
  ["Ctrl+A / Esc", "Select all / nothing"],
  ["Space", "Add to the selection, or take out of it"],
  ["L", "Lock or unlock"],
  ["] / [", "Bring forward / send backward; with Shift all the way"],
  ["B, Alt+click", "Select the one below"],
  ["Ctrl while dragging", "Without snapping"],
  ["Shift while dragging", "Straight moves, kept proportions"],
  ["H", "Hide or show the boxes"],
  ["G / S", "Grid / snapping on and off"],
  ["+ / - / 0", "Zoom in, out, to fit"],
  ["Ctrl+Z / Shift+Ctrl+Z", "Undo / redo"],
  ["?", "This help"],
];

export class Keyboard {
  constructor(studio, canvas, pointer, actions) {
    Object.assign(this, { studio, canvas, pointer, actions });
    document.addEventListener("keydown", (event) => {
      if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
      if (this.#run(event)) event.preventDefault();
    });
  }

  /** Act on a key; whether it meant something. */
  #run(event) {
    const { studio, actions } = this;
    const command = event.ctrlKey || event.metaKey;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (command && key === "Enter") return done(actions.generate());
    if (isTyping(event.target)) {
      if (key === "Escape") return done(event.target.blur());
      return false; // the field's own undo, arrows and letters
    }
    if (command && key === "z") return done(event.shiftKey ? studio.redo() : studio.undo());
    if (command && key === "y") return done(studio.redo());
    if (command && key === "d") return done(studio.duplicate());
    if (command && key === "a") return done(studio.selectAll());
    if (command) return false;
    if (key.startsWith("Arrow")) return this.#arrow(event, key);
    if (key === "Enter" || key === " ") return this.#press(event, key);
    const run = this.#plain(event, key);
    return run ? done(run()) : false;
  }

  #plain(event, key) {
    const { studio, canvas, pointer, actions } = this;
    const add = (kind) => () => {
      const element = studio.add(kind, studio.freeBox(kind));
      queueMicrotask(() => canvas.editInPlace(element.id));
    };
    const draw = (kind) => (event.shiftKey ? add(kind) : () => studio.set({ tool: kind }));
    return {
      v: () => studio.set({ tool: "select" }),
      o: draw("obj"),
      t: draw("text"),
      p: () => studio.backdrop?.picture && studio.set({ tool: "brush" }),
      Delete: () => this.#remove(),
      Backspace: () => this.#remove(),
      Escape: () => this.#escape(),
      l: () => studio.selection.length && studio.toggleLock(),
      "]": () => studio.reorder("forward"),
      "[": () => studio.reorder("backward"),
      "}": () => studio.reorder("front"),
      "{": () => studio.reorder("back"),
      b: () => pointer.selectBelow(),
      h: () => studio.setView({ boxes: !studio.view.boxes }),
      g: () => studio.setView({ grid: !studio.view.grid }),
      s: () => studio.setView({ snap: !studio.view.snap }),
      "+": () => actions.zoom(1.25),
      "=": () => actions.zoom(1.25),
      "-": () => actions.zoom(0.8),
      0: () => actions.zoom(0),
      "?": () => actions.help(),
    }[key];
  }

  #arrow(event, key) {
    const { studio } = this;
    if (!studio.movable.length || event.target.matches("[role=radio], [type=radio]")) return false;
    const grid = studio.view.grid ? studio.view.step : 0;
    const step = event.shiftKey ? (grid ? 4 * grid : LARGE) : grid || SMALL;
    const dx = { ArrowLeft: -step, ArrowRight: step }[key] ?? 0;
    const dy = { ArrowUp: -step, ArrowDown: step }[key] ?? 0;
    return done(event.altKey ? studio.stretch(dx, dy) : studio.nudge(dx, dy));
  }

  #press(event, key) {
    const { studio, canvas } = this;
    const id = event.target.closest?.(".box")?.dataset.id;
    if (!id) return false; // a button's own
    if (key === "Enter") return done(canvas.editInPlace(id));
    const others = studio.selection.filter((one) => one !== id);
    return done(studio.set({ selection: others.length < studio.selection.length ? others : [...others, id] }));
  }

  #remove() {
    this.studio.remove();
    this.canvas.stage.focus({ preventScroll: true });
  }

  #escape() {
    if (this.pointer.busy) return this.pointer.cancel();
    if (this.studio.tool !== "select") return this.studio.set({ tool: "select" });
    return this.studio.set({ selection: [] });
  }
}

function done() {
  return true;
}

/** The table of keys, for the help. */
export function keyTable() {
  return h(
    "table",
    {},
    h("tbody", {}, ...KEYS.map(([keys, what]) => h("tr", {}, h("th", { scope: "row" }, keys), h("td", {}, what)))),
  );
}
