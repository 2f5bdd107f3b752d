// Copy, cut and paste through the system's clipboard, so that elements go from tab to tab and into other programs.

import { isTyping } from "./dom.js";
import { toElement } from "./layout.js";
import { pretty } from "./json-text.js";

export class Clipboard {
  /** `open` takes text or a file that was pasted. */
  constructor(studio, { openText, openFile, notify }) {
    Object.assign(this, { studio, openText, notify });
    document.addEventListener("copy", (event) => this.#copy(event));
    document.addEventListener("cut", (event) => {
      if (this.#copy(event)) studio.remove();
    });
    document.addEventListener("paste", (event) => {
      if (isTyping(event.target) || document.querySelector("dialog[open]")) return;
      const [file] = event.clipboardData.files;
      const text = event.clipboardData.getData("text/plain");
      if (!file && !text) return;
      event.preventDefault();
      if (file) openFile(file);
      else openText(text);
    });
  }

  /** Copy by a button, where there is no key to press. */
  async copy() {
    if (!this.studio.selected.length) return;
    try {
      await navigator.clipboard.writeText(this.#text());
      this.notify("Copied: paste it here, in another tab or another program.");
    } catch {
      this.notify("This browser lets no button copy here: press Ctrl+C.");
    }
  }

  async paste() {
    try {
      this.openText(await navigator.clipboard.readText());
    } catch {
      this.notify("This browser lets no button paste here: press Ctrl+V.");
    }
  }

  #copy(event) {
    const words = String(getSelection());
    if (isTyping(event.target) || words || !this.studio.selected.length || document.querySelector("dialog[open]")) return false;
    event.clipboardData.setData("text/plain", this.#text());
    event.preventDefault();
    return true;
  }

  #text() {
    return pretty({ elements: this.studio.selected.map(toElement) });
  }
}
