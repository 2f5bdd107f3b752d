// The page put together: its parts made and joined, its buttons bound, and the work taken up where it was left.

import { Api } from "./api.js";
import { Brush } from "./brush.js";
import { Canvas } from "./canvas.js";
import { Checks } from "./checks.js";
import { changeOf } from "./changes.js";
import { Clipboard } from "./clipboard.js";
import { byId, h, icon } from "./dom.js";
import { ElementsPanel } from "./elements-panel.js";
import { showBreaches } from "./fields.js";
import { Gallery, nameOfCaption } from "./gallery.js";
import { Jobs, hasEnded, shownOf, timeLeft } from "./jobs.js";
import { JobsPanel } from "./jobs-panel.js";
import { JsonPane } from "./json-pane.js";
import { Keyboard, keyTable } from "./keyboard.js";
import { toCaption } from "./layout.js";
import { announce, askKey, confirmed, notify, reportError, setAway } from "./notices.js";
import { PicturePanel } from "./picture-panel.js";
import { Pointer } from "./pointer.js";
import { SettingsPanel } from "./settings-panel.js";
import { judgeSize, parseSize } from "./sizes.js";
import { loadWork, ofBrowser, ofTab, saveWork } from "./storage.js";
import { Studio } from "./studio.js";

const studio = new Studio();
const api = new Api({ askKey, onAway: () => setAway(true), onBack: comeBack });
const jobs = new Jobs(api, reportError);
const canvas = new Canvas(studio);
const brush = new Brush(studio, canvas);
const pointer = new Pointer(studio, canvas);
const checks = new Checks(studio, api);
const gallery = new Gallery(api, { onopen: (entry) => look(entry).catch(reportError), reportError });
let viewer = null;
const settings = new SettingsPanel(studio, byId("settings-fields"));
new PicturePanel(studio, byId("picture-fields"));
const elements = new ElementsPanel(studio, byId("element-fields"), { below: () => pointer.selectBelow() });
new JsonPane(studio, checks, { notify, reportError });
new JobsPanel(jobs, api);
const clipboard = new Clipboard(studio, { openText, openFile, notify });
new Keyboard(studio, canvas, pointer, { generate, zoom, help: () => byId("help").showModal() });

// ---------------------------------------------------------------- what is drawn

async function generate() {
  if (!studio.server) return;
  settings.clearErrors();
  const problem = whatIsMissing();
  if (problem) return notify(problem, "error");
  await send(settings.request());
}

/** Why nothing that was meant can be drawn of this layout; null where something can. */
function whatIsMissing() {
  const { layout, breaches, server } = studio;
  const { background, elements: all, description } = layout;
  if (!all.some(({ desc, text }) => desc.trim() || text?.trim()) && !background.trim() && !description.trim())
    return "There is nothing to draw yet: say what the background is, or draw a box and say what is in it.";
  const { error } = judgeSize(layout.settings.width, layout.settings.height, server);
  if (error) {
    showPanel("settings");
    return error;
  }
  if (breaches.some(({ path }) => /\.bbox\b/.test(path))) {
    showPanel("json");
    return "A box is not where it seems: its problem is listed beside the JSON, with what repairs it.";
  }
  return null;
}

async function send(body) {
  announce("Sent to the server.");
  try {
    await jobs.submit(body);
  } catch (error) {
    if (settings.showError(error)) showPanel("settings");
    reportError(error);
  }
}

/** Draw anew what was painted, or has changed since the picture on the canvas was drawn, or is selected: no more. */
async function redraw() {
  const { backdrop } = studio;
  const change = changeOf(studio);
  if (!change) return;
  settings.clearErrors();
  announce("Sent to the server.");
  try {
    const mask = studio.painted ? { mask: brush.mask() } : {};
    const edit = { job: backdrop.job, picture: backdrop.picture.index, ...change.edit, ...mask };
    await jobs.submit({ ...settings.request(), size: null, n: 1, edit });
  } catch (error) {
    reportError(error);
  }
}

jobs.subscribe(({ canvas: changed, ended, gallery: refresh }) => {
  if (changed) showWatched().catch(reportError);
  if (refresh) gallery.refresh();
  if (ended) tellEnd(ended);
  tellProgress();
});

