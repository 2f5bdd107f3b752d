// What the pointer does on the canvas: draw, select, move, resize; a finger or a pen like a mouse.

import { between, bounds, carried, contains, held, height, moved, overlaps, resized, rounded, width } from "./geometry.js";
import { linesOf, snapEdges, snapMove, snapPoint } from "./snapping.js";

const STILL = 4; // pixels within which a press is a click
const REACH = 6; // pixels from which an edge snaps
const NOWHERE = { x: null, y: null };

export class Pointer {
  #gesture = null;
  #count = 0;

  constructor(studio, canvas) {
    this.studio = studio;
    this.canvas = canvas;
    const { viewport } = canvas;
    // The viewport, not the stage alone: marquees and boxes may begin beside the picture.
    viewport.addEventListener("pointerdown", (event) => this.#down(event));
    viewport.addEventListener("pointermove", (event) => this.#move(event));
    viewport.addEventListener("pointerup", (event) => this.#up(event));
    viewport.addEventListener("pointercancel", () => this.cancel());
    viewport.addEventListener("dblclick", (event) => this.#doubleClick(event));
    viewport.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
  }

  /** Whether something is being dragged. */
  get busy() {
    return this.#gesture !== null;
  }

  /** Let go, and put back what was dragged. */
  cancel() {
    const gesture = this.#gesture;
    if (!gesture) return;
    this.#end();
    if (gesture.changed) this.studio.undo();
  }

  /** Select the element under the selected one, at a point or in its middle. */
  selectBelow(point = null) {
    const { studio } = this;
    const [current] = studio.selected.filter((element) => element.box);
    if (!point && current) point = { x: (current.box[1] + current.box[3]) / 2, y: (current.box[0] + current.box[2]) / 2 };
    if (!point) return;
    const stack = current && !point.exact ? this.#around(current, point) : this.#at(point, true);
    if (!stack.length) return;
    const place = stack.findIndex((element) => element.id === current?.id);
    studio.set({ selection: [stack[(place + 1) % stack.length].id] });
  }

  /** Elements at a point from front to back. */
  #at(point, lockedToo = false) {
    return this.studio.layout.elements
      .filter((element) => element.box && contains(element.box, point) && (lockedToo || !element.locked))
      .reverse();
  }

  /** Elements that overlap one, with itself, from front to back. */
  #around(one) {
    return this.studio.layout.elements.filter((element) => element.box && overlaps(element.box, one.box)).reverse();
  }

  #down(event) {
    if (event.button !== 0 || this.#gesture || !event.isPrimary || event.target.closest(".in-place")) return;
    const { studio, canvas } = this;
    if (studio.tool === "brush") return; // which paints
    if (event.target === canvas.viewport && onScrollbar(event, canvas.viewport)) return;
    const start = canvas.pointOf(event);
    const base = { start, client: { x: event.clientX, y: event.clientY }, name: `drag-${++this.#count}`, moving: false };
    const handle = event.target.closest("[data-handle]")?.dataset.handle;
    event.preventDefault();
    document.activeElement?.blur?.();
    canvas.viewport.setPointerCapture(event.pointerId);
    base.pointer = event.pointerId;
    if (studio.tool !== "select") this.#gesture = { ...base, kind: "draw", what: studio.tool };
    else if (!studio.view.boxes) this.#gesture = { ...base, kind: "nothing" };
    else if (handle && studio.movable.length) this.#gesture = this.#holding(base, "resize", { handle });
    else this.#gesture = this.#pick(event, base);
  }

  #holding(base, kind, more = {}) {
    const elements = this.studio.movable;
    const frame = bounds(elements.map((element) => element.box));
    const ids = new Set(elements.map((element) => element.id));
    const others = this.studio.layout.elements.filter((element) => element.box && !ids.has(element.id));
    return { ...base, kind, elements, frame, lines: linesOf(others.map((element) => element.box)), ...more };
  }

  #pick(event, base) {
    const { studio } = this;
    const stack = this.#at(base.start);
    const adding = event.shiftKey || event.ctrlKey || event.metaKey;
    if (event.altKey) {
      this.selectBelow({ ...base.start, exact: true });
      return { ...base, kind: "nothing" };
    }
    if (!stack.length) return { ...base, kind: "marquee", before: adding ? studio.selection : [] };
    const within = stack.find((element) => studio.selection.includes(element.id));
    if (adding) {
      const { id } = stack[0];
      const others = studio.selection.filter((one) => one !== id);
      studio.set({ selection: others.length < studio.selection.length ? others : [...others, id] });
      this.canvas.focusBox(id);
      return studio.movable.length ? this.#holding(base, "move", { adding }) : { ...base, kind: "nothing" };
    }
    // What is selected is moved although something lies over it; a click without a move selects what is on top.
    if (!within) studio.set({ selection: [stack[0].id] });
    this.canvas.focusBox((within ?? stack[0]).id);
    return this.#holding(base, "move", { click: within ? stack[0].id : null });
  }

