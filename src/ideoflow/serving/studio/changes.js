// What is to be done to the picture on the canvas: what was painted over, or what the caption changes, or selected boxes.

import { toCaption } from "./layout.js";

/** What the button says, and the part of a job's `edit` that says how; null where there is no kept picture, or no change. */
export function changeOf({ backdrop, layout, selected, painted }) {
  if (!backdrop?.picture || !backdrop.job || backdrop.preview || !backdrop.caption) return null;
  if (painted) return { words: "Redraw painted", edit: { how: "inpaint" } }; // with the brush's mask
  if (JSON.stringify(toCaption(layout)) !== JSON.stringify(backdrop.caption)) {
    return { words: "Redraw changes", edit: { how: "redraw" } };
  }
  const boxes = selected.filter((element) => element.box).map((element) => element.box);
  return boxes.length ? { words: "Redraw selection", edit: { how: "inpaint", boxes } } : null;
}
