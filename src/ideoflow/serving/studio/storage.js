// What outlives a reload: the work of this tab in its session, and the last work of any tab for the next one.

const PREFIX = "ideoflow.studio.";

function read(storage, name) {
  try {
    const text = storage.getItem(PREFIX + name);
    return text === null ? null : JSON.parse(text);
  } catch {
    return null; // refused by the browser's settings, or written by something else
  }
}

function write(storage, name, value) {
  try {
    if (value === null) storage.removeItem(PREFIX + name);
    else storage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false; // full, or refused
  }
}

export const ofTab = {
  get: (name) => read(sessionStorage, name),
  set: (name, value) => write(sessionStorage, name, value),
};

export const ofBrowser = {
  get: (name) => read(localStorage, name),
  set: (name, value) => write(localStorage, name, value),
};

/** The work to go on with: this tab's, or else the last of any tab. */
export const loadWork = () => ofTab.get("work") ?? ofBrowser.get("work");

/** Keep the work; of its history as much as fits. */
export function saveWork(work) {
  ofBrowser.set("work", { ...work, past: [], future: [] });
  for (const steps of [100, 20, 0]) {
    const past = steps ? work.past.slice(-steps) : [];
    const future = steps ? work.future.slice(-steps) : [];
    if (ofTab.set("work", { ...work, past, future })) return;
  }
}

/** Tell the other tabs of this browser, and hear from them. */
export const otherTabs = "BroadcastChannel" in window ? new BroadcastChannel(PREFIX + "tabs") : null;
