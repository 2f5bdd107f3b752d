// The settings in one of our JPEG or WebP files: EXIF's UserComment, as the program writes it into every picture.

const EXIF_IFD = 0x8769;
const USER_COMMENT = 0x9286;
const ASCII = "ASCII\0\0\0";

const latin = (bytes) => new TextDecoder("latin1").decode(bytes);
const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

export const isJpeg = (bytes) => bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff;
export const isWebp = (bytes) => latin(bytes.subarray(0, 4)) === "RIFF" && latin(bytes.subarray(8, 12)) === "WEBP";

/** The comment in ASCII that a JPEG or a WebP keeps; null if it has none, or is cut off before it. */
export function commentOf(bytes) {
  const exif = isJpeg(bytes) ? inJpeg(bytes) : isWebp(bytes) ? inWebp(bytes) : null;
  if (!exif) return null;
  try {
    return inTiff(exif);
  } catch (error) {
    if (error instanceof RangeError) return null; // a place beyond its end
    throw error;
  }
}

/** The TIFF structure in a JPEG's segment APP1; segments lie one behind another up to the pixels. */
function inJpeg(bytes) {
  const view = viewOf(bytes);
  for (let place = 2; place + 4 <= bytes.length && bytes[place] === 0xff && bytes[place + 1] !== 0xda; ) {
    const length = view.getUint16(place + 2);
    const data = bytes.subarray(place + 4, place + 2 + length);
    if (bytes[place + 1] === 0xe1 && latin(data.subarray(0, 6)) === "Exif\0\0") return data.subarray(6);
    place += 2 + length;
  }
  return null;
}

/** The TIFF structure in a WebP's chunk EXIF, which some writers begin as a JPEG's segment does. */
function inWebp(bytes) {
  const view = viewOf(bytes);
  for (let place = 12; place + 8 <= bytes.length; ) {
    const length = view.getUint32(place + 4, true);
    if (latin(bytes.subarray(place, place + 4)) === "EXIF") {
      const data = bytes.subarray(place + 8, place + 8 + length);
      return latin(data.subarray(0, 6)) === "Exif\0\0" ? data.subarray(6) : data;
    }
    place += 8 + length + (length % 2);
  }
  return null;
}

/** UserComment of a TIFF structure: the first directory leads to that of EXIF, which has it. */
function inTiff(bytes) {
  const view = viewOf(bytes);
  const little = view.getUint16(0) === 0x4949;
  const entry = (directory, tag) => {
    for (let index = 0; index < view.getUint16(directory, little); index++) {
      const place = directory + 2 + 12 * index;
      if (view.getUint16(place, little) === tag) return place;
    }
    return null;
  };
  const pointer = entry(view.getUint32(4, little), EXIF_IFD);
  const comment = pointer === null ? null : entry(view.getUint32(pointer + 8, little), USER_COMMENT);
  if (comment === null) return null;
  const length = view.getUint32(comment + 4, little);
  const start = length <= 4 ? comment + 8 : view.getUint32(comment + 8, little);
  const text = latin(bytes.subarray(start, start + length));
  return text.startsWith(ASCII) ? text.slice(ASCII.length) : null;
}
