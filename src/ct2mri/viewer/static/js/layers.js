// The layers: what is shown of a case's volumes, and how.

import { rangesOf } from "./images.js";
import { defaultMap, defaultOpacity, defaultWindow, isSigned, ROLES, windows } from "./looks.js";
import { recall, remember } from "./store.js";

/** The layers of the case at hand from the bottom up: {volume, shown, opacity, window, low, high, map}. */
export function layersOfCase(state) {
  return state.volumes
    .filter((volume) => volume.group === state.case && state.layers[volume.id])
    .map((volume) => ({ volume, ...state.layers[volume.id] }))
    .sort((a, b) => ROLES.indexOf(a.volume.role) - ROLES.indexOf(b.volume.role));
}

export const shownLayers = (state) => layersOfCase(state).filter((layer) => layer.shown);

export function changeLayer(store, id, changes) {
  const { layers } = store.state;
  store.set({ layers: { ...layers, [id]: { ...layers[id], ...changes } } });
}

/** Shows this layer alone. */
export function showAlone(store, id) {
  const layers = { ...store.state.layers };
  for (const { volume } of layersOfCase(store.state)) layers[volume.id] = { ...layers[volume.id], shown: volume.id === id };
  store.set({ layers });
}

/** Gives new volumes their layers and forgets those of volumes that are gone. */
export function followVolumes(store) {
  const kept = recall("session", "layers", {});
  store.on(["volumes"], (state) => {
    const layers = {};
    for (const volume of state.volumes) layers[volume.id] = state.layers[volume.id] ?? kept[volume.id] ?? newLayer(volume, state.volumes);
    const changes = { layers };
    const cases = casesOf(state);
    if (!cases.includes(state.case)) changes.case = cases[0] ?? null;
    store.set(changes);
    settleCase(store);
  });
  store.on(["case"], () => settleCase(store));
  store.on(["layers", "case", "layout", "plane", "curtain"], (state) => {
    remember("session", "layers", state.layers);
    remember("session", "scene", { case: state.case, layout: state.layout, plane: state.plane, curtain: state.curtain });
  });
}

export const casesOf = (state) => [...new Set(state.volumes.map((volume) => volume.group))];

/** Gives layers whose images have come the windows that follow from their voxels; null if none was wanting. */
export function completed(layers, wanted, images) {
  const changed = {};
  for (const { volume } of wanted) {
    const layer = layers[volume.id];
    if (layer.low !== null) continue;
    const [, low, high] = windowsOf(volume, images.loaded(volume.id))[layer.window];
    changed[volume.id] = { ...layer, low, high };
  }
  return Object.keys(changed).length > 0 ? { ...layers, ...changed } : null;
}

/** The window presets of a volume whose image has come. */
export function windowsOf(volume, image) {
  const { full, robust } = rangesOf(image);
  return windows(volume, robust[1] > robust[0] ? robust : full, full);
}

function newLayer(volume, volumes) {
  const roles = volumes.filter((other) => other.group === volume.group).map((other) => other.role);
  const first = roles.find((role) => role === "source") ?? roles[0];
  return {
    shown: volume.role === "result" || volume.role === first,
    opacity: defaultOpacity(volume),
    window: isSigned(volume) ? "auto" : defaultWindow(volume),
    low: null,
    high: null,
    map: defaultMap(volume),
  };
}

/** Makes the layout one that this case can fill: two sides for the curtain, something shown. */
function settleCase(store) {
  const layers = layersOfCase(store.state);
  const ids = layers.map((layer) => layer.volume.id);
  const { curtain } = store.state;
  if (!ids.includes(curtain.left) || !ids.includes(curtain.right)) {
    const ofRole = (role) => layers.find((layer) => layer.volume.role === role)?.volume.id;
    const left = ofRole("source") ?? ids[0] ?? null;
    const right = ofRole("result") ?? ids.find((id) => id !== left) ?? null;
    store.set({ curtain: { ...curtain, left, right } });
  }
  if (store.state.layout === "curtain" && ids.length < 2) store.set({ layout: "stack" });
}
