// Sizes of pictures by their shape: as many pixels as the server's usual size, within what the model was trained on.

import { clamp } from "./geometry.js";

export const SHAPES = [
  ["1:1", "Square"],
  ["5:4", "Landscape"],
  ["4:3", "Landscape"],
  ["3:2", "Photo"],
  ["16:9", "Screen"],
  ["2:1", "Wide"],
  ["4:5", "Portrait"],
  ["3:4", "Portrait"],
  ["2:3", "Poster"],
  ["9:16", "Phone"],
  ["1:2", "Tall"],
];

/** [width, height] of "WxH"; null for anything else. */
export function parseSize(text) {
  const match = /^(\d+)x(\d+)$/.exec(text ?? "");
  return match ? [Number(match[1]), Number(match[2])] : null;
}

/** [width, height] of a shape such as "3:2" for a server, in whole tokens of `limits.multiple` pixels. */
export function sizeOf(shape, server) {
  const [across, down] = shape.split(":").map(Number);
  const [width, height] = parseSize(server.sizes.default);
  const [low, high] = server.sizes.trained;
  const unit = server.limits.multiple;
  const scale = Math.sqrt((width * height) / (across * down));
  // Both sides are held within the trained ones together, so that the shape survives.
  const held = clamp(scale, low / Math.min(across, down), high / Math.max(across, down));
  return [across, down].map((side) => clamp(Math.round((side * held) / unit) * unit, unit, high));
}

/** The shape that a size has for a server, or null. */
export function shapeOf(width, height, server) {
  for (const [shape] of SHAPES) if (sizeOf(shape, server).join() === `${width},${height}`) return shape;
  return null;
}

/** What is wrong with a size for a server: {error} if it cannot be drawn, {warning} if it was never trained on. */
export function judgeSize(width, height, server) {
  const { multiple, min_side: least, max_side: most, max_pixels: pixels } = server.limits;
  const [low, high] = server.sizes.trained;
  const sides = [width, height];
  if (!sides.every((side) => Number.isInteger(side) && side > 0 && side % multiple === 0)) {
    return { error: `Each side must be a multiple of ${multiple} pixels.` };
  }
  if ((least && Math.min(...sides) < least) || (most && Math.max(...sides) > most)) {
    return { error: `Each side must have ${least} to ${most} pixels.` };
  }
  if (pixels && width * height > pixels) {
    return { error: `This server draws up to ${pixels.toLocaleString("en")} pixels; these are ${(width * height).toLocaleString("en")}.` };
  }
  if (Math.min(...sides) < low || Math.max(...sides) > high) {
    return { warning: `The model was trained on sides of ${low} to ${high} pixels.` };
  }
  return {};
}