/** Put the watched job's picture, or its latest preview, behind the boxes. */
async function showWatched() {
  const job = jobs.get(jobs.watched);
  const shown = job && shownOf(job);
  if (!shown) return;
  const name = nameOfCaption(job.caption, job.prompt);
  if (shown.preview) {
    studio.set({ backdrop: { url: shown.preview, label: `Preview: ${name}`, preview: true, job: job.id } });
    return;
  }
  const [url, before] = await Promise.all([api.picture(shown.picture.url), pictureBefore(job)]);
  if (jobs.watched !== job.id) return;
  const backdrop = { url, before, label: `Picture: ${name}`, preview: false, job: job.id, picture: shown.picture, caption: job.caption };
  studio.set({ backdrop });
}

/** The picture that a job changed, where it did and that is still kept. */
async function pictureBefore(job) {
  const { edit } = job.request;
  if (!edit) return null;
  return api.picture(`v1/jobs/${encodeURIComponent(edit.job)}/pictures/${edit.picture ?? 0}`).catch(() => null);
}

function tellEnd(job) {
  const name = nameOfCaption(job.caption, job.prompt);
  if (job.status === "finished") announce(`Done: ${name}.`);
  if (job.status === "cancelled") announce(`Cancelled: ${name}.`);
  if (job.status === "failed") notify(`${name} could not be drawn. ${job.error?.message ?? ""}`, "error");
  for (const warning of job.warnings ?? []) notify(warning);
}

function tellProgress() {
  const watched = jobs.all.find((job) => job.id === jobs.watched && !hasEnded(job));
  const { step = 0, steps = 0, seconds_left: left } = watched?.progress ?? {};
  const share = watched && steps ? Math.round((100 * step) / steps) : null;
  document.title = share === null ? "ideoflow studio" : `${share} % · ideoflow studio`;
  const bar = byId("canvas-progress");
  bar.hidden = !watched;
  if (share === null) bar.removeAttribute("value");
  else bar.value = share;
  byId("canvas-cancel").hidden = !watched;
  const running = watched?.status === "running";
  const place = running ? `Step ${step} of ${steps}` : "Waiting for its turn";
  byId("canvas-words").textContent = watched ? [place, running ? timeLeft(left) : ""].filter(Boolean).join(" · ") : idleWords();
}

/** What the canvas is, where nothing is drawn on it. */
function idleWords() {
  const { settings, elements: all } = studio.layout;
  const count = all.length === 1 ? "1 element" : `${all.length} elements`;
  return `${settings.width} × ${settings.height} pixels · ${count}`;
}

/** Look at one picture of the gallery. The module is fetched the first time: the first paint does without. */
async function look(entry) {
  const { Viewer } = await import("./viewer.js");
  viewer ??= new Viewer(studio, api, jobs, gallery, { notify, reportError, confirmed });
  await viewer.show(entry);
}

// ---------------------------------------------------------------- what comes in

function openText(text, tell) {
  return open(({ readText }) => readText(text, api, studio.server), tell);
}

function openFile(file) {
  return open(({ readFile }) => readFile(file, api, studio.server));
}

/** Open what was read; whether it could be. What is wrong is told by `tell`. */
async function open(read, tell = reportError) {
  try {
    take(await read(await import("./importing.js")));
    return true;
  } catch (error) {
    tell(error);
    return false;
  }
}

function take({ elements: copied, caption, settings: given, changes = [], picture, warning }) {
  if (copied) {
    studio.insert(copied);
    return;
  }
  studio.open(caption, given);
  if (picture) {
    jobs.watch(null);
    studio.set({ backdrop: { url: picture, label: "The picture that was opened", preview: false } });
  }
  const mended = changes.length ? ` Repaired: ${changes.join("; ")}.` : "";
  const all = given ? "The caption and its settings are open." : "The caption is open.";
  notify(all + mended, "info", { label: "Undo", run: () => studio.undo() });
  if (warning) notify(warning);
}

