// The server's door: requests with the key where one is needed, errors as the server words them, and whether it answers.

export class ApiError extends Error {
  constructor(status, { message, code = null, param = null } = {}, retryAfter = null) {
    super(message ?? `The server answered ${status}.`);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

/** The server did not answer at all. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

const KEY = "ideoflow.studio.key";

export class Api {
  #key = sessionStorage.getItem(KEY);
  #asking = null;
  #back = null; // a promise while the server is away
  #pictures = new Map(); // blob addresses by path, the oldest first

  /**
   * Args:
   *   askKey: asks the user for a key; given whether one was refused before; resolves to the key.
   *   onAway: called when the server stops answering.
   *   onBack: called when it answers again.
   */
  constructor({ askKey, onAway, onBack }) {
    Object.assign(this, { askKey, onAway, onBack });
  }

  /** An answer of JSON; null for none. */
  async json(path, { method = "GET", body, headers = {}, signal } = {}) {
    const sent = body === undefined ? headers : { ...headers, "Content-Type": "application/json" };
    const response = await this.#fetch(path, {
      method,
      headers: sent,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
    return response.status === 204 ? null : response.json();
  }

  /** A stream of events, from the one after `lastId`. */
  async stream(path, lastId, signal) {
    const headers = { Accept: "text/event-stream", ...(lastId === null ? {} : { "Last-Event-ID": lastId }) };
    return (await this.#fetch(path, { headers, signal, cache: "no-store" })).body;
  }

  async blob(path) {
    return (await this.#fetch(local(path))).blob();
  }

  /** An address under which the page can show a picture, which an <img> could not fetch with a key. */
  async picture(path) {
    const kept = this.#pictures.get(path);
    if (kept) return kept;
    const address = this.blob(path).then((blob) => URL.createObjectURL(blob));
    this.#pictures.set(path, address);
    address.catch(() => this.#pictures.delete(path));
    if (this.#pictures.size > 200) {
      const [oldest, url] = this.#pictures.entries().next().value;
      this.#pictures.delete(oldest);
      url.then((one) => URL.revokeObjectURL(one)).catch(() => {});
    }
    return address;
  }

  /** Resolves once the server answers; at once if it does. */
  async reachable() {
    await this.#back;
  }

  get away() {
    return this.#back !== null;
  }

  async #fetch(path, options = {}) {
    for (;;) {
      const key = this.#key;
      const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
      let response;
      try {
        response = await fetch(path, { ...options, headers });
      } catch (error) {
        if (error.name === "AbortError") throw error;
        this.#lost();
        throw new Unreachable();
      }
      if (response.ok) return response;
      if (response.status === 401) {
        if (key === this.#key) await this.#newKey(key !== null);
        continue;
      }
      if (response.status === 502 || response.status === 504) {
        this.#lost(); // a proxy whose server is away
        throw new Unreachable();
      }
      const body = await response.json().catch(() => ({}));
      const error = typeof body.error === "object" && body.error !== null ? body.error : {};
      const retryAfter = Number(response.headers.get("Retry-After")) || null;
      throw new ApiError(response.status, error, retryAfter);
    }
  }

  /** Ask for a key, once however many requests wait for it. */
  async #newKey(refused) {
    this.#asking ??= this.askKey(refused).finally(() => (this.#asking = null));
    this.#key = await this.#asking;
    sessionStorage.setItem(KEY, this.#key);
  }

  #lost() {
    if (this.#back) return;
    this.onAway();
    this.#back = this.#waitForAnswer().then(() => {
      this.#back = null;
      this.onBack();
    });
  }

  async #waitForAnswer() {
    for (let pause = 500; ; pause = Math.min(pause * 1.5, 5000)) {
      await new Promise((resolve) => setTimeout(resolve, pause));
      try {
        const response = await fetch("health/live", { cache: "no-store" });
        if (response.ok) return;
      } catch {
        // not yet
      }
    }
  }
}

/** An address of the server's as a path, whatever host it names: proxies change that. */
export function local(address) {
  const url = new URL(address, document.baseURI);
  return url.pathname + url.search;
}
