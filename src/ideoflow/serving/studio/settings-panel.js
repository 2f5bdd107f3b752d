// The panel for how the picture is drawn: size, steps, guidance, seed, number, adapters; and the request made of it.

import { field, setProblem, setValue } from "./fields.js";
import { h, iconButton } from "./dom.js";
import { toCaption } from "./layout.js";
import { SHAPES, judgeSize, parseSize, shapeOf, sizeOf } from "./sizes.js";

const OWN_STEPS = "own";
const MOST_SEED = 2 ** 32;

export class SettingsPanel {
  constructor(studio, root) {
    this.studio = studio;
    const set = (values) => studio.setSettings(values);
    const whole = (event) => (event.target.value === "" ? null : Math.round(Number(event.target.value)));
    const number = (properties) => h("input", { type: "number", ...properties });

    this.shape = h("select", { onchange: (event) => this.#setShape(event.target.value) });
    this.width = number({ "aria-label": "Width in pixels", onchange: (event) => set({ width: whole(event) ?? 16 }) });
    this.height = number({ "aria-label": "Height in pixels", onchange: (event) => set({ height: whole(event) ?? 16 }) });
    this.size = h(
      "div.row.size",
      { id: "size", role: "group", "aria-label": "Size" },
      this.width,
      iconButton("swap", "Swap width and height", () => {
        const { width, height } = studio.layout.settings;
        set({ width: height, height: width });
      }),
      this.height,
      h("span.hint", {}, "pixels"),
    );
    this.preset = h("select", { onchange: (event) => this.#setPreset(event.target.value) });
    this.steps = number({ min: 1, onchange: (event) => set({ steps: whole(event) ?? 1 }) });
    this.guidance = number({
      min: 0,
      step: 0.1,
      onchange: (event) => set({ guidance: event.target.value === "" ? null : Number(event.target.value) }),
    });
    this.fresh = h("input", {
      type: "checkbox",
      id: "fresh-seed",
      onchange: (event) => set({ seed: event.target.checked ? null : dice() }),
    });
    this.seed = number({
      min: 0,
      step: 1,
      max: MOST_SEED - 1,
      "aria-label": "Seed",
      onchange: (event) => set({ seed: whole(event) ?? 0 }),
    });
    this.roll = iconButton("dice", "Another seed", () => set({ seed: dice() }));
    this.count = number({ min: 1, onchange: (event) => set({ count: Math.max(whole(event) ?? 1, 1) }) });
    this.format = h("select", { onchange: (event) => set({ format: event.target.value }) });
    this.adapters = h("div.adapters", { role: "group", "aria-label": "Adapters", id: "adapters" });
    this.adaptersField = h(
      "div.field",
      {},
      h("span.label", {}, "Adapters"),
      this.adapters,
      h("p.problem", { id: "adapters-problem", hidden: true }),
    );
    this.stepsField = field("Number of steps", this.steps);
    this.seedRow = h("div.row.seed", {}, this.seed, this.roll);
    root.append(
      field("Shape", this.shape),
      h("div.field", {}, this.size, h("p.problem", { id: "size-problem", hidden: true })),
      field("Steps", this.preset),
      this.stepsField,
      field("Guidance", this.guidance, { hint: "How closely the picture keeps to the words." }),
      h(
        "div.field",
        {},
        h("span.label", {}, "Seed"),
        h("label.check", { for: "fresh-seed" }, this.fresh, "A fresh one each time"),
        this.seedRow,
      ),
      h("div.pair", {}, field("Pictures", this.count), field("File type", this.format)),
      this.adaptersField,
    );
    studio.subscribe(() => this.render());
  }

  /** Fill what can be chosen from what the server says. */
  setServer(server) {
    const options = (values) => values.map(([value, label]) => h("option", { value }, label));
    this.shape.replaceChildren(
      ...options(SHAPES.map(([shape, name]) => [shape, `${shape} · ${name} · ${sizeOf(shape, server).join(" × ")}`])),
      h("option", { value: "own" }, "Own size"),
    );
    this.preset.replaceChildren(
      ...options(server.presets.map(({ name, steps }) => [name, `${title(name)} · ${steps} steps`])),
      h("option", { value: OWN_STEPS }, "Own number"),
    );
    this.format.replaceChildren(...options(server.formats.map((name) => [name, name.toUpperCase()])));
    for (const side of [this.width, this.height]) {
      side.step = server.limits.multiple;
      side.min = server.limits.min_side ?? server.limits.multiple;
      side.max = server.limits.max_side ?? "";
    }
    this.steps.max = server.limits.max_steps ?? "";
    this.count.max = server.limits.max_pictures ?? "";
    this.guidance.placeholder = server.default_guidance ?? "the preset's";
    this.adapters.replaceChildren(...server.adapters.map((name) => this.#adapter(name)));
    this.render();
  }

  render() {
    const { server, layout } = this.studio;
    const { settings } = layout;
    if (!server) return;
    setValue(this.width, settings.width);
    setValue(this.height, settings.height);
    setValue(this.shape, shapeOf(settings.width, settings.height, server) ?? "own");
    const judged = judgeSize(settings.width, settings.height, server);
    setProblem(this.size, judged.error ?? judged.warning ?? "", judged.error ? "error" : "advice");
    setValue(this.preset, settings.steps !== null ? OWN_STEPS : this.#presetOf(settings));
    this.stepsField.hidden = settings.steps === null;
    setValue(this.steps, settings.steps);
    setValue(this.guidance, settings.guidance);
    this.fresh.checked = settings.seed === null;
    this.seedRow.hidden = settings.seed === null;
    setValue(this.seed, settings.seed);
    setValue(this.count, settings.count);
    setValue(this.format, server.formats.includes(settings.format) ? settings.format : server.formats[0]);
    this.adaptersField.hidden = server.adapters.length === 0;
    for (const row of this.adapters.children) {
      const weight = settings.adapters[row.dataset.name];
      row.querySelector("[type=checkbox]").checked = weight !== undefined;
      const input = row.querySelector("[type=number]");
      input.disabled = weight === undefined;
      setValue(input, weight ?? 1);
    }
  }

  /** What is sent to draw the picture. */
  request() {
    const { layout, server } = this.studio;
    const { settings } = layout;
    const known = Object.entries(settings.adapters).filter(([name]) => server.adapters.includes(name));
    return {
      caption: toCaption(layout),
      size: `${settings.width}x${settings.height}`,
      preset: settings.steps === null ? this.#presetOf(settings) : null,
      num_inference_steps: settings.steps,
      guidance_scale: settings.guidance,
      seed: settings.seed,
      n: settings.count,
      adapters: known.length ? Object.fromEntries(known) : null,
      format: server.formats.includes(settings.format) ? settings.format : server.formats[0],
      preview_every: 1,
      stored: true,
    };
  }

  /** Show an error of the server's at the field that it names; whether there is one. */
  showError(error) {
    const control = {
      size: this.size,
      preset: this.preset,
      num_inference_steps: this.studio.layout.settings.steps === null ? this.preset : this.steps,
      guidance_scale: this.guidance,
      n: this.count,
      adapters: this.adapters,
    }[error.param?.split(".")[0]];
    if (control) setProblem(control, error.message);
    return control !== undefined;
  }

  clearErrors() {
    for (const control of [this.size, this.preset, this.steps, this.guidance, this.count, this.adapters]) setProblem(control, "");
    this.render();
  }

  #presetOf(settings) {
    const { presets, default_preset: usual } = this.studio.server;
    return presets.some(({ name }) => name === settings.preset) ? settings.preset : usual;
  }

  #setShape(shape) {
    if (shape === "own") return this.width.focus();
    const [width, height] = sizeOf(shape, this.studio.server);
    return this.studio.setSettings({ width, height });
  }

  #setPreset(name) {
    const { presets } = this.studio.server;
    const usual = presets.find((one) => one.name === this.#presetOf(this.studio.layout.settings));
    this.studio.setSettings(name === OWN_STEPS ? { steps: usual?.steps ?? 20 } : { preset: name, steps: null });
  }

  #adapter(name) {
    const id = `adapter-${name}`;
    const set = (weight) => {
      const { [name]: _, ...others } = this.studio.layout.settings.adapters;
      this.studio.setSettings({ adapters: weight === null ? others : { ...others, [name]: weight } });
    };
    return h(
      "div.row",
      { dataset: { name } },
      h("label.check", { for: id }, h("input", { type: "checkbox", id, onchange: (event) => set(event.target.checked ? 1 : null) }), name),
      h("input", { type: "number", step: 0.05, "aria-label": `Weight of ${name}`, onchange: (event) => set(Number(event.target.value)) }),
    );
  }
}

/** Settings that a request, or a picture's file, was drawn with, as the page has them. */
export function settingsOf(request, server) {
  const size = parseSize(request.size) ?? (request.width && request.height ? [request.width, request.height] : null);
  const steps = request.num_inference_steps ?? request.steps ?? null;
  const preset = server.presets.find(({ name }) => name === request.preset);
  const guidance = request.guidance_scale ?? request.guidance ?? null;
  return {
    ...(size ? { width: size[0], height: size[1] } : {}),
    preset: preset?.name ?? null,
    steps: preset && (steps === null || steps === preset.steps) ? null : steps,
    guidance: guidance === server.default_guidance ? null : guidance,
    seed: Number.isInteger(request.seed) ? request.seed : null,
    adapters: request.adapters ?? {},
    ...(request.format ? { format: request.format } : {}),
  };
}

/** "Quality" of "V4_QUALITY_48". */
function title(name) {
  const word = name.replace(/^V\d+_/, "").replace(/_\d+$/, "").toLowerCase();
  return word.charAt(0).toUpperCase() + word.slice(1);
}

const dice = () => crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;