function bindImports() {
  const input = byId("import-file");
  byId("import").onclick = () => {
    closeMenus();
    byId("import-problem").hidden = true;
    byId("import-dialog").showModal();
  };
  byId("import-choose").onclick = () => input.click();
  input.onchange = () => {
    byId("import-dialog").close();
    if (input.files[0]) openFile(input.files[0]);
    input.value = "";
  };
  byId("import-open").onclick = async () => {
    const tell = (error) => {
      byId("import-problem").textContent = error.message;
      byId("import-problem").hidden = false;
    };
    if (!(await openText(byId("import-text").value, tell))) return;
    byId("import-text").value = "";
    byId("import-dialog").close();
  };
  byId("import-close").onclick = () => byId("import-dialog").close();
  const hasFile = (event) => [...event.dataTransfer.types].some((type) => type === "Files" || type === "text/plain");
  addEventListener("dragover", (event) => {
    if (!hasFile(event) || (event.target instanceof HTMLElement && event.target.matches("textarea, input"))) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!hasFile(event) || (event.target instanceof HTMLElement && event.target.matches("textarea, input"))) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) openFile(file);
    else openText(event.dataTransfer.getData("text/plain"));
  });
}

let words = null;

/** Have a caption written. The module is fetched the first time: the first paint does without. */
async function say() {
  const { Words } = await import("./words.js");
  words ??= new Words(studio, api, { ontake: (caption) => take({ caption }) });
  words.show();
}

// ---------------------------------------------------------------- buttons

function zoom(by) {
  const next = by === 0 ? 1 : studio.view.zoom * by;
  studio.setView({ zoom: Math.min(Math.max(next, 1), 8) });
}

function closeMenus(except = null) {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (menu !== except) menu.open = false;
}

function showPanel(name) {
  document.body.dataset.panel = name;
  ofTab.set("panel", name);
  for (const button of byId("panels").children) {
    button.setAttribute("aria-pressed", String(button.dataset.panel === name));
  }
}

function bindButtons() {
  for (const button of document.querySelectorAll("[data-icon]")) button.prepend(icon(button.dataset.icon));
  const on = (id, run) => (byId(id).onclick = run);
  for (const tool of ["select", "obj", "text", "brush"]) on(`tool-${tool}`, () => studio.set({ tool }));
  for (const name of ["snap", "grid", "boxes"]) on(`view-${name}`, () => studio.setView({ [name]: !studio.view[name] }));
  byId("grid-step").onchange = (event) => studio.setView({ step: Number(event.target.value), grid: true });
  on("undo", () => studio.undo());
  on("redo", () => studio.redo());
  on("zoom-in", () => zoom(1.25));
  on("zoom-out", () => zoom(0.8));
  on("zoom-fit", () => zoom(0));
  on("clear-picture", () => {
    jobs.watch(null);
    studio.set({ backdrop: null });
  });
  on("copy", () => clipboard.copy());
  on("paste", () => clipboard.paste());
  on("generate", generate);
  on("redraw", redraw);
  byId("compare").oninput = (event) => canvas.compare(Number(event.target.value));
  on("say", () => {
    closeMenus();
    say().catch(reportError);
  });
  on("canvas-cancel", () => jobs.watched && jobs.cancel(jobs.watched));
  on("show-help", () => byId("help").showModal());
  on("help-close", () => byId("help").close());
  byId("help-keys").append(keyTable());
  for (const button of byId("panels").children) button.onclick = () => showPanel(button.dataset.panel);
  for (const menu of document.querySelectorAll("details.menu")) {
    menu.addEventListener("toggle", () => menu.open && closeMenus(menu));
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      menu.open = false;
      menu.querySelector("summary").focus();
      event.stopPropagation();
    });
  }
  document.addEventListener("pointerdown", (event) => closeMenus(event.target.closest?.("details.menu") ?? null));
  const save = (run) => {
    closeMenus();
    import("./downloads.js").then(run).catch(reportError);
  };
  on("export-json", () =>
    save(({ fileName, saveCaption }) => {
      const caption = toCaption(studio.layout);
      saveCaption(caption, fileName(caption));
    }),
  );
  on("export-picture", () =>
    save(({ fileName, savePicture }) => {
      const { picture, caption } = studio.backdrop;
      return savePicture(api, picture, fileName(caption, picture.seed));
    }),
  );
  on("theme", () => {
    const dark = document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    setTheme(dark ? "light" : "dark");
  });
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  ofBrowser.set("theme", theme);
}

