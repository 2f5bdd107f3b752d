// The gallery: the pictures that this server kept, the newest first, found by words.

import { byId, h } from "./dom.js";
import { Unreachable } from "./api.js";

const PAGE = 24;
const THUMBNAIL = 384; // pixels of a side: what a tile shows on a fine screen

/** What a caption is called: its description, or what it shows. */
export function nameOfCaption(caption, line = "") {
  const composition = caption?.compositional_deconstruction;
  const elements = Array.isArray(composition?.elements) ? composition.elements : [];
  const named = elements.map((one) => (one?.text ? `“${one.text}”` : one?.desc)).filter(Boolean);
  return caption?.high_level_description || named.slice(0, 3).join(", ") || composition?.background || (line.startsWith("{") ? "Untitled" : line) || "Untitled";
}

export class Gallery {
  constructor(api, { onopen, reportError }) {
    Object.assign(this, { api, onopen, reportError });
    this.jobs = [];
    this.more = false;
    this.list = byId("gallery");
    this.search = byId("gallery-search");
    this.button = byId("gallery-more");
    this.none = byId("gallery-none");
    this.search.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.refresh(), 250);
    });
    this.button.onclick = () => this.#load(this.jobs.at(-1)?.id);
    // Pictures are fetched once they come into sight.
    this.seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        this.seen.unobserve(target);
        this.api.picture(`${target.dataset.url}?side=${THUMBNAIL}`).then((url) => (target.src = url), () => {});
      }
    });
  }

  refresh() {
    return this.#load(null);
  }

  /** Every picture in the order shown: {job, picture}. */
  get entries() {
    return this.jobs.flatMap((job) => job.pictures.map((picture) => ({ job, picture })));
  }

  async #load(after) {
    const query = new URLSearchParams({ status: "finished,failed,cancelled", limit: PAGE });
    if (after) query.set("after", after);
    if (this.search.value.trim()) query.set("q", this.search.value.trim());
    const asked = (this.asked = query.toString());
    try {
      const { data, has_more: more } = await this.api.json(`v1/jobs?${query}`);
      if (asked !== this.asked) return;
      const drawn = data.filter((job) => job.pictures.length);
      const known = new Set(after ? this.jobs.map((job) => job.id) : []);
      this.jobs = [...(after ? this.jobs : []), ...drawn.filter((job) => !known.has(job.id))];
      this.more = more;
      this.#render();
    } catch (error) {
      if (!(error instanceof Unreachable) && error.status !== 503) this.reportError(error);
    }
  }

  #render() {
    const entries = this.entries;
    const keys = entries.map(({ job, picture }) => `${job.id}-${picture.index}`);
    const old = new Map([...this.list.children].map((node) => [node.dataset.key, node]));
    const nodes = entries.map((entry, index) => old.get(keys[index]) ?? this.#item(entry, keys[index]));
    this.list.replaceChildren(...nodes);
    this.button.hidden = !this.more;
    this.none.hidden = entries.length > 0;
    this.none.textContent = this.search.value.trim()
      ? "No picture has these words in its caption."
      : "The pictures that you generate are kept here.";
  }

  #item(entry, key) {
    const name = nameOfCaption(entry.job.caption, entry.job.prompt);
    const image = h("img", { alt: "", dataset: { url: entry.picture.url } });
    this.seen.observe(image);
    const open = () => this.onopen(entry);
    const label = `Look at ${name}, seed ${entry.picture.seed}`;
    return h("li", { dataset: { key } }, h("button.thumb", { type: "button", title: name, "aria-label": label, onclick: open }, image));
  }
}
