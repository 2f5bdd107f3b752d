// Where a box snaps to while it is drawn, moved or resized: edges and middles of other boxes and the picture, and a grid.

import { RANGE } from "./geometry.js";

/** Lines that boxes snap to: edges and middles of the other boxes and of the picture, along each axis. */
export function linesOf(boxes) {
  const all = [[0, 0, RANGE, RANGE], ...boxes];
  return {
    x: [...new Set(all.flatMap((box) => [box[1], (box[1] + box[3]) / 2, box[3]]))],
    y: [...new Set(all.flatMap((box) => [box[0], (box[0] + box[2]) / 2, box[2]]))],
  };
}

/** The shift that brings one of `edges` onto the nearest line in reach, or else onto the grid: {shift, line}. */
function nearest(edges, lines, reach, grid) {
  let best = null;
  for (const edge of edges) {
    for (const line of lines) {
      const shift = line - edge;
      if (Math.abs(shift) <= reach && (best === null || Math.abs(shift) < Math.abs(best.shift))) best = { shift, line };
    }
  }
  if (best !== null) return best;
  if (!grid) return { shift: 0, line: null };
  return { shift: Math.round(edges[0] / grid) * grid - edges[0], line: null };
}

/**
 * The shift that snaps a moved box, and the lines it then lies on.
 *
 * `reach` is {x, y}: how far, in thousandths of each side, a line draws edges to itself. `grid` is its step, 0 for none.
 */
export function snapMove(box, lines, reach, grid = 0) {
  const x = nearest([box[1], box[3], (box[1] + box[3]) / 2], lines.x, reach.x, grid);
  const y = nearest([box[0], box[2], (box[0] + box[2]) / 2], lines.y, reach.y, grid);
  return { dx: x.shift, dy: y.shift, guides: { x: x.line, y: y.line } };
}

/** A box whose edges under the handle ("n", "se" ...) are snapped, and the lines they then lie on. */
export function snapEdges(box, handle, lines, reach, grid = 0) {
  const result = [...box];
  const guides = { x: null, y: null };
  const snap = (index, axis) => {
    const found = nearest([box[index]], lines[axis], reach[axis], grid);
    result[index] += found.shift;
    guides[axis] = found.line;
  };
  if (handle.includes("n")) snap(0, "y");
  if (handle.includes("s")) snap(2, "y");
  if (handle.includes("w")) snap(1, "x");
  if (handle.includes("e")) snap(3, "x");
  return result[0] < result[2] && result[1] < result[3] ? { box: result, guides } : { box, guides: { x: null, y: null } };
}

/** A point {x, y} snapped: where a new box begins. */
export function snapPoint(point, lines, reach, grid = 0) {
  const x = nearest([point.x], lines.x, reach.x, grid);
  const y = nearest([point.y], lines.y, reach.y, grid);
  return { x: point.x + x.shift, y: point.y + y.shift };
}
