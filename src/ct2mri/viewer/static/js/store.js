// One state, told to those who listen once per turn, with the names of what changed.

export class Store {
  #listeners = [];
  #changed = new Set();

  constructor(state) {
    this.state = state;
  }

  /** Replaces parts of the state. */
  set(changes) {
    for (const [name, value] of Object.entries(changes)) {
      if (this.state[name] === value) continue;
      this.state[name] = value;
      if (this.#changed.size === 0) queueMicrotask(() => this.#tell());
      this.#changed.add(name);
    }
  }

  /** Calls `listener(state)` after any of the named parts has changed. */
  on(names, listener) {
    this.#listeners.push({ names, listener });
  }

  #tell() {
    const changed = this.#changed;
    this.#changed = new Set();
    for (const { names, listener } of this.#listeners) {
      if (names.some((name) => changed.has(name))) listener(this.state);
    }
  }
}

/** What the browser keeps for this tab (`session`) or for good (`local`); a browser that keeps nothing is fine. */
export function remember(storage, name, value) {
  try {
    window[`${storage}Storage`].setItem(`ct2mri-${name}`, JSON.stringify(value));
  } catch {
    // Full or forbidden: nothing is remembered.
  }
}

export function recall(storage, name, otherwise) {
  try {
    return JSON.parse(window[`${storage}Storage`].getItem(`ct2mri-${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}
