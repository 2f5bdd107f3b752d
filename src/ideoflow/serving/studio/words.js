// Say it in words: a caption that the server writes, shown with what it changes before it is taken.

import { byId, h } from "./dom.js";
import { toCaption } from "./layout.js";

export class Words {
  #written = null; // the caption that waits to be taken
  #asked = 0;

  /**
   * Args:
   *   ontake: called with a caption that is taken.
   */
  constructor(studio, api, { ontake }) {
    Object.assign(this, { studio, api, ontake });
    byId("words-form").onsubmit = (event) => {
      event.preventDefault();
      this.#write();
    };
    byId("words-take").onclick = () => {
      byId("words-dialog").close();
      this.ontake(this.#written);
    };
    for (const input of [byId("words-text"), byId("words-change")]) {
      input.addEventListener("input", () => (byId("words-take").disabled = true)); // what was written is of other words
    }
    byId("words-close").onclick = () => byId("words-dialog").close();
    byId("words-dialog").addEventListener("close", () => (this.#asked += 1)); // what comes later is for nobody
  }

  show() {
    const changes = this.studio.server?.describes && this.studio.layout.elements.length > 0;
    byId("words-change-field").hidden = !changes;
    byId("words-change").checked = false;
    this.#tell([]);
    byId("words-dialog").showModal();
    byId("words-text").select();
  }

  async #write() {
    const asked = (this.#asked += 1);
    const { width, height } = this.studio.layout.settings;
    const change = byId("words-change").checked;
    const body = { words: byId("words-text").value, size: `${width}x${height}` };
    this.#tell([h("p", { className: "hint" }, "Writing ...")]);
    byId("words-write").disabled = true;
    try {
      const sent = change ? { ...body, caption: toCaption(this.studio.layout) } : body;
      const written = await this.api.json("v1/captions/write", { method: "POST", body: sent });
      if (asked === this.#asked) this.#show(written, change);
    } catch (error) {
      if (asked === this.#asked) this.#tell([h("p", { className: "problem", role: "alert" }, error.message)]);
    } finally {
      byId("words-write").disabled = false;
    }
  }

  #show({ caption, by, notes, changes }, change) {
    this.#written = caption;
    const lines = change ? changes : partsOf(caption);
    this.#tell([
      h("p", { className: "hint" }, change ? `What changes, by ${by}:` : `Written by ${by}, in place of what is here:`),
      h("ul", {}, ...lines.map((line) => h("li", {}, line))),
      ...notes.map((note) => h("p", { className: "hint" }, note)),
    ]);
    byId("words-take").disabled = false;
    byId("words-take").focus();
  }

  #tell(parts) {
    byId("words-take").disabled = true;
    byId("words-result").replaceChildren(...parts);
  }
}

/** The parts of a caption, a line each. */
function partsOf({ compositional_deconstruction: { background, elements } }) {
  const named = elements.map(({ text, desc }) => (text === undefined ? desc : `“${text}”: ${desc}`));
  return [...named, `Background: ${background}`];
}
