// Boxes as captions write them, [top, left, bottom, right] in thousandths of the picture's sides: their arithmetic.

export const RANGE = 1000;
export const SMALLEST = 5; // thousandths of a side: smaller boxes are slips of the hand

/** Whether a value is a box as the schema has it. */
export function isBox(value) {
  return (
    Array.isArray(value) &&
    value.length === 4 &&
    value.every((edge) => Number.isInteger(edge) && edge >= 0 && edge <= RANGE) &&
    value[0] < value[2] &&
    value[1] < value[3]
  );
}

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export const width = (box) => box[3] - box[1];
export const height = (box) => box[2] - box[0];
export const area = (box) => width(box) * height(box);

/** The box between two points {x, y}, within the picture. */
export function between(a, b) {
  const edges = [Math.min(a.y, b.y), Math.min(a.x, b.x), Math.max(a.y, b.y), Math.max(a.x, b.x)];
  return edges.map((edge) => clamp(edge, 0, RANGE));
}

/** A box in whole thousandths that encloses something. */
export function rounded(box) {
  const [top, left, bottom, right] = box.map((edge) => clamp(Math.round(edge), 0, RANGE));
  const y = clamp(top, 0, RANGE - 1);
  const x = clamp(left, 0, RANGE - 1);
  return [y, x, Math.max(bottom, y + 1), Math.max(right, x + 1)];
}

export const contains = (box, point) =>
  point.y >= box[0] && point.y <= box[2] && point.x >= box[1] && point.x <= box[3];

export const overlaps = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

/** The smallest box around all boxes. */
export function bounds(boxes) {
  return [
    Math.min(...boxes.map((box) => box[0])),
    Math.min(...boxes.map((box) => box[1])),
    Math.max(...boxes.map((box) => box[2])),
    Math.max(...boxes.map((box) => box[3])),
  ];
}

/** A move that keeps the box within the picture. */
export function held(box, dx, dy) {
  return { dx: clamp(dx, -box[1], RANGE - box[3]), dy: clamp(dy, -box[0], RANGE - box[2]) };
}

export const moved = (box, dx, dy) => [box[0] + dy, box[1] + dx, box[2] + dy, box[3] + dx];

/**
 * A box with the edges that a handle holds moved.
 *
 * The handle is named for its edges: "n", "se" and so on. With `ratio` a corner keeps width over height.
 */
export function resized(box, handle, dx, dy, ratio = null) {
  let [top, left, bottom, right] = box;
  if (handle.includes("n")) top = clamp(top + dy, 0, bottom - SMALLEST);
  if (handle.includes("s")) bottom = clamp(bottom + dy, top + SMALLEST, RANGE);
  if (handle.includes("w")) left = clamp(left + dx, 0, right - SMALLEST);
  if (handle.includes("e")) right = clamp(right + dx, left + SMALLEST, RANGE);
  if (ratio !== null && handle.length === 2) {
    const wanted = Math.min(right - left, (bottom - top) * ratio);
    if (handle.includes("w")) left = right - wanted;
    else right = left + wanted;
    if (handle.includes("n")) top = bottom - wanted / ratio;
    else bottom = top + wanted / ratio;
  }
  return [top, left, bottom, right];
}

/** The place of a box of one frame in another frame: how several boxes are resized as one. */
export function carried(box, from, to) {
  const y = (edge) => to[0] + ((edge - from[0]) * height(to)) / height(from);
  const x = (edge) => to[1] + ((edge - from[1]) * width(to)) / width(from);
  return [y(box[0]), x(box[1]), y(box[2]), x(box[3])];
}

/** Boxes moved so that they share an edge or a middle: "left", "centre", "right", "top", "middle" or "bottom". */
export function aligned(boxes, side) {
  const all = bounds(boxes);
  const shift = {
    left: (box) => [all[1] - box[1], 0],
    centre: (box) => [(all[1] + all[3] - box[1] - box[3]) / 2, 0],
    right: (box) => [all[3] - box[3], 0],
    top: (box) => [0, all[0] - box[0]],
    middle: (box) => [0, (all[0] + all[2] - box[0] - box[2]) / 2],
    bottom: (box) => [0, all[2] - box[2]],
  }[side];
  return boxes.map((box) => rounded(moved(box, ...shift(box))));
}

/** Boxes with equal gaps along an axis, "x" or "y"; the outermost two stay. */
export function distributed(boxes, axis) {
  const [low, high] = axis === "x" ? [1, 3] : [0, 2];
  const order = boxes.map((_, index) => index).sort((a, b) => boxes[a][low] - boxes[b][low]);
  const all = bounds(boxes);
  const sizes = boxes.reduce((sum, box) => sum + box[high] - box[low], 0);
  const gap = (all[high] - all[low] - sizes) / (boxes.length - 1);
  const result = [...boxes];
  let edge = all[low];
  for (const index of order) {
    const by = edge - boxes[index][low];
    result[index] = rounded(axis === "x" ? moved(boxes[index], by, 0) : moved(boxes[index], 0, by));
    edge += boxes[index][high] - boxes[index][low] + gap;
  }
  return result;
}
