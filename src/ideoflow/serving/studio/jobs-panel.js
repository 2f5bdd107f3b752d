// The list of jobs that run or wait: how far each is, what it shows, and how to cancel it.

import { byId, h, iconButton, renderList } from "./dom.js";
import { hasEnded, shownOf, timeLeft } from "./jobs.js";
import { nameOfCaption } from "./gallery.js";

const STATES = { queued: "Waiting", running: "Drawing", finished: "Done", failed: "Failed", cancelled: "Cancelled" };

export class JobsPanel {
  constructor(jobs, api) {
    Object.assign(this, { jobs, api });
    this.list = byId("jobs");
    jobs.subscribe(() => this.render());
  }

  render() {
    const { jobs } = this;
    const items = [
      ...jobs.waiting.filter((entry) => entry.reason).map((entry) => ({ key: entry.key, entry })),
      ...jobs.all.map((job) => ({ key: job.id, job })),
    ];
    renderList(
      this.list,
      items,
      ({ key }) => key,
      (item) => (item.job ? this.#make(item.job.id) : this.#makeWaiting(item.entry)),
      (node, item) => (item.job ? this.#update(node, item.job) : this.#updateWaiting(node, item.entry)),
    );
    byId("jobs-section").hidden = items.length === 0;
  }

  #makeWaiting(entry) {
    return h(
      "li.job",
      {},
      h("p.job-state", {}),
      iconButton("close", "Do not send this", () => this.jobs.withdraw(entry)),
    );
  }

  #updateWaiting(node, entry) {
    node.firstElementChild.textContent = entry.reason;
  }

  #make(id) {
    const { jobs } = this;
    return h(
      "li.job",
      {},
      h("div.job-line", {}, h("button.job-name", { type: "button", onclick: () => jobs.watch(id) }, h("span.job-title"), h("span.job-state"))),
      iconButton("stop", "Cancel", () => (hasEnded(jobs.get(id)) ? jobs.dismiss(id) : jobs.cancel(id))),
      h("progress", {}),
      h("div.job-pictures", {}),
      h("p.problem", { hidden: true }),
    );
  }

  #update(node, job) {
    const [line, stop, progress, pictures, problem] = node.children;
    const [title, state] = line.firstElementChild.children;
    const name = nameOfCaption(job.caption, job.prompt);
    const ended = hasEnded(job);
    const { step = 0, steps = 0, seconds_left: seconds } = job.progress ?? {};
    node.classList.toggle("watched", this.jobs.watched === job.id);
    title.textContent = name;
    line.firstElementChild.setAttribute("aria-label", `Show on the canvas: ${name}, ${STATES[job.status].toLowerCase()}`);
    const place = job.status === "queued" && job.queue_position ? `, ${job.queue_position} before it` : "";
    const left = job.status === "running" ? [steps ? `step ${step} of ${steps}` : "", timeLeft(seconds)] : [];
    state.textContent = [STATES[job.status] + place, ...left].filter(Boolean).join(" · ");
    state.dataset.status = job.status;
    progress.hidden = ended;
    progress.setAttribute("aria-label", `Progress of ${name}`);
    if (job.status === "running" && steps) Object.assign(progress, { max: steps, value: step });
    else progress.removeAttribute("value");
    const label = ended ? `Take ${name} off this list` : `Cancel ${name}`;
    if (stop.getAttribute("aria-label") !== label) {
      const fresh = iconButton(ended ? "close" : "stop", label, () => (ended ? this.jobs.dismiss(job.id) : this.jobs.cancel(job.id)));
      stop.replaceWith(fresh);
    }
    problem.hidden = !job.error;
    problem.textContent = job.error?.message ?? "";
    this.#pictures(pictures, job);
  }

  /** Small pictures of a job of several, by which one of them is shown on the canvas. */
  #pictures(node, job) {
    const count = job.request?.n ?? job.pictures.length;
    node.hidden = count < 2;
    if (count < 2) return;
    const shown = shownOf(job);
    const items = Array.from({ length: count }, (_, index) => ({
      index,
      picture: job.pictures.find((one) => one.index === index),
      preview: job.previews[index],
    })).filter(({ picture, preview }) => picture || preview);
    renderList(
      node,
      items,
      ({ index }) => index,
      ({ index }) =>
        h(
          "button.thumb",
          { type: "button", "aria-label": `Show picture ${index + 1}`, onclick: () => this.jobs.watch(job.id, index) },
          h("img", { alt: "" }),
        ),
      (button, { index, picture, preview }) => {
        button.setAttribute("aria-pressed", String(shown?.index === index && this.jobs.watched === job.id));
        const [image] = button.children;
        if (!picture) image.src = preview;
        else if (image.dataset.url !== picture.url) {
          image.dataset.url = picture.url;
          this.api.picture(picture.url).then((url) => (image.src = url), () => {});
        }
      },
    );
  }
}
