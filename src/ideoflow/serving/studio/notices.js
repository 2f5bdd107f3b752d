// What the page tells and asks: short notices, whether the server answers, the key, and yes or no.

import { byId, h, iconButton } from "./dom.js";

/** Show a notice for some seconds; errors stay until they are closed. */
export function notify(message, kind = "info", action = null) {
  const box = byId("notices");
  const notice = h("div.notice", { dataset: { kind } }, h("p", {}, message));
  if (kind === "error") notice.setAttribute("role", "alert");
  if (action) {
    const act = () => {
      notice.remove();
      action.run();
    };
    notice.append(h("button", { type: "button", onclick: act }, action.label));
  }
  notice.append(iconButton("close", "Close this notice", () => notice.remove()));
  box.append(notice);
  while (box.children.length > 4) box.firstElementChild.remove();
  if (kind !== "error") setTimeout(() => notice.remove(), action ? 12000 : 6000);
  return notice;
}

export const reportError = (error) => notify(error.message, "error");

export function setAway(away) {
  const banner = byId("away");
  if (banner.hidden === !away) return;
  banner.hidden = !away;
  if (!away) notify("The server is back.");
}

/** Say something to screen readers alone. */
export function announce(message) {
  byId("announcer").textContent = message;
}

/** Ask for the key until there is one. */
export function askKey(refused) {
  const dialog = byId("key-dialog");
  byId("key-refused").hidden = !refused;
  const field = byId("key");
  field.value = "";
  if (!dialog.open) dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    dialog.oncancel = (event) => event.preventDefault();
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      const key = field.value.trim();
      if (!key) return;
      dialog.close();
      resolve(key);
    };
  });
}

/** Ask whether to do something that cannot be undone. */
export function confirmed(question, label) {
  const dialog = byId("confirm-dialog");
  byId("confirm-question").textContent = question;
  const button = byId("confirm-yes");
  button.textContent = label;
  dialog.showModal();
  return new Promise((resolve) => {
    button.onclick = () => dialog.close("yes");
    byId("confirm-no").onclick = () => dialog.close("no");
    dialog.returnValue = "no";
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
  });
}
