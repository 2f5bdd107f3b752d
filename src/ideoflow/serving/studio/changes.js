// What is to be done to the picture on the canvas: drawn anew where the caption has changed, or in the selected boxes.

import { toCaption } from "./layout.js";

/** The part of a job's `edit` that says how; null where there is no kept picture, or nothing to change. */
export function changeOf({ backdrop, layout, selected }) {
  if (!backdrop?.picture || backdrop.preview || !backdrop.caption) return null;
  if (JSON.stringify(toCaption(layout)) !== JSON.stringify(backdrop.caption)) return { how: "redraw" };
  const boxes = selected.filter((element) => element.box).map((element) => element.box);
  return boxes.length ? { how: "inpaint", boxes } : null;
}
