// A caption's JSON as text: written for reading, found in other text, and where in it each value stands.

/** JSON on several lines; boxes and palettes, and whatever else is a list of plain values, on one. */
export function pretty(value, indent = "") {
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const inner = `${indent}  `;
  if (Array.isArray(value)) {
    if (value.every((one) => typeof one !== "object" || one === null)) {
      return `[${value.map((one) => JSON.stringify(one)).join(", ")}]`;
    }
    return `[\n${value.map((one) => inner + pretty(one, inner)).join(",\n")}\n${indent}]`;
  }
  const members = Object.entries(value).map(([key, one]) => `${inner}${JSON.stringify(key)}: ${pretty(one, inner)}`);
  return members.length ? `{\n${members.join(",\n")}\n${indent}}` : "{}";
}

/** The one JSON object that a text is or holds, in a fence or among words; undefined where there is none. */
export function objectWithin(text) {
  for (let start = text.indexOf("{"); start >= 0; ) {
    const end = endOf(text, start);
    if (end < 0) return undefined;
    try {
      return JSON.parse(text.slice(start, end));
    } catch {
      start = text.indexOf("{", end); // a brace among the words, or broken JSON: never a part of that
    }
  }
  return undefined;
}

/** The place behind the bracket that closes the one at `start`; -1 if none does. */
function endOf(text, start) {
  let depth = 0;
  for (let place = start; place < text.length; place++) {
    const character = text[place];
    if (character === '"') {
      for (place++; place < text.length && text[place] !== '"'; place++) if (text[place] === "\\") place++;
    } else if (character === "{" || character === "[") depth++;
    else if (character === "}" || character === "]") {
      depth--;
      if (depth === 0) return place + 1;
    }
  }
  return -1;
}

/**
 * Where the values of JSON text stand: a map from paths, named as the server's checks name them, to places in the text.
 *
 * As far as it is JSON: `error` is the place where it stops being so, or null.
 */
export function placesOf(text) {
  const places = new Map();
  let at = 0;
  const space = () => {
    while (/\s/.test(text[at] ?? "x")) at++;
  };
  const fail = () => {
    throw new SyntaxError("no JSON here");
  };
  const string = () => {
    const match = /^"(?:[^"\\\u0000-\u001f]|\\.)*"/.exec(text.slice(at));
    if (!match) fail();
    at += match[0].length;
    return JSON.parse(match[0]);
  };
  const value = (path) => {
    space();
    places.set(path, at);
    if (text[at] === "{") {
      members("}", () => {
        const key = string();
        space();
        if (text[at++] !== ":") fail();
        value(path ? `${path}.${key}` : key);
      });
    } else if (text[at] === "[") {
      let index = 0;
      members("]", () => value(`${path}[${index++}]`));
    } else if (text[at] === '"') string();
    else {
      const match = /^(?:true|false|null|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)/.exec(text.slice(at, at + 400));
      if (!match) fail();
      at += match[0].length;
    }
  };
  const members = (close, member) => {
    at++;
    space();
    if (text[at] === close) return at++;
    for (;;) {
      space();
      member();
      space();
      if (text[at] === close) return at++;
      if (text[at] !== ",") fail();
      at++;
    }
  };
  try {
    value("");
    space();
    return { places, error: at < text.length ? at : null };
  } catch {
    return { places, error: Math.min(at, text.length) };
  }
}

/** The place of a path, or of the nearest of those that enclose it. */
export function placeOf(places, path) {
  for (let name = path; ; name = name.replace(/(?:^|\.)[^.[\]]+$|\[\d+\]$/, "")) {
    if (places.has(name)) return places.get(name);
    if (name === "") return 0;
  }
}

export const lineAt = (text, place) => text.slice(0, place).split("\n").length;
