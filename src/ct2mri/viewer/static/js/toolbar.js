// The buttons over the images, and the curtain's slider under them.

import { el, labelled, select } from "./dom.js";
import { valueAt } from "./images.js";
import { layersOfCase } from "./layers.js";
import { roleName, valueText } from "./looks.js";

export const LAYOUTS = { stack: ["Layers", "L"], side: ["Side by side", "D"], curtain: ["Curtain", "W"] };
export const PLANES = {
  multi: ["Three planes", "M"],
  axial: ["Axial", "A"],
  coronal: ["Coronal", "C"],
  sagittal: ["Sagittal", "S"],
  render: ["3D", "V"],
};
export const SWITCHES = {
  withRender: ["+ 3D", "B"],
  nearest: ["Voxels", "N"],
  crosshair: ["Crosshair", "H"],
};

/** Whether a switch is on; that of the 3D view is unless the processor would have to compute it. */
export function isOn(state, name) {
  return name === "withRender" && state.withRender === null ? state.software === false : state[name] === true;
}

export const toggle = (store, name) => store.set({ [name]: !isOn(store.state, name) });

export function buildToolbar(store, viewer, host) {
  const buttons = [];
  const button = (name, value, [text, key], title) => {
    const pressed = (state) => (value === undefined ? isOn(state, name) : state[name] === value);
    const onclick = () => (value === undefined ? toggle(store, name) : store.set({ [name]: value }));
    const made = el("button", { type: "button", title: `${title ?? text} (${key})`, "aria-keyshortcuts": key, onclick }, text);
    buttons.push({ made, pressed });
    return made;
  };
  const group = (label, ...made) => el("div", { class: "group", role: "group", "aria-label": label }, made);
  const layouts = Object.entries(LAYOUTS).map(([value, words]) => button("layout", value, words));
  host.append(
    group("Layout", ...layouts),
    group("Plane", ...Object.entries(PLANES).map(([value, words]) => button("plane", value, words))),
    group(
      "Display",
      button("withRender", undefined, SWITCHES.withRender, "3D beside the three planes"),
      button("nearest", undefined, SWITCHES.nearest, "Nearest neighbour: show voxels as they are"),
      button("crosshair", undefined, SWITCHES.crosshair),
    ),
    group("Convention", button("radiological", undefined, ["R on left", "R"], "Radiological: the patient's right is on the left")),
    group("View", el("button", { type: "button", title: "Whole image, no zoom (0)", "aria-keyshortcuts": "0", onclick: () => viewer.resetView() }, "Reset")),
  );
  const update = (state) => {
    for (const { made, pressed } of buttons) made.setAttribute("aria-pressed", String(pressed(state)));
    layouts[2].disabled = layersOfCase(state).length < 2;
  };
  store.on(["layout", "plane", "withRender", "software", "nearest", "crosshair", "radiological", "volumes", "case", "layers"], update);
  update(store.state);
}

export function buildCurtain(store, host) {
  const change = (changes) => store.set({ curtain: { ...store.state.curtain, ...changes } });
  const left = select({}, "", { "aria-label": "Left of the curtain", onchange: () => change({ left: left.value }) });
  const right = select({}, "", { "aria-label": "Right of the curtain", onchange: () => change({ right: right.value }) });
  const slider = el("input", {
    type: "range",
    min: "0",
    max: "1",
    step: "0.01",
    "aria-label": "Curtain",
    oninput: () => change({ at: Number(slider.value) }),
  });
  host.append(labelled("Left", left), slider, labelled("Right", right));
  store.on(["layout", "curtain", "volumes", "case", "layers"], (state) => {
    host.hidden = state.layout !== "curtain";
    if (host.hidden) return;
    const layers = layersOfCase(state);
    for (const [list, chosen] of [[left, state.curtain.left], [right, state.curtain.right]]) {
      const wanted = layers.map((layer) => layer.volume.id).join();
      if (list.dataset.ids !== wanted) {
        list.dataset.ids = wanted;
        list.replaceChildren(...layers.map(({ volume }) => el("option", { value: volume.id }, `${roleName(volume)}: ${volume.name}`)));
      }
      list.value = chosen;
    }
    slider.value = state.curtain.at;
  });
}

/** Lets the curtain's edge be drawn with the pointer. */
export function buildCurtainEdge(store, panes) {
  const edge = el("div", { class: "edge", "aria-hidden": "true" });
  panes.append(edge);
  edge.addEventListener("pointerdown", (event) => edge.setPointerCapture(event.pointerId));
  edge.addEventListener("pointermove", (event) => {
    if (!edge.hasPointerCapture(event.pointerId)) return;
    const box = panes.getBoundingClientRect();
    const at = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    store.set({ curtain: { ...store.state.curtain, at } });
  });
}

/** Where the pointer, or else the crosshair, is. */
export function buildPosition(store, images, host) {
  const place = el("span", { class: "mm" });
  const voxel = el("span", { class: "voxel" });
  const values = el("span", { class: "values" });
  host.append(place, voxel, values);
  store.on(["pointer", "place", "layers", "case"], (state) => {
    const mm = state.pointer ?? state.place;
    const layers = layersOfCase(state);
    const ground = layers.map((layer) => images.loaded(layer.volume.id)).find(Boolean);
    if (!mm || !ground) {
      place.textContent = "";
      voxel.textContent = "";
      values.textContent = "";
      return;
    }
    const named = mm.map((value, axis) => `${["LR", "PA", "IS"][axis][value >= 0 ? 1 : 0]} ${Math.abs(value).toFixed(1)}`);
    place.textContent = `${state.pointer ? "Pointer" : "Crosshair"} ${named.join("  ")} mm`;
    voxel.textContent = `voxel ${Array.from(ground.mm2vox(mm)).map((index) => index + 1).join(", ")}`;
    const read = layers.filter((layer) => layer.shown && images.loaded(layer.volume.id));
    values.textContent = read
      .map(({ volume }) => `${roleName(volume)} ${valueText(volume, valueAt(images.loaded(volume.id), mm))}`)
      .join("   ");
  });
}
