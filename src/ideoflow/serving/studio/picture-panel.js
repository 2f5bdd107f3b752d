// The panel for what holds for the whole picture: its description, background and style.

import { field, setValue, textArea } from "./fields.js";
import { h } from "./dom.js";
import { MOST_STYLE_COLOURS, newStyle } from "./layout.js";
import { Palette } from "./palette.js";

const LOOKS = {
  photo: ["Photo", "Camera, lens and film: 35 mm, shallow depth of field"],
  art_style: ["Art style", "Flat vector illustration, watercolour, woodcut …"],
};

export class PicturePanel {
  constructor(studio, root) {
    this.studio = studio;
    const typed = (name) => (event) => {
      const { value } = event.target;
      studio.edit((layout) => ({ ...layout, [name]: value, ...forgetting(layout, name) }), { merge: `field-${name}` });
    };
    const styled = (name) => (event) => this.#setStyle({ [name]: event.target.value }, name);
    this.description = textArea({ oninput: typed("description"), placeholder: "The picture in one sentence" });
    this.background = textArea({ oninput: typed("background"), placeholder: "What lies behind everything" });
    this.kinds = h(
      "div.choices",
      { role: "radiogroup", "aria-label": "Style" },
      ...[
        ["none", "No style"],
        ["photo", "Photo"],
        ["art_style", "Art"],
      ].map(([value, label]) =>
        h(
          "label",
          {},
          h("input", { type: "radio", name: "style-kind", value, onchange: () => this.#setKind(value) }),
          h("span", {}, label),
        ),
      ),
    );
    this.fields = {};
    const one = (name, label, placeholder) => {
      this.fields[name] = textArea({ rows: 1, placeholder, oninput: styled(name), dataset: { path: `style_description.${name}` } });
      return field(label, this.fields[name]);
    };
    this.look = one("look", "Photo", "");
    this.palette = new Palette("Colours of the picture", MOST_STYLE_COLOURS, (palette, merge) =>
      this.#setStyle({ palette }, merge ? "palette" : null),
    );
    this.palette.node.id = "style-palette";
    this.style = h(
      "div.style",
      {},
      one("aesthetics", "Aesthetics", "Calm, minimal, nostalgic …"),
      one("lighting", "Lighting", "Soft daylight, neon, even …"),
      one("medium", "Medium", "Photograph, graphic design, oil painting …"),
      this.look,
      h(
        "div.field",
        {},
        h("span.label", {}, "Colours of the picture"),
        this.palette.node,
        h("p.problem", { id: "style-palette-problem", hidden: true }),
      ),
    );
    this.palette.node.dataset.path = "style_description.color_palette";
    this.kinds.id = "style-kinds";
    this.kinds.dataset.path = "style_description";
    root.append(
      field("Description", this.description, { path: "high_level_description" }),
      field("Background", this.background, { path: "compositional_deconstruction.background" }),
      h(
        "div.field",
        {},
        h("span.label", {}, "Style"),
        this.kinds,
        h("p.problem", { id: "style-kinds-problem", hidden: true }),
      ),
      this.style,
    );
    studio.subscribe(() => this.render());
  }

  render() {
    const { layout } = this.studio;
    setValue(this.description, layout.description);
    setValue(this.background, layout.background);
    const kind = layout.style?.kind ?? "none";
    for (const radio of this.kinds.querySelectorAll("input")) radio.checked = radio.value === kind;
    this.style.hidden = !layout.style;
    if (!layout.style) return;
    for (const [name, control] of Object.entries(this.fields)) setValue(control, layout.style[name]);
    const [label, placeholder] = LOOKS[layout.style.kind];
    this.look.querySelector("label").textContent = label;
    this.fields.look.placeholder = placeholder;
    this.fields.look.dataset.path = `style_description.${layout.style.kind}`;
    this.palette.set(layout.style.palette);
  }

  #setStyle(values, merge) {
    const keys = { palette: "color_palette", look: this.studio.layout.style?.kind };
    const edited = Object.keys(values).map((name) => keys[name] ?? name);
    this.studio.edit(
      (layout) => ({ ...layout, style: { ...layout.style, ...values, extra: leaving(layout.style.extra, edited) } }),
      { merge: merge && `style-${merge}` },
    );
  }

  #setKind(kind) {
    this.studio.edit((layout) => {
      if (kind === "none") return { ...layout, style: null };
      const extra = leaving(layout.style?.extra ?? {}, ["photo", "art_style"]);
      return { ...layout, style: { ...(layout.style ?? newStyle(kind)), kind, extra } };
    });
  }
}

function leaving(extra, keys) {
  return Object.fromEntries(Object.entries(extra).filter(([key]) => !keys.includes(key)));
}

/** The odd values that a typed field takes the place of, left out. */
function forgetting(layout, name) {
  if (name === "background") return { compositionExtra: leaving(layout.compositionExtra, ["background"]) };
  return { extra: leaving(layout.extra, ["high_level_description"]) };
}
