// What the server says of the caption while it is edited, asked shortly after each change.

import { toCaption } from "./layout.js";

const PAUSE = 350; // milliseconds without a change before the server is asked

export class Checks {
  /** `ontext` is told what the server says of the text in the JSON pane while that is no JSON object. */
  constructor(studio, api) {
    Object.assign(this, { studio, api });
    this.text = null; // of the JSON pane, where it is checked in place of the layout
    this.tokens = null;
    this.asked = null;
    studio.subscribe(() => this.#due());
  }

  /** Check a text in place of the layout, until it is null again. */
  setText(text) {
    this.text = text;
    this.#due();
  }

  #due() {
    if (!this.studio.server) return;
    const caption = this.text ?? toCaption(this.studio.layout);
    const key = JSON.stringify(caption);
    if (key === this.asked) return;
    this.asked = key;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#ask(caption, key), PAUSE);
  }

  async #ask(caption, key) {
    try {
      const answer = await this.api.json("v1/captions/check", { method: "POST", body: { caption } });
      if (key !== this.asked) return; // changed meanwhile
      this.tokens = answer.tokens;
      this.studio.set({ breaches: answer.breaches.map((breach) => ({ ...breach, path: plainPath(breach.path) })) });
    } catch (error) {
      if (key !== this.asked) return;
      this.asked = null; // ask again with the next change
      if (error.status === 400 || error.status === 422) {
        this.studio.set({ breaches: [{ path: "", message: error.message, repairable: false }] });
        this.asked = key;
      }
    }
  }

  /** What repairing makes of a text or of the layout: {caption, changes, breaches}. */
  repair() {
    const caption = this.text ?? toCaption(this.studio.layout);
    return this.api.json("v1/captions/repair", { method: "POST", body: { caption } });
  }
}

/** A path without the mark of the root: `$.a[0].b` is `a[0].b`. */
export const plainPath = (path) => path.replace(/^\$\.?/, "");