/** Show on the buttons what is so. */
function renderButtons() {
  const { tool, view, history, backdrop, breaches, server } = studio;
  const press = (id, pressed) => byId(id).setAttribute("aria-pressed", String(pressed));
  for (const name of ["select", "obj", "text", "brush"]) press(`tool-${name}`, tool === name);
  for (const name of ["snap", "grid", "boxes"]) press(`view-${name}`, view[name]);
  byId("grid-step").hidden = !view.grid;
  byId("grid-step").value = String(view.step);
  byId("undo").disabled = !history.past.length;
  byId("redo").disabled = !history.future.length;
  byId("zoom-fit").textContent = `${Math.round(view.zoom * 100)} %`;
  byId("zoom-out").disabled = view.zoom <= 1;
  byId("clear-picture").disabled = backdrop === null;
  byId("copy").disabled = !studio.selected.length;
  byId("export-picture").disabled = !backdrop?.picture;
  byId("generate").disabled = !server;
  const change = server && changeOf(studio);
  byId("redraw").hidden = !change;
  if (change) byId("redraw").textContent = change.words;
  byId("compare-row").hidden = !backdrop?.before;
  showBreaches(document.body, breaches);
}

// ---------------------------------------------------------------- start, and after the server was away

function setExamples(examples) {
  const open = (caption) => () => {
    closeMenus();
    studio.open(caption);
    jobs.watch(null);
    studio.set({ backdrop: null });
  };
  byId("examples").replaceChildren(
    ...examples.map(({ name, caption }) =>
      h(
        "li",
        {},
        h("button", { type: "button", onclick: open(caption) }, h("strong", {}, title(name)), h("span", {}, nameOfCaption(caption))),
      ),
    ),
    h("li", {}, h("button", { type: "button", onclick: () => (closeMenus(), jobs.watch(null), studio.clear()) }, h("strong", {}, "Empty canvas"))),
  );
}

const title = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("-", " ");

async function meetServer() {
  const server = await api.json("v1/server");
  studio.set({ server });
  byId("model").textContent = server.bundled ? "the bundled sketch model" : server.model;
  byId("model").title = `${server.model}, ideoflow ${server.version}`;
  settings.setServer(server);
  byId("say").hidden = !server.writer;
  setExamples(server.examples);
  return server;
}

/** A first layout, so that the first click makes a picture. */
function begin(server) {
  const size = parseSize(server.sizes.default);
  studio.layout = { ...studio.layout, settings: { ...studio.layout.settings, width: size[0], height: size[1] } };
  const first = server.examples.find(({ caption }) => caption.high_level_description) ?? server.examples[0];
  if (first) {
    studio.open(first.caption);
    studio.history.past = [];
  }
}

/** Wait until the server has its model, which it loads while it answers already. */
async function waitForModel() {
  while (studio.server.ready === false) {
    byId("model").textContent = "the model is being loaded …";
    await new Promise((resolve) => setTimeout(resolve, 700));
    await meetServer();
  }
}

async function comeBack() {
  setAway(false);
  try {
    await meetServer();
    await waitForModel();
    await jobs.refresh();
  } catch {
    // away again: the next return starts anew
  }
}

function keepWork() {
  let timer = null;
  let saved = null;
  const save = () => {
    clearTimeout(timer);
    timer = null;
    const { layout, selection, view } = studio;
    if (saved?.layout === layout && saved.selection === selection && saved.view === view) return;
    saved = { layout, selection, view };
    saveWork(studio.work);
  };
  studio.subscribe(() => (timer ??= setTimeout(save, 250)));
  addEventListener("pagehide", save);
  document.addEventListener("visibilitychange", () => document.hidden && save());
}

async function start() {
  setTheme(ofBrowser.get("theme"));
  showPanel(ofTab.get("panel") ?? "settings");
  bindButtons();
  bindImports();
  studio.subscribe(renderButtons);
  studio.subscribe(tellProgress);
  const work = loadWork();
  if (work) studio.restore(work);
  studio.notify();
  for (let server = null; !server; ) {
    try {
      server = await meetServer();
      if (!work) begin(server);
      keepWork();
    } catch (error) {
      if (error.status) reportError(error);
      await new Promise((resolve) => setTimeout(resolve, 500));
      await api.reachable();
    }
  }
  await waitForModel();
  await jobs.refresh();
  document.body.dataset.ready = "true";
  if (elements.list.children.length === 0) byId("empty-hint").hidden = false;
}

start();
