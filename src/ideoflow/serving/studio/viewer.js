// One picture of the gallery looked at: with its boxes laid over it, opened again, its seed taken, saved or deleted.

import { byId, h } from "./dom.js";
import { put } from "./canvas.js";
import { fileName, saveCaption, savePicture } from "./downloads.js";
import { fromCaption, nameOf } from "./layout.js";
import { nameOfCaption } from "./gallery.js";
import { settingsOf } from "./settings-panel.js";
import { listOf, treeOf } from "./tree.js";

export class Viewer {
  constructor(studio, api, jobs, gallery, { notify, reportError, confirmed }) {
    Object.assign(this, { studio, api, jobs, gallery, notify, reportError, confirmed });
    this.dialog = byId("viewer");
    this.image = byId("viewer-image");
    this.frame = byId("viewer-frame");
    this.boxes = byId("viewer-boxes");
    this.entry = null;
    const act = (id, run) => {
      byId(id).onclick = () => Promise.resolve(run()).catch(reportError);
    };
    act("viewer-open", () => this.#open());
    act("viewer-seed", () => this.#takeSeed());
    act("viewer-png", () => savePicture(api, this.entry.picture, fileName(this.entry.job.caption, this.entry.picture.seed)));
    act("viewer-json", () => saveCaption(this.entry.job.caption, fileName(this.entry.job.caption)));
    act("viewer-delete", () => this.#delete());
    act("viewer-close", () => this.dialog.close());
    act("viewer-newer", () => this.#go(-1));
    act("viewer-older", () => this.#go(1));
    byId("viewer-compare").onchange = (event) => (this.boxes.hidden = !event.target.checked);
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.#go(-1);
      if (event.key === "ArrowRight") this.#go(1);
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // beside it
    });
  }

  async show(entry) {
    this.entry = entry;
    const { job, picture } = entry;
    const { request } = job;
    const name = nameOfCaption(job.caption, job.prompt);
    byId("viewer-title").textContent = name;
    byId("viewer-facts").textContent = [
      `${picture.width} × ${picture.height}`,
      request.num_inference_steps ? `${request.num_inference_steps} steps` : request.preset,
      request.guidance_scale !== null && request.guidance_scale !== undefined ? `guidance ${request.guidance_scale}` : null,
      `seed ${picture.seed}`,
      ...Object.entries(request.adapters ?? {}).map(([adapter, weight]) => `${adapter} ${weight}`),
      new Date(job.created_at * 1000).toLocaleString(),
    ]
      .filter(Boolean)
      .join(" · ");
    byId("viewer-png").lastChild.textContent = picture.format.toUpperCase();
    byId("viewer-json").disabled = byId("viewer-open").disabled = !job.caption;
    this.boxes.replaceChildren(...this.#boxes(job.caption));
    this.boxes.hidden = !byId("viewer-compare").checked;
    const place = this.#place();
    byId("viewer-newer").disabled = place <= 0;
    byId("viewer-older").disabled = place < 0 || place >= this.gallery.entries.length - 1;
    if (!this.dialog.open) this.dialog.showModal();
    const ratio = picture.width / picture.height;
    this.frame.style.aspectRatio = String(ratio);
    this.frame.style.width = `min(100%, ${78 * ratio}dvh)`;
    this.image.removeAttribute("src");
    this.image.alt = name;
    const url = await this.api.picture(picture.url);
    if (this.entry === entry) this.image.src = url;
    await this.#showTree(entry);
  }

  async #showTree(entry) {
    const tree = await treeOf(entry, this.gallery.jobs, this.api);
    if (this.entry !== entry) return;
    const node = byId("viewer-tree");
    node.hidden = tree.parts.length === 0;
    const show = (one) => this.show(one).catch(this.reportError);
    node.querySelector("ul").replaceChildren(listOf(tree, entry, this.api, show));
  }

  #boxes(caption) {
    if (!caption) return [];
    return fromCaption(caption)
      .elements.filter((element) => element.box)
      .map((element) => {
        const node = h(`div.box.${element.kind === "text" ? "text" : "object"}`, {}, h("span.box-words", {}, nameOf(element)));
        put(node, element.box);
        return node;
      });
  }

  #place() {
    const { job, picture } = this.entry;
    return this.gallery.entries.findIndex((one) => one.job.id === job.id && one.picture.index === picture.index);
  }

  async #go(by) {
    const next = this.gallery.entries[this.#place() + by];
    if (next) await this.show(next);
  }

  /** Everything as it was when the picture was drawn, with the picture behind the boxes. */
  async #open() {
    const { job, picture } = this.entry;
    const settings = settingsOf({ ...job.request, seed: picture.seed }, this.studio.server);
    this.studio.open(job.caption, settings);
    this.jobs.watch(null);
    const url = await this.api.picture(picture.url);
    const label = `Picture: ${this.image.alt}`;
    this.studio.set({ backdrop: { url, label, preview: false, job: job.id, picture, caption: job.caption } });
    this.dialog.close();
    this.notify("Opened as it was drawn. Undo brings back what was here before.");
  }

  #takeSeed() {
    this.studio.setSettings({ seed: this.entry.picture.seed });
    this.notify(`The next picture is drawn with seed ${this.entry.picture.seed}.`);
  }

  async #delete() {
    const { job } = this.entry;
    const others = job.pictures.length > 1 ? ` The ${job.pictures.length} pictures drawn together are deleted.` : "";
    if (!(await this.confirmed(`Delete this picture from the server?${others}`, "Delete"))) return;
    await this.jobs.forget(job.id);
    this.dialog.close();
    await this.gallery.refresh();
  }
}
