// The state of the page: the layout with its history, what is selected, what is shown. All changes go through here.

import { History } from "./history.js";
import {
  DEFAULT_SETTINGS,
  copies,
  emptyLayout,
  fromCaption,
  newElement,
  reordered,
  withBoxes,
  withElement,
  without,
} from "./layout.js";
import { RANGE, aligned, bounds, carried, distributed, held, height, moved, resized, width } from "./geometry.js";

export class Studio {
  layout = emptyLayout();
  selection = []; // ids of elements
  history = new History(100);
  tool = "select"; // or "obj" or "text", with which boxes are drawn, or "brush"
  view = { snap: true, grid: false, step: 25, boxes: true, zoom: 1 };
  backdrop = null; // the picture behind the boxes: {url, label, preview}
  painted = false; // whether the brush has marked what may change of it
  breaches = []; // what the server's checks found: {path, message, repairable}
  server = null; // what /v1/server says
  #listeners = new Set();
  #due = false;

  /** Call `listener` after every change, once for changes made together. */
  subscribe(listener) {
    this.#listeners.add(listener);
  }

  notify() {
    if (this.#due) return;
    this.#due = true;
    queueMicrotask(() => {
      this.#due = false;
      for (const listener of this.#listeners) listener(this);
    });
  }

  /** Set anything but the layout: selection, tool, view, backdrop, breaches, server. */
  set(values) {
    Object.assign(this, values);
    this.notify();
  }

  setView(values) {
    this.set({ view: { ...this.view, ...values } });
  }

  /** Change the layout by a function of it; `merge` as in `History.record`. */
  edit(change, { merge = null, within, select } = {}) {
    const next = change(this.layout);
    if (next === this.layout) return;
    this.history.record({ layout: this.layout, selection: this.selection }, merge, within);
    this.layout = next;
    const ids = new Set(next.elements.map((element) => element.id));
    this.selection = (select ?? this.selection).filter((id) => ids.has(id));
    this.notify();
  }

  undo() {
    this.#restore(this.history.undo({ layout: this.layout, selection: this.selection }));
  }

  redo() {
    this.#restore(this.history.redo({ layout: this.layout, selection: this.selection }));
  }

  #restore(state) {
    if (state) this.set(state);
  }

  // Settings are part of the layout, but no step of undo: a size is changed back as quickly as it was changed.
  setSettings(values) {
    this.layout = { ...this.layout, settings: { ...this.layout.settings, ...values } };
    this.notify();
  }

  /** Open a caption, and settings where given, as one step. */
  open(caption, settings = {}) {
    this.edit(
      () => {
        const layout = fromCaption(caption);
        return { ...layout, settings: { ...this.layout.settings, ...settings } };
      },
      { select: [] },
    );
  }

  clear() {
    this.edit((layout) => emptyLayout(layout.settings), { select: [] });
    this.set({ backdrop: null });
  }

  get selected() {
    return this.layout.elements.filter((element) => this.selection.includes(element.id));
  }

  /** Selected elements with a box that may be moved. */
  get movable() {
    return this.selected.filter((element) => element.box && !element.locked);
  }

  indexOf(id) {
    return this.layout.elements.findIndex((element) => element.id === id);
  }

  add(kind, box) {
    const element = newElement(kind, box);
    this.edit((layout) => ({ ...layout, elements: [...layout.elements, element] }), { select: [element.id] });
    return element;
  }

  /** Add elements as they are, with ids of their own. */
  insert(elements, offset) {
    const fresh = copies(elements, offset);
    const select = fresh.map((element) => element.id);
    this.edit((layout) => ({ ...layout, elements: [...layout.elements, ...fresh] }), { select });
  }

  change(id, values, options) {
    this.edit((layout) => withElement(layout, id, values), options);
  }

  place(boxes, options) {
    this.edit((layout) => withBoxes(layout, boxes), options);
  }

  duplicate() {
    if (this.selected.length) this.insert(this.selected);
  }

  remove() {
    const ids = this.selected.filter((element) => !element.locked).map((element) => element.id);
    if (ids.length) this.edit((layout) => without(layout, ids));
  }

  reorder(where) {
    if (this.selection.length) this.edit((layout) => reordered(layout, this.selection, where));
  }

  toggleLock(ids = this.selection) {
    const locked = !this.layout.elements.filter((element) => ids.includes(element.id)).every((element) => element.locked);
    this.edit((layout) => ids.reduce((result, id) => withElement(result, id, { locked }), layout));
  }

  selectAll() {
    this.set({ selection: this.layout.elements.filter((element) => !element.locked).map((element) => element.id) });
  }

  /** Move the selected boxes by thousandths, as far as the picture reaches. */
  nudge(dx, dy) {
    const boxes = this.movable;
    if (!boxes.length) return;
    const by = held(bounds(boxes.map((element) => element.box)), dx, dy);
    this.place(new Map(boxes.map((element) => [element.id, moved(element.box, by.dx, by.dy)])), { merge: "nudge" });
  }

  /** Make the selected boxes larger or smaller at their right and bottom. */
  stretch(dx, dy) {
    const boxes = this.movable;
    if (!boxes.length) return;
    const frame = bounds(boxes.map((element) => element.box));
    const to = resized(frame, "se", dx, dy);
    this.place(new Map(boxes.map((element) => [element.id, carried(element.box, frame, to)])), { merge: "stretch" });
  }

  align(side) {
    this.#arrange((boxes) => aligned(boxes, side), 2);
  }

  distribute(axis) {
    this.#arrange((boxes) => distributed(boxes, axis), 3);
  }

  #arrange(arrange, least) {
    const elements = this.movable;
    if (elements.length < least) return;
    const boxes = arrange(elements.map((element) => element.box));
    this.place(new Map(elements.map((element, index) => [element.id, boxes[index]])));
  }

  /** A box for a new element: in the middle, beside those that lie there. */
  freeBox(kind) {
    const [high, wide] = kind === "text" ? [160, 500] : [360, 360];
    const top = (RANGE - high) / 2;
    const left = (RANGE - wide) / 2;
    let box = [top, left, top + high, left + wide].map(Math.round);
    const taken = (one) => this.layout.elements.some((element) => element.box?.join() === one.join());
    for (let tries = 0; taken(box) && tries < 20; tries++) {
      const by = held(box, 30, 30);
      box = moved(box, by.dx, by.dy);
    }
    return box;
  }

  /** Width over height of a box as it is seen. */
  seenRatio(box) {
    const { settings } = this.layout;
    return (width(box) * settings.width) / (height(box) * settings.height);
  }

  /** What is kept over a reload. */
  get work() {
    const { layout, selection, view, history } = this;
    return { layout, selection, view, past: history.past, future: history.future };
  }

  restore(work) {
    const settings = { ...DEFAULT_SETTINGS, ...work.layout.settings };
    this.layout = { ...emptyLayout(), ...work.layout, settings };
    this.selection = work.selection ?? [];
    this.view = { ...this.view, ...work.view };
    this.history.past = work.past ?? [];
    this.history.future = work.future ?? [];
    this.notify();
  }
}
