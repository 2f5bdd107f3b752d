// Jobs of the server as the page follows them: sent, watched event by event, cancelled, found again after a reload.
//
// Browsers open six connections to a server for all tabs together. So one job, the one on the canvas, is followed by its
// stream of events; of the others the server is asked now and then.

import { ApiError, Unreachable } from "./api.js";
import { eventsOf } from "./event-stream.js";
import { ofTab, otherTabs } from "./storage.js";

const ENDED = ["finished", "failed", "cancelled"];
const PAUSE = 1500; // milliseconds between questions after jobs that are not streamed

export const hasEnded = (job) => ENDED.includes(job.status);
const pathOf = (id) => `v1/jobs/${encodeURIComponent(id)}`;
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** A name for one sending, so that a sending repeated makes no second job. */
function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Jobs {
  known = new Map(); // jobs by id, with `previews` and `shown`: which of its pictures is on the canvas
  waiting = []; // requests that the server has not taken yet: {key, body, reason, until}
  watched = ofTab.get("watched"); // id of the job on the canvas
  #listeners = new Set();
  #stop = null; // ends the stream that is read
  #streamed = null;
  #sendAgain = []; // called when a job of this page ends, which leaves its place in the queue

  constructor(api, report) {
    this.api = api;
    this.report = report; // tells the user something
    if (otherTabs) otherTabs.onmessage = () => this.refresh();
    document.addEventListener("visibilitychange", () => this.#choose());
    this.#keepAsking();
  }

  subscribe(listener) {
    this.#listeners.add(listener);
  }

  #notify(what = {}) {
    for (const listener of this.#listeners) listener(what);
  }

  /** Jobs that have not ended or have failed, and the one on the canvas; the newest first. */
  get all() {
    const listed = (job) => !hasEnded(job) || job.status === "failed" || job.id === this.watched;
    return [...this.known.values()].filter(listed).sort((a, b) => b.created_at - a.created_at);
  }

  get(id) {
    return this.known.get(id);
  }

  /** Send a request; while the queue is full or the server away it waits here and is sent again. */
  async submit(body) {
    const entry = { key: newKey(), body, reason: "", until: null, gone: false };
    this.waiting.push(entry);
    this.#notify();
    try {
      const job = await this.#send(entry);
      if (!job) return null;
      this.#take(job);
      this.watch(job.id);
      otherTabs?.postMessage("submitted");
      return job;
    } finally {
      this.waiting = this.waiting.filter((one) => one !== entry);
      this.#notify();
    }
  }

  async #send(entry) {
    while (!entry.gone) {
      try {
        return await this.api.json("v1/jobs", {
          method: "POST",
          body: entry.body,
          headers: { "Idempotency-Key": entry.key },
        });
      } catch (error) {
        if (error instanceof Unreachable) {
          entry.reason = "The server does not answer; this is sent when it does.";
          this.#notify();
          await this.api.reachable();
        } else if (error.status === 429 || error.status === 503) {
          const seconds = Math.min(error.retryAfter ?? 5, 60);
          entry.reason = error.status === 429 ? "The queue is full; this is sent again soon." : "The server is stopping or starting.";
          this.#notify();
          await Promise.race([sleep(seconds * 1000), new Promise((resolve) => this.#sendAgain.push(resolve))]);
        } else throw error;
      }
    }
    return null;
  }

  /** Take back a request that waits to be sent. */
  withdraw(entry) {
    entry.gone = true;
    this.waiting = this.waiting.filter((one) => one !== entry);
    this.#notify();
  }

  async cancel(id) {
    try {
      this.#take(await this.api.json(pathOf(id), { method: "DELETE" }));
    } catch (error) {
      this.report(error);
    }
  }

  async forget(id) {
    try {
      await this.api.json(`${pathOf(id)}?forget=true`, { method: "DELETE" });
    } catch (error) {
      if (error.status !== 404) throw error;
    }
    this.known.delete(id);
    if (this.watched === id) this.watch(null);
    otherTabs?.postMessage("forgotten");
    this.#notify({ gallery: true });
  }

  /** Take an ended job off the list; the gallery keeps it. */
  dismiss(id) {
    this.known.delete(id);
    this.#notify();
  }

  /** Show a job on the canvas, and one of its pictures. */
  watch(id, picture = null) {
    this.watched = id;
    ofTab.set("watched", id);
    const job = this.known.get(id);
    if (job && picture !== null) job.shown = picture;
    this.#choose();
    this.#notify({ canvas: true });
  }

  /** Ask the server for what has not ended, and after what was on the canvas. */
  async refresh(gallery = true) {
    try {
      const { data } = await this.api.json("v1/jobs?status=queued,running&limit=50");
      const listed = new Set(data.map((job) => job.id));
      for (const job of data) this.#take(job);
      const open = [...this.known.values()].filter((job) => !hasEnded(job) && !listed.has(job.id));
      const missing = this.watched && !this.known.has(this.watched) ? [this.watched] : [];
      await Promise.all([...open.map((job) => job.id), ...missing].map((id) => this.#ask(id)));
    } catch (error) {
      if (!(error instanceof Unreachable) && error.status !== 503) this.report(error);
    }
    this.#notify({ gallery });
  }

  async #ask(id) {
    try {
      this.#take(await this.api.json(pathOf(id)));
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 404) throw error;
      this.known.delete(id);
      if (this.watched === id) this.watch(null);
    }
  }

  async #keepAsking() {
    for (;;) {
      await sleep(PAUSE);
      const open = [...this.known.values()].filter((job) => !hasEnded(job) && job.id !== this.#streamed);
      if (open.length && !this.api.away && !document.hidden) await this.refresh(false);
    }
  }

  #take(job) {
    const before = this.known.get(job.id);
    const again = before && before.status === "running" && job.status === "queued"; // after a restart
    const kept = before && !again ? { previews: before.previews, shown: before.shown, lastId: before.lastId } : {};
    this.known.set(job.id, { previews: [], shown: null, lastId: null, ...kept, ...job });
    if (before && !hasEnded(before) && hasEnded(job)) this.#ended(job);
    this.#choose();
    this.#notify({ canvas: job.id === this.watched });
  }

  #ended(job) {
    for (const resolve of this.#sendAgain.splice(0)) resolve();
    otherTabs?.postMessage("ended");
    this.#notify({ gallery: true, ended: job });
  }

  /** Follow the watched job while it runs and the tab is seen. */
  #choose() {
    const job = this.known.get(this.watched);
    const wanted = job && !hasEnded(job) && !document.hidden ? job.id : null;
    if (wanted === this.#streamed) return;
    this.#stop?.abort();
    this.#streamed = wanted;
    if (!wanted) return;
    this.#stop = new AbortController();
    this.#follow(wanted, this.#stop.signal).catch((error) => {
      if (error.name !== "AbortError") this.report(error);
    });
  }

  async #follow(id, signal) {
    for (let pause = 250; !signal.aborted; pause = Math.min(pause * 2, 4000)) {
      try {
        const body = await this.api.stream(`${pathOf(id)}/events`, this.known.get(id)?.lastId ?? null, signal);
        for await (const event of eventsOf(body)) {
          if (signal.aborted) return;
          pause = 250;
          this.#hear(id, event);
          if (ENDED.includes(event.type)) return;
        }
      } catch (error) {
        if (signal.aborted || error.name === "AbortError") return;
        if (error instanceof ApiError && error.status !== 404 && error.status < 500) throw error;
      }
      // The connection broke, or the server stopped: go on where it was once there is one.
      await sleep(pause);
      await this.api.reachable();
      if (signal.aborted) return;
      await this.#ask(id).catch(() => {});
      const job = this.known.get(id);
      if (!job || hasEnded(job)) return;
    }
  }

  #hear(id, { id: eventId, type, data }) {
    const job = this.known.get(id);
    if (!job) return;
    if (eventId !== null) job.lastId = eventId;
    if (type === "queued") Object.assign(job, { status: "queued", queue_position: data.queue_position });
    if (type === "started") Object.assign(job, { status: "running", queue_position: null });
    if (type === "step") {
      job.status = "running";
      job.progress = { step: data.step, steps: data.steps, seconds_left: data.seconds_left };
    }
    if (type === "preview") job.previews[data.picture] = data.image;
    if (type === "picture") job.pictures = [...job.pictures.filter((one) => one.index !== data.picture.index), data.picture];
    if (type === "preview" || type === "picture") this.#notify({ canvas: id === this.watched });
    if (ENDED.includes(type)) {
      const whole = typeof data.job === "object" && data.job !== null ? data.job : {};
      this.#take({ ...job, ...whole, status: type, error: whole.error ?? data.error ?? job.error });
    } else this.#notify();
  }
}

/** Which picture of a job the canvas shows: {index, picture} or {index, preview}; null while there is none. */
export function shownOf(job) {
  const pictures = new Map(job.pictures.map((one) => [one.index, one]));
  const indices = [...new Set([...pictures.keys(), ...job.previews.keys()])].filter(
    (index) => pictures.has(index) || job.previews[index],
  );
  if (!indices.length) return null;
  const latest = hasEnded(job) ? Math.min(...indices) : Math.max(...indices);
  const index = indices.includes(job.shown) ? job.shown : latest;
  return pictures.has(index) ? { index, picture: pictures.get(index) } : { index, preview: job.previews[index] };
}

/** How long is left, in words. */
export function timeLeft(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 1) return "almost done";
  if (seconds < 90) return `about ${Math.ceil(seconds)} s left`;
  return `about ${Math.round(seconds / 60)} min left`;
}
