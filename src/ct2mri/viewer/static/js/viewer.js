// The panes: what each shows in the chosen layout, and that they look at one place.

import { el, perFrame } from "./dom.js";
import { lookOf, sameGrid } from "./images.js";
import { completed, layersOfCase, shownLayers } from "./layers.js";
import { isImage, niivueLook, roleName } from "./looks.js";
import { notice } from "./notices.js";
import { Pane } from "./pane.js";
import { recall, remember } from "./store.js";
import { isOn } from "./toolbar.js";

const MOST_PANES = 4;

export class Viewer {
  #panes = [];
  #active = null;
  #starting = Promise.resolve();
  #wanted;

  constructor(store, images, host) {
    this.store = store;
    this.images = images;
    this.host = host;
    this.empty = el("div", { class: "empty" });
    host.append(this.empty);
    this.#wanted = perFrame(() => {
      this.#starting = this.#starting.then(() => this.#update()).catch((error) => notice(error.message));
    });
    store.on(
      ["volumes", "pending", "case", "layers", "layout", "plane", "withRender", "software", "radiological", "nearest", "crosshair", "curtain"],
      () => this.#wanted(),
    );
  }

  /** The pane that keys move. */
  get active() {
    return this.#panes.includes(this.#active) ? this.#active : this.#panes[0];
  }

  get panes() {
    return this.#panes;
  }

  /** Moves the crosshair of all panes. */
  step(...voxels) {
    this.#act((pane) => pane.step(...voxels));
  }

  zoom(factor) {
    this.#act((pane) => pane.zoom(factor));
  }

  turn(azimuth, elevation) {
    this.#act((pane) => pane.turn(azimuth, elevation));
  }

  resetView() {
    this.#act((pane) => pane.resetView());
  }

  #act(what) {
    const pane = this.active;
    if (!pane || pane.nv.volumes.length === 0) return;
    this.#active = pane;
    // What keys do counts from the crosshair on, wherever the pointer rests.
    this.store.set({ pointer: null });
    what(pane);
  }

  async #update() {
    const { state } = this.store;
    const wanted = this.#wantedPanes(state);
    this.images.keep(layersOfCase(state).map((layer) => layer.volume.id));
    // Graphics start while voxels are on their way; one pane is there even before the first volume is.
    const voxels = wanted.flat().map((layer) => this.images.load(layer.volume));
    await Promise.all([...voxels, this.#startPanes(Math.max(wanted.length, 1))]);
    const layers = completed(state.layers, wanted.flat(), this.images);
    if (layers) {
      // Their windows are known only now; the change calls for another update.
      this.store.set({ layers });
      return;
    }
    const curtain = state.layout === "curtain" && wanted.length === 2;
    this.host.dataset.panes = wanted.length;
    this.host.classList.toggle("curtained", curtain);
    this.host.hidden = false;
    this.empty.hidden = wanted.length > 0;
    const words = emptyWords(state);
    if (this.empty.textContent !== words) this.empty.textContent = words;
    this.#panes.forEach((pane, index) => {
      pane.root.hidden = index >= wanted.length;
      if (!pane.root.hidden) this.#fill(pane, wanted[index], curtain && index === 1 ? wanted[0][0] : null, state);
    });
    const edge = `${curtain ? state.curtain.at * 100 : 0}%`;
    this.#panes.forEach((pane, index) => {
      pane.root.style.clipPath = curtain && index === 1 ? `inset(0 0 0 ${edge})` : "";
    });
    this.host.style.setProperty("--edge", edge);
    this.#restoreCrosshair(state);
  }

  #wantedPanes(state) {
    const shown = shownLayers(state);
    if (state.layout === "side") return shown.slice(0, MOST_PANES).map((layer) => [layer]);
    if (state.layout === "curtain") {
      const all = layersOfCase(state);
      const side = (id) => all.find((layer) => layer.volume.id === id);
      const [left, right] = [side(state.curtain.left), side(state.curtain.right)];
      if (left && right) return [[left], [right]];
    }
    if (state.plane === "render") {
      const image = shown.findLast((layer) => isImage(layer.volume)) ?? shown.at(-1);
      return image ? [[image]] : [];
    }
    return shown.length > 0 ? [shown] : [];
  }

  async #startPanes(count) {
    while (this.#panes.length > count) this.#panes.pop().stop();
    while (this.#panes.length < count) await this.#addPane();
  }

  async #addPane() {
    const pane = new Pane({
      drawn: (from) => this.#drawn(from),
      pointed: (from, mm) => this.store.set({ pointer: mm }),
      windowed: (from, low, high) => this.#windowed(from, low, high),
    });
    for (const event of ["pointerenter", "pointerdown", "focusin", "wheel"]) {
      pane.root.addEventListener(event, () => (this.#active = pane), { capture: true, passive: true });
    }
    this.host.append(pane.root);
    try {
      await pane.start();
    } catch {
      pane.root.remove();
      throw new Error("This browser shows no WebGL 2, which the images need.");
    }
    this.#panes.push(pane);
    this.store.set({ software: pane.software });
  }

  #fill(pane, layers, ground, state) {
    const alone = state.layout !== "stack";
    const image = (layer) => this.images.loaded(layer.volume.id);
    const looks = layers.map((layer, index) => niivueLook(layer.volume, { ...layer, opacity: alone ? 1 : layer.opacity }, index > 0));
    const images = layers.map((layer, index) => lookOf(image(layer), looks[index]));
    // Two grids behind one curtain: the right one is brought onto the left one's, so that they meet.
    pane.volumes = layers.map((layer) => layer.volume.id);
    if (ground && !sameGrid(image(ground), images[0])) {
      pane.volumes.unshift(ground.volume.id);
      Object.assign(images[0], niivueLook(layers[0].volume, { ...layers[0], opacity: 1 }, true));
      images.unshift(lookOf(image(ground), { ...niivueLook(ground.volume, ground, false), opacity: 0 }));
    }
    const names = layers.map((layer) => `${roleName(layer.volume)}: ${layer.volume.name}`);
    pane.title.textContent = alone ? roleName(layers[0].volume) : "";
    pane.title.hidden = !alone;
    pane.canvas.setAttribute("aria-label", `${names.join(", over it ")}. Arrow keys move the crosshair, ? shows all keys.`);
    const signature = JSON.stringify([pane.volumes, looks, images.length]);
    if (pane.signature !== signature) {
      pane.signature = signature;
      pane.show(images);
    }
    const view = {
      plane: state.plane,
      withRender: isOn(state, "withRender"),
      radiological: state.radiological,
      nearest: state.nearest,
      crosshair: state.crosshair,
    };
    const seen = JSON.stringify(view);
    if (pane.seen !== seen) {
      pane.seen = seen;
      pane.setView(view);
    }
    const first = this.#panes[0];
    if (pane !== first) pane.followView(first);
  }

  #drawn(from) {
    if (from.nv.volumes.length === 0) return;
    if (from === this.active) {
      for (const pane of this.#panes) if (pane !== from && !pane.root.hidden) pane.followView(from);
      const place = from.crosshair;
      this.store.set({ place });
      if (this.placedCase === this.store.state.case) remember("session", `place-${this.placedCase}`, place);
    }
  }

  /** A window drawn with the right button becomes the layer's own. */
  #windowed(from, low, high) {
    const id = from.volumes?.[0];
    const layer = this.store.state.layers[id];
    if (!layer || (layer.low === low && layer.high === high)) return;
    this.store.set({ layers: { ...this.store.state.layers, [id]: { ...layer, low, high, window: "own" } } });
  }

  #restoreCrosshair(state) {
    if (this.placedCase === state.case || this.#panes.length === 0 || this.#panes[0].nv.volumes.length === 0) return;
    this.placedCase = state.case;
    const place = recall("session", `place-${state.case}`, null);
    if (place) this.#panes[0].crosshair = place;
    else {
      this.#panes[0].nv.scene.crosshairPos = [0.5, 0.5, 0.5];
      this.#panes[0].nv.drawScene();
    }
  }
}

function emptyWords(state) {
  if (layersOfCase(state).length > 0) return "No layer is shown. Tick one under Layers.";
  return state.pending > 0 ? "Reading…" : "Open a CT to begin, or drop it here.";
}
