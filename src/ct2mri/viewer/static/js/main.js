// Where the page begins: the state, its parts, and what the address asks for.

import { get } from "./api.js";
import { $ } from "./dom.js";
import { Images, refreshVolumes } from "./images.js";
import { Jobs } from "./jobs.js";
import { buildHelp, Keyboard } from "./keyboard.js";
import { LayerPanel } from "./layer-panel.js";
import { followVolumes } from "./layers.js";
import { attempt, notice } from "./notices.js";
import { Opening } from "./opening.js";
import { Reports } from "./reports.js";
import { buildSafety } from "./safety.js";
import { recall, remember, Store } from "./store.js";
import { Theme } from "./theme.js";
import { buildCurtain, buildCurtainEdge, buildPosition, buildToolbar } from "./toolbar.js";
import { Training } from "./training.js";
import { TranslatePanel } from "./translate.js";
import { Viewer } from "./viewer.js";

const SECTIONS = ["images", "training", "reports"];

const scene = recall("session", "scene", {});
const view = recall("local", "view", {});
const store = new Store({
  status: null,
  models: [],
  volumes: [],
  jobs: [],
  layers: {},
  imagesLoaded: 0,
  pending: 0,
  case: scene.case ?? null,
  layout: scene.layout ?? "stack",
  plane: scene.plane ?? "multi",
  curtain: scene.curtain ?? { left: null, right: null, at: 0.5 },
  withRender: view.withRender ?? null, // null: as the graphics allow
  software: null, // whether the processor computes the graphics, once the first canvas tells
  radiological: view.radiological ?? true,
  nearest: view.nearest ?? false,
  crosshair: view.crosshair ?? true,
  pointer: null,
  place: null,
});
store.on(["withRender", "radiological", "nearest", "crosshair"], ({ withRender, radiological, nearest, crosshair }) =>
  remember("local", "view", { withRender, radiological, nearest, crosshair }),
);

const theme = new Theme($("theme"));
const images = new Images(store);
followVolumes(store);
const viewer = new Viewer(store, images, $("panes"));
buildCurtainEdge(store, $("panes"));
buildToolbar(store, viewer, $("toolbar"));
buildCurtain(store, $("curtain"));
buildPosition(store, images, $("position"));
buildSafety(store, $("safety"));
new LayerPanel(store, images, $("layers"));
const jobs = new Jobs(store, $("jobs"));
const translate = new TranslatePanel(store, jobs, $("translate"));
new Opening(store, $("open"));
const training = new Training($("training"));
const reports = new Reports($("reports"));
const keyboard = new Keyboard(store, viewer, {
  theme: () => theme.next(),
  open: () => $("open-files").click(),
  translate: () => translate.focus(),
  help: () => showHelp(),
});
const showHelp = buildHelp(keyboard);

function showSection() {
  const wanted = location.hash.slice(1);
  const shown = SECTIONS.includes(wanted) ? wanted : "images";
  for (const name of SECTIONS) $(name).hidden = name !== shown;
  for (const link of document.querySelectorAll("[data-section]")) {
    if (link.dataset.section === shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const initial = store.state.status?.initial ?? {};
  if (shown === "training") training.show(initial.run);
  else training.hide();
  if (shown === "reports") reports.show(initial.report);
}

async function start() {
  // The volumes first, since their voxels are what takes long; the rest comes while these are on their way.
  const asked = [get("/api/models"), get("/api/status")];
  await refreshVolumes(store);
  const [models, status] = await Promise.all(asked);
  store.set({ models, status });
  $("device").textContent = status.device === "auto" ? "" : `on ${status.device}`;
  if (location.hash === "" && status.initial.volumes.length === 0) {
    if (status.initial.run) location.replace("#training");
    else if (status.initial.report) location.replace("#reports");
  }
  window.addEventListener("hashchange", showSection);
  showSection();
  await jobs.start();
  await readGiven(status.initial);
}

/** Waits for the volumes that the command was given, which are read while the page is up already. */
async function readGiven(initial) {
  for (const { name, detail } of initial.failed) notice(`${name}: ${detail}`);
  const first = store.state.volumes.find((volume) => volume.id === initial.volumes[0]);
  if (first && !scene.case) store.set({ case: first.group });
  const roles = store.state.volumes.filter((volume) => volume.group === store.state.case).map((volume) => volume.role);
  if (!scene.layout && roles.includes("source") && roles.includes("result")) store.set({ layout: "side" });
  store.set({ pending: initial.pending });
  if (initial.pending === 0) return;
  await new Promise((resolve) => setTimeout(resolve, 300));
  const next = (await get("/api/status")).initial;
  if (next.volumes.length !== initial.volumes.length || next.pending === 0) await refreshVolumes(store);
  await readGiven({ ...next, failed: next.failed.slice(initial.failed.length) });
}

attempt(start);
