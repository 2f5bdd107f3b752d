// The brush: what may change of the picture on the canvas, painted over it and sent as a mask.

import { byId, h } from "./dom.js";

export class Brush {
  #of = null; // which picture is painted on
  #stroke = null; // the pointer that paints, and where it was last
  #erases = false;

  constructor(studio, canvas) {
    this.studio = studio;
    this.canvas = canvas;
    this.paint = h("canvas.paint", { hidden: true, "aria-hidden": "true" });
    this.tip = h("div.brush-tip", { hidden: true, "aria-hidden": "true" });
    canvas.before.after(this.paint, this.tip);
    this.size = byId("brush-size"); // in thousandths of the picture's longer side
    byId("brush-erase").onclick = () => {
      this.#erases = !this.#erases;
      byId("brush-erase").setAttribute("aria-pressed", String(this.#erases));
    };
    byId("brush-clear").onclick = () => this.clear();
    const { viewport } = canvas;
    viewport.addEventListener("pointerdown", (event) => this.#down(event));
    viewport.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) viewport.addEventListener(end, (event) => this.#up(event));
    viewport.addEventListener("pointerleave", () => (this.tip.hidden = true));
    studio.subscribe(() => this.#render());
  }

  /** The mask as a PNG in base64, of the picture's size: white where it was painted. */
  mask() {
    const { width, height } = this.paint;
    const sheet = h("canvas", { width, height });
    const pen = sheet.getContext("2d");
    pen.drawImage(this.paint, 0, 0);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = "white";
    pen.fillRect(0, 0, width, height);
    pen.globalCompositeOperation = "destination-over";
    pen.fillStyle = "black";
    pen.fillRect(0, 0, width, height);
    return sheet.toDataURL("image/png").split(",")[1];
  }

  clear() {
    this.#pen.clearRect(0, 0, this.paint.width, this.paint.height);
    this.studio.set({ painted: false });
  }

  get #pen() {
    return this.paint.getContext("2d", { willReadFrequently: true });
  }

  /** A brush's width in the picture's pixels. */
  get #width() {
    return (Number(this.size.value) / 1000) * Math.max(this.paint.width, this.paint.height);
  }

  #render() {
    const { backdrop, tool, painted } = this.studio;
    const shown = backdrop?.picture && backdrop.job && !backdrop.preview ? backdrop : null;
    this.paint.hidden = shown === null;
    byId("tool-brush").disabled = shown === null;
    byId("brush-row").hidden = tool !== "brush";
    byId("brush-clear").disabled = !painted;
    if (tool !== "brush") this.tip.hidden = true;
    if (backdrop?.preview) return; // what was painted for it goes once it is done
    const of = shown && `${shown.job}/${shown.picture.index}`;
    if (of !== this.#of) {
      this.#of = of;
      Object.assign(this.paint, { width: shown?.picture.width ?? 1, height: shown?.picture.height ?? 1 }); // which clears it
      if (painted) this.studio.set({ painted: false });
    }
    if (!shown && tool === "brush") this.studio.set({ tool: "select" });
  }

  #down(event) {
    if (this.studio.tool !== "brush" || event.button !== 0 || !event.isPrimary || this.paint.hidden) return;
    event.preventDefault();
    this.canvas.viewport.setPointerCapture(event.pointerId);
    this.#stroke = { pointer: event.pointerId, last: this.#placeOf(event) };
    this.#line(this.#stroke.last);
  }

  #move(event) {
    if (this.studio.tool !== "brush") return;
    this.#showTip(event);
    if (event.pointerId !== this.#stroke?.pointer) return;
    const between = event.getCoalescedEvents?.() ?? [];
    for (const one of between.length ? between : [event]) this.#line(this.#placeOf(one));
  }

  #up(event) {
    if (event.pointerId !== this.#stroke?.pointer) return;
    this.#stroke = null;
    const { data } = this.#pen.getImageData(0, 0, this.paint.width, this.paint.height);
    this.studio.set({ painted: data.some((value, place) => place % 4 === 3 && value > 0) });
  }

  /** From where the stroke was to a place, a dot where that is the same. */
  #line(place) {
    const pen = this.#pen;
    pen.globalCompositeOperation = this.#erases ? "destination-out" : "source-over";
    Object.assign(pen, { lineCap: "round", lineJoin: "round", lineWidth: this.#width, strokeStyle: "#e0218a" });
    pen.beginPath();
    pen.moveTo(this.#stroke.last.x, this.#stroke.last.y);
    pen.lineTo(place.x, place.y);
    pen.stroke();
    this.#stroke.last = place;
  }

  #placeOf(event) {
    const { x, y } = this.canvas.pointOf(event);
    return { x: (x / 1000) * this.paint.width, y: (y / 1000) * this.paint.height };
  }

  #showTip(event) {
    const { x, y } = this.canvas.pointOf(event);
    this.tip.hidden = false;
    this.tip.style.left = `${x / 10}%`;
    this.tip.style.top = `${y / 10}%`;
    this.tip.style.width = `${(this.#width / this.paint.width) * 100}%`;
  }
}
