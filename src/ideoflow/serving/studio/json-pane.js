// The caption's JSON beside the canvas: what is typed there moves the boxes, and what is drawn is written there.

import { byId, h, icon } from "./dom.js";
import { fromCaption, toCaption } from "./layout.js";
import { lineAt, placeOf, placesOf, pretty } from "./json-text.js";

export class JsonPane {
  constructor(studio, checks, { notify, reportError }) {
    Object.assign(this, { studio, checks });
    this.text = byId("json");
    this.gutter = byId("json-lines");
    this.list = byId("json-problems");
    this.state = byId("json-state");
    this.written = ""; // the text as the layout gave it
    this.typed = null; // the layout that the typed text gave
    this.text.addEventListener("input", () => this.#read());
    this.text.addEventListener("scroll", () => (this.gutter.scrollTop = this.text.scrollTop));
    this.text.addEventListener("blur", () => this.render());
    this.repair = byId("json-repair");
    this.repair.onclick = () => this.#repair(notify).catch(reportError);
    byId("json-copy").onclick = async () => {
      try {
        await navigator.clipboard.writeText(this.text.value);
        notify("The caption's JSON is on the clipboard.");
      } catch {
        this.text.focus();
        this.text.select();
        notify("Press Ctrl+C to copy what is selected.");
      }
    };
    studio.subscribe(() => this.render());
  }

  render() {
    const { studio } = this;
    const unreadable = this.checks.text !== null;
    // What is being typed stays as it was typed, as long as it says what the layout says.
    const typing = document.activeElement === this.text && (studio.layout === this.typed || unreadable);
    const changed = studio.layout !== this.shown;
    if (!typing && (changed || !unreadable)) {
      const text = pretty(toCaption(studio.layout));
      if (text !== this.text.value) this.text.value = text;
      if (unreadable) this.checks.setText(null);
    }
    this.shown = studio.layout;
    this.#problems();
  }

  #read() {
    const { studio, text } = this;
    let caption;
    try {
      caption = JSON.parse(text.value);
    } catch {
      caption = undefined;
    }
    if (typeof caption !== "object" || caption === null || Array.isArray(caption)) {
      this.typed = studio.layout;
      this.checks.setText(text.value);
      this.#problems();
      return;
    }
    this.checks.setText(null);
    const before = studio.layout;
    this.typed = fromCaption(caption, before);
    if (JSON.stringify(toCaption(this.typed)) === JSON.stringify(toCaption(before))) this.typed = before;
    else studio.edit(() => this.typed, { merge: "json" });
    this.#problems();
  }

  #problems() {
    const text = this.text.value;
    const { places, error } = placesOf(text);
    const unreadable = this.checks.text !== null;
    const found = this.studio.breaches.map((breach) => ({ ...breach, place: placeOf(places, breach.path) }));
    if (unreadable && error !== null) {
      found.unshift({ path: "", message: "The text stops being JSON here.", place: error, repairable: false });
    }
    for (const one of found) one.line = lineAt(text, one.place);
    const wrong = new Set(found.map((one) => one.line));
    const lines = text.split("\n").length;
    const signature = `${lines}:${[...wrong].join()}`;
    if (this.gutter.dataset.of !== signature) {
      this.gutter.dataset.of = signature;
      this.gutter.replaceChildren(
        ...Array.from({ length: lines }, (_, index) => h(wrong.has(index + 1) ? "span.wrong" : "span", {}, String(index + 1))),
      );
    }
    this.gutter.scrollTop = this.text.scrollTop;
    this.list.replaceChildren(
      ...found.map((one) =>
        h(
          "li",
          {},
          h(
            "button",
            { type: "button", onclick: () => this.#goTo(one.place) },
            icon("alert"),
            h("span", {}, `Line ${one.line}: `, one.path ? h("code", {}, one.path.split(".").pop()) : "", ` ${one.message}`),
          ),
        ),
      ),
    );
    this.repair.hidden = !found.length || !(unreadable || found.some((one) => one.repairable));
    const tokens = this.checks.tokens ? ` · ${this.checks.tokens} tokens` : "";
    const said = found.length === 0 ? "Keeps to the schema" : found.length === 1 ? "1 problem" : `${found.length} problems`;
    this.state.textContent = said + tokens;
    this.state.classList.toggle("wrong", found.length > 0);
    byId("json-badge").hidden = found.length === 0;
    byId("json-badge").textContent = String(found.length);
  }

  #goTo(place) {
    this.text.focus();
    this.text.setSelectionRange(place, place);
    const line = lineAt(this.text.value, place);
    this.text.scrollTop = (line - 4) * parseFloat(getComputedStyle(this.text).lineHeight);
  }

  async #repair(notify) {
    const { caption, changes } = await this.checks.repair();
    const { studio } = this;
    studio.edit((layout) => fromCaption(caption, layout));
    this.checks.setText(null);
    this.text.value = pretty(toCaption(studio.layout));
    this.#problems();
    notify(changes.length ? `Repaired: ${changes.join("; ")}.` : "Nothing could be repaired for certain.");
  }
}
