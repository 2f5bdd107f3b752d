// Undo and redo: states before and after the present one, of which the nearest hundred are kept.

export class History {
  past = [];
  future = [];
  #merge = null;
  #time = 0;

  constructor(limit = 100) {
    this.limit = limit;
  }

  /**
   * Note the state before a change.
   *
   * Changes with the same `merge` count as one step while no more than `within` milliseconds lie between them: the
   * letters of a word, the moves of a drag.
   */
  record(before, merge = null, within = 1000) {
    const now = Date.now();
    const same = merge !== null && merge === this.#merge && now - this.#time <= within && this.past.length > 0;
    if (!same) {
      this.past.push(before);
      if (this.past.length > this.limit) this.past.shift();
    }
    this.future = [];
    this.#merge = merge;
    this.#time = now;
  }

  /** The state before the present one, which goes to the future; undefined where there is none. */
  undo(present) {
    return this.#step(this.past, this.future, present);
  }

  redo(present) {
    return this.#step(this.future, this.past, present);
  }

  #step(from, to, present) {
    this.#merge = null;
    if (from.length === 0) return undefined;
    to.push(present);
    return from.pop();
  }
}
