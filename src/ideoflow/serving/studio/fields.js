// Fields of the panels: a label, a control, and under it what the server's checks say about the value.

import { h } from "./dom.js";

let count = 0;

/** A labelled control, with room for what is wrong with it. */
export function field(label, control, { hint = null, path = null } = {}) {
  control.id ||= `field-${++count}`;
  const problem = h("p.problem", { id: `${control.id}-problem`, hidden: true });
  if (path !== null) control.dataset.path = path;
  return h("div.field", {}, h("label", { for: control.id }, label), control, hint && h("p.hint", {}, hint), problem);
}

/** A text area that grows with its words. */
export function textArea(properties) {
  return h("textarea.words", { rows: 2, spellcheck: true, ...properties });
}

const typing = new WeakSet(); // controls with something typed that no `change` has told of yet
document.addEventListener("input", (event) => typing.add(event.target), true);
document.addEventListener("change", (event) => typing.delete(event.target), true);

/** Show a value in a control, but for one in which somebody is typing: news from the server come at any moment. */
export function setValue(control, value) {
  const text = value === null || value === undefined ? "" : String(value);
  if (typing.has(control) && control === document.activeElement) return;
  if (control.value !== text) control.value = text;
}

/** Tell at a control what is wrong with it; nothing clears it. */
export function setProblem(control, message, kind = "error") {
  const problem = document.getElementById(`${control.id}-problem`);
  if (!problem) return;
  problem.hidden = !message;
  if (problem.textContent !== message) problem.textContent = message;
  problem.dataset.kind = kind;
  if (message && kind === "error") control.setAttribute("aria-invalid", "true");
  else control.removeAttribute("aria-invalid");
  if (message) control.setAttribute("aria-describedby", problem.id);
  else control.removeAttribute("aria-describedby");
}

/** Show breaches at the controls whose path they name or lie within. */
export function showBreaches(root, breaches) {
  for (const control of root.querySelectorAll("[data-path]")) {
    const { path } = control.dataset;
    const here = breaches.filter(
      (breach) => breach.path === path || breach.path.startsWith(`${path}[`) || breach.path.startsWith(`${path}.`),
    );
    setProblem(control, here.map((breach) => breach.message).join(" "));
  }
}