  #move(event) {
    const gesture = this.#gesture;
    if (!gesture || event.pointerId !== gesture.pointer) return;
    const far = Math.hypot(event.clientX - gesture.client.x, event.clientY - gesture.client.y);
    if (!gesture.moving && far < STILL) return;
    gesture.moving = true;
    const point = this.canvas.pointOf(event);
    const free = event.ctrlKey || event.metaKey; // of snapping
    const reach = this.studio.view.snap && !free ? this.canvas.reach(REACH) : { x: 0, y: 0 };
    const grid = this.studio.view.grid && !free ? this.studio.view.step : 0;
    if (gesture.kind === "draw") this.#draw(gesture, point, reach, grid, event.shiftKey);
    if (gesture.kind === "move") this.#drag(gesture, point, reach, grid, event.shiftKey && !gesture.adding);
    if (gesture.kind === "resize") this.#resize(gesture, point, reach, grid, event.shiftKey);
    if (gesture.kind === "marquee") this.#sweep(gesture, point);
  }

  #draw(gesture, point, reach, grid, square) {
    const { studio, canvas } = this;
    gesture.lines ??= linesOf(studio.layout.elements.filter((element) => element.box).map((element) => element.box));
    const from = snapPoint(gesture.start, gesture.lines, reach, grid);
    const handle = (point.y < from.y ? "n" : "s") + (point.x < from.x ? "w" : "e");
    let box = between(from, point);
    let guides = NOWHERE;
    if (square) {
      const { settings } = studio.layout;
      box = resized(box, handle, 0, 0, settings.height / settings.width);
    } else ({ box, guides } = snapEdges(box, handle, gesture.lines, reach, grid));
    gesture.box = box;
    canvas.setMarquee(box, gesture.what);
    canvas.setGuides(guides);
  }

  #drag(gesture, point, reach, grid, straight) {
    let by = { dx: point.x - gesture.start.x, dy: point.y - gesture.start.y };
    if (straight) by = Math.abs(by.dx) > Math.abs(by.dy) ? { ...by, dy: 0 } : { ...by, dx: 0 };
    by = held(gesture.frame, by.dx, by.dy);
    const snap = snapMove(moved(gesture.frame, by.dx, by.dy), gesture.lines, reach, grid);
    if (straight && by.dx === 0) [snap.dx, snap.guides.x] = [0, null];
    if (straight && by.dy === 0) [snap.dy, snap.guides.y] = [0, null];
    by = held(gesture.frame, by.dx + snap.dx, by.dy + snap.dy);
    this.canvas.setGuides(snap.guides);
    this.#place(gesture, (box) => moved(box, by.dx, by.dy));
  }

  #resize(gesture, point, reach, grid, keep) {
    const by = [point.x - gesture.start.x, point.y - gesture.start.y];
    const ratio = keep ? width(gesture.frame) / height(gesture.frame) : null;
    let frame = resized(gesture.frame, gesture.handle, ...by, ratio);
    let guides = NOWHERE;
    if (!keep) ({ box: frame, guides } = snapEdges(frame, gesture.handle, gesture.lines, reach, grid));
    this.canvas.setGuides(guides);
    this.#place(gesture, (box) => carried(box, gesture.frame, frame));
  }

  #place(gesture, change) {
    gesture.changed = true;
    const boxes = new Map(gesture.elements.map((element) => [element.id, rounded(change(element.box))]));
    this.studio.place(boxes, { merge: gesture.name, within: Infinity });
  }

  #sweep(gesture, point) {
    const box = between(gesture.start, point);
    this.canvas.setMarquee(box);
    const found = this.studio.layout.elements.filter((one) => one.box && !one.locked && overlaps(one.box, box));
    this.studio.set({ selection: [...new Set([...gesture.before, ...found.map((one) => one.id)])] });
  }

  #up(event) {
    const gesture = this.#gesture;
    if (!gesture || event.pointerId !== gesture.pointer) return;
    this.#end();
    const { studio } = this;
    if (gesture.kind === "draw") {
      const box = gesture.moving && gesture.box ? rounded(gesture.box) : null;
      const reach = this.canvas.reach(STILL);
      const slip = box === null || width(box) < reach.x || height(box) < reach.y;
      const element = studio.add(gesture.what, slip ? this.#boxAround(gesture) : box);
      studio.set({ tool: "select" });
      // The box is on the page once the change has been shown.
      queueMicrotask(() => this.canvas.editInPlace(element.id));
    } else if (!gesture.moving && gesture.kind === "marquee") {
      studio.set({ selection: gesture.before });
    } else if (!gesture.moving && gesture.click) {
      studio.set({ selection: [gesture.click] });
      this.canvas.focusBox(gesture.click);
    }
  }

  /** A box of ordinary size around a click. */
  #boxAround({ what, start }) {
    const box = this.studio.freeBox(what);
    const by = held(box, start.x - (box[1] + box[3]) / 2, start.y - (box[0] + box[2]) / 2);
    return rounded(moved(box, by.dx, by.dy));
  }

  #end() {
    this.#gesture = null;
    this.canvas.setGuides(NOWHERE);
    this.canvas.setMarquee(null);
  }

  #doubleClick(event) {
    if (event.target.closest(".in-place") || this.studio.tool === "brush") return;
    const point = this.canvas.pointOf(event);
    const stack = this.#at(point);
    const chosen = stack.find((element) => this.studio.selection.includes(element.id)) ?? stack[0];
    if (chosen) this.canvas.editInPlace(chosen.id);
  }

  #wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const zoom = this.studio.view.zoom * Math.exp(-event.deltaY / 300);
    this.studio.setView({ zoom: Math.min(Math.max(zoom, 1), 8) });
  }
}

function onScrollbar(event, node) {
  const rect = node.getBoundingClientRect();
  return event.clientX > rect.left + node.clientWidth || event.clientY > rect.top + node.clientHeight;
}
