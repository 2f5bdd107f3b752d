// A palette: colours that are chosen, typed as #RRGGBB or taken from the screen.

import { h, iconButton, icon } from "./dom.js";
import { clamp } from "./geometry.js";

const HEX = /^#[0-9A-F]{6}$/;

export class Palette {
  /** `onchange` is given the new colours, and whether the change goes on (a colour being dragged). */
  constructor(label, most, onchange) {
    Object.assign(this, { label, most, onchange });
    this.colours = [];
    this.list = h("ul.palette-colours", {});
    this.add = h("button.quiet", { type: "button", onclick: () => this.#append(suggestion(this.colours)) }, icon("plus"), "Colour");
    this.pick = iconButton("pick", "Take a colour from the screen", () => this.#pick());
    this.pick.hidden = !("EyeDropper" in window);
    this.count = h("span.hint", {});
    this.node = h(
      "div.palette",
      { role: "group", "aria-label": label },
      this.list,
      h("div.row", {}, this.add, this.pick, this.count),
    );
  }

  set(colours) {
    const changed = colours.length !== this.colours.length;
    this.colours = colours;
    if (changed) this.list.replaceChildren(...colours.map((_, index) => this.#item(index)));
    [...this.list.children].forEach((item, index) => this.#update(item, colours[index]));
    this.add.disabled = colours.length >= this.most;
    this.pick.disabled = this.add.disabled;
    this.count.textContent = colours.length ? `${colours.length} of ${this.most}` : "";
  }

  #item(index) {
    const replace = (colour, merge) => this.onchange(this.colours.map((one, i) => (i === index ? colour : one)), merge);
    const name = `colour ${index + 1} of ${this.label.toLowerCase()}`;
    return h(
      "li",
      {},
      h("input.swatch", {
        type: "color",
        "aria-label": `Choose ${name}`,
        oninput: (event) => replace(event.target.value.toUpperCase(), true),
      }),
      h("input.hex", {
        type: "text",
        maxLength: 30,
        spellcheck: false,
        "aria-label": `Write ${name}`,
        onchange: (event) => replace(written(event.target.value), false),
      }),
      iconButton("close", `Remove ${name}`, () => this.onchange(this.colours.filter((_, i) => i !== index), false)),
    );
  }

  #update(item, colour) {
    const [swatch, hex] = item.children;
    const known = HEX.test(colour);
    if (known && swatch.value !== colour.toLowerCase()) swatch.value = colour.toLowerCase();
    swatch.classList.toggle("unknown", !known);
    if (document.activeElement !== hex && hex.value !== colour) hex.value = colour;
  }

  #append(colour) {
    this.onchange([...this.colours, colour], false);
  }

  async #pick() {
    try {
      const { sRGBHex } = await new EyeDropper().open();
      this.#append(sRGBHex.toUpperCase());
    } catch {
      // given up
    }
  }
}

/** A colour as it was typed, as the schema writes it where it can be nothing else. */
export function written(text) {
  const upper = text.trim().toUpperCase();
  if (/^#?[0-9A-F]{6}$/.test(upper)) return `#${upper.replace("#", "")}`;
  if (/^#?[0-9A-F]{3}$/.test(upper)) return `#${[...upper.replace("#", "")].map((digit) => digit + digit).join("")}`;
  return text.trim();
}

/** A first colour, or one that is not there yet. */
function suggestion(colours) {
  const hues = ["#E53935", "#FB8C00", "#FDD835", "#43A047", "#1E88E5", "#8E24AA", "#FAFAFA", "#212121"];
  return hues.find((hue) => !colours.includes(hue)) ?? hues[clamp(colours.length, 0, hues.length - 1)];
}
