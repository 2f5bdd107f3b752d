// The settings in one of our PNG files: the text under `ideoflow`, as the program writes it into every picture.

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const LONGEST = 4 * 2 ** 20; // bytes of settings; a caption has some ten thousand

export const isPng = (bytes) => SIGNATURE.every((byte, index) => bytes[index] === byte);

/** The text that a PNG keeps under a keyword, in a tEXt or an iTXt chunk; null if it has none. */
export async function textOf(bytes, keyword = "ideoflow") {
  if (!isPng(bytes)) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let place = SIGNATURE.length;
  while (place + 12 <= bytes.length) {
    const length = view.getUint32(place);
    const type = String.fromCharCode(...bytes.subarray(place + 4, place + 8));
    const data = bytes.subarray(place + 8, place + 8 + length);
    if (data.length < length || type === "IEND") return null; // cut off, or at its end
    if (length <= LONGEST && (type === "iTXt" || type === "tEXt")) {
      const end = data.indexOf(0);
      if (end >= 0 && latin(data.subarray(0, end)) === keyword) {
        const rest = data.subarray(end + 1);
        return type === "tEXt" ? latin(rest) : international(rest);
      }
    }
    place += 12 + length;
  }
  return null;
}

/** The text of an iTXt chunk behind its keyword: flag, method, language, the keyword translated, text. */
async function international(data) {
  const compressed = data[0] === 1;
  const language = data.indexOf(0, 2);
  const translated = language < 0 ? -1 : data.indexOf(0, language + 1);
  if (translated < 0) return null;
  const text = data.subarray(translated + 1);
  if (!compressed) return new TextDecoder().decode(text);
  const stream = new Blob([text]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

const latin = (bytes) => new TextDecoder("latin1").decode(bytes);
