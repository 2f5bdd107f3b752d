// Making and finding elements of the page.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `h("button.quiet", {type: "button", onclick: ...}, "Save")`. */
export function h(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "dataset") Object.assign(node.dataset, value);
    else if (key in node && key !== "list" && key !== "form") node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

const PATHS = {
  select: "M5 3l14 8-6 2-2 6z",
  object: "M4 4h16v16H4z",
  text: "M5 6V4h14v2M12 4v16M9 20h6",
  brush: "M4 20c5 0 3-5 7-6l9-9-2-2-9 9c-3 1-3 5-5 8z",
  undo: "M8 5L3 10l5 5M3 10h11a5 5 0 010 10h-3",
  redo: "M16 5l5 5-5 5M21 10H10a5 5 0 000 10h3",
  delete: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  paste: "M8 5H5v15h14V5h-3M8 3h8v4H8z",
  lock: "M6 11h12v9H6zM8 11V8a4 4 0 018 0v3",
  unlock: "M6 11h12v9H6zM8 11V8a4 4 0 017.5-2",
  up: "M12 19V5M6 11l6-6 6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  front: "M5 4h14M12 20V8M7 13l5-5 5 5",
  back: "M5 20h14M12 4v12M7 11l5 5 5-5",
  below: "M4 4h10v10H4zM14 10h6v10H10v-6",
  eye: "M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12zM12 9a3 3 0 100 6 3 3 0 000-6z",
  grid: "M4 4h16v16H4zM4 9.3h16M4 14.7h16M9.3 4v16M14.7 4v16",
  snap: "M6 4v8a6 6 0 0012 0V4h-4v8a2 2 0 01-4 0V4zM6 8h4M14 8h4",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  dice: "M4 4h16v16H4zM9 9h.01M15 15h.01M15 9h.01M9 15h.01M12 12h.01",
  download: "M12 4v11M7 11l5 5 5-5M4 20h16",
  swap: "M4 8h14l-4-4M20 16H6l4 4",
  pick: "M4 20l1-4 9-9 3 3-9 9zM13 6l2-2a2 2 0 013 0l2 2a2 2 0 010 3l-2 2",
  help: "M9 9a3 3 0 116 .5c0 2-3 2-3 4.5M12 18h.01",
  theme: "M12 3a9 9 0 100 18zM12 3a9 9 0 010 18",
  minus: "M5 12h14",
  stop: "M6 6h12v12H6z",
  alert: "M12 3l10 18H2zM12 10v5M12 18h.01",
  clear: "M4 4h16v16H4zM4 20L20 4",
  alignleft: "M4 3v18M8 7h12v4H8zM8 14h7v4H8z",
  aligncentre: "M12 3v18M5 7h14v4H5zM8 14h8v4H8z",
  alignright: "M20 3v18M4 7h12v4H4zM9 14h7v4H9z",
  aligntop: "M3 4h18M7 8h4v12H7zM14 8h4v7h-4z",
  alignmiddle: "M3 12h18M7 5h4v14H7zM14 8h4v8h-4z",
  alignbottom: "M3 20h18M7 4h4v12H7zM14 9h4v7h-4z",
  distributex: "M4 3v18M20 3v18M9 7h6v10H9z",
  distributey: "M3 4h18M3 20h18M7 9h10v6H7z",
};

/** A drawing of the given name, which screen readers pass over. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** A button with a drawing; its label is read by screen readers and shown as a tip. */
export function iconButton(name, label, onclick, properties = {}) {
  return h("button.icon-button", { type: "button", title: label, "aria-label": label, onclick, ...properties }, icon(name));
}

/** Children of `parent` in the order of `items`, each made once for its key and updated in place. */
export function renderList(parent, items, key, make, update) {
  const old = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  const focused = document.activeElement;
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let node = old.get(name);
    if (node) old.delete(name);
    else {
      node = make(item);
      node.dataset.key = name;
    }
    if (node !== place) parent.insertBefore(node, place);
    else place = place.nextElementSibling;
    update?.(node, item);
  }
  for (const node of old.values()) node.remove();
  // A node that is moved loses the focus.
  if (focused !== document.activeElement && parent.contains(focused)) focused.focus({ preventScroll: true });
}

/** Whether keys belong to a field that is typed into. */
export function isTyping(target) {
  if (!(target instanceof HTMLElement)) return false;
  if (target.isContentEditable || target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement) return true;
  return target instanceof HTMLInputElement && !["checkbox", "radio", "button", "color", "range"].includes(target.type);
}
