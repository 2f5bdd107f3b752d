// The tree of changes around a picture: what it was made of, back to the first, and what was made of each.

import { h } from "./dom.js";
import { nameOfCaption } from "./gallery.js";

/**
 * The first picture that one goes back to, as {job, picture, parts}: `parts` are those that were made of it, likewise.
 *
 * Args:
 *   entry: the picture, {job, picture}.
 *   known: jobs that are on the page already: branches are looked for among them.
 */
export async function treeOf(entry, known, api) {
  const jobs = new Map([...known, entry.job].map((job) => [job.id, job]));
  let root = entry;
  while (root.job.request.edit) {
    const { job: id, picture: index = 0 } = root.job.request.edit;
    const job = jobs.get(id) ?? (await kept(id, api));
    const picture = job?.pictures.find((one) => one.index === index);
    if (!picture) break; // it was deleted
    jobs.set(id, job);
    root = { job, picture };
  }
  const grown = ({ job, picture }) => ({
    job,
    picture,
    parts: [...jobs.values()]
      .filter(({ request: { edit } }) => edit?.job === job.id && (edit.picture ?? 0) === picture.index)
      .sort((one, other) => one.created_at - other.created_at)
      .flatMap((made) => made.pictures.map((one) => grown({ job: made, picture: one }))),
  });
  return grown(root);
}

async function kept(id, api) {
  try {
    return await api.json(`v1/jobs/${encodeURIComponent(id)}`);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** A tree as nested lists of small pictures; `current` is the one that is looked at. */
export function listOf(tree, current, api, onopen) {
  const { job, picture, parts } = tree;
  const image = h("img", { alt: "" });
  api.picture(picture.url).then((url) => (image.src = url), () => {});
  const here = job.id === current.job.id && picture.index === current.picture.index;
  const label = `${nameOfCaption(job.caption, job.prompt)}, seed ${picture.seed}`;
  const show = h("button.thumb", { type: "button", title: label, "aria-label": label, onclick: () => onopen({ job, picture }) }, image);
  if (here) show.setAttribute("aria-current", "true");
  const below = parts.length ? h("ul", {}, ...parts.map((part) => listOf(part, current, api, onopen))) : null;
  return h("li", {}, show, below);
}
