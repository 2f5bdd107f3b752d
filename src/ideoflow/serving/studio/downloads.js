// Files that the page gives to the user: captions as JSON, pictures as the server kept them.

import { h } from "./dom.js";
import { pretty } from "./json-text.js";

export function saveBlob(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = h("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export function saveCaption(caption, name) {
  saveBlob(new Blob([`${pretty(caption)}\n`], { type: "application/json" }), `${name}.json`);
}

/** A picture as its file, with the settings in it. */
export async function savePicture(api, picture, name) {
  const ending = { jpeg: "jpg" }[picture.format] ?? picture.format;
  saveBlob(await api.blob(picture.url), `${name}.${ending}`);
}

/** A name for files of a caption: its first words. */
export function fileName(caption, seed = null) {
  const elements = caption?.compositional_deconstruction?.elements;
  const first = Array.isArray(elements) && elements[0] ? elements[0].text || elements[0].desc : "";
  const words = String(caption?.high_level_description || first || "picture");
  const plain = words.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "picture";
  return seed === null ? plain : `${plain}-${seed}`;
}
