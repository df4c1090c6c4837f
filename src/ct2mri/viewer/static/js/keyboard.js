// Keys for all that the images do, and the sheet that lists them.

import { $, el } from "./dom.js";
import { changeLayer, layersOfCase, showAlone } from "./layers.js";
import { recall, remember } from "./store.js";
import { LAYOUTS, PLANES, SWITCHES, toggle } from "./toolbar.js";

const LETTERS = /^[a-z0-9+\-=?[\]]$/i;

export class Keyboard {
  constructor(store, viewer, actions) {
    this.store = store;
    this.viewer = viewer;
    this.actions = actions;
    this.letters = recall("local", "letters", true);
    this.keys = new Map();
    const choose = (name) => ([value, [, key]]) => this.keys.set(key.toLowerCase(), () => store.set({ [name]: value }));
    Object.entries(LAYOUTS).forEach(choose("layout"));
    Object.entries(PLANES).forEach(choose("plane"));
    for (const [name, [, key]] of Object.entries(SWITCHES)) this.keys.set(key.toLowerCase(), () => toggle(store, name));
    const more = {
      r: () => store.set({ radiological: !store.state.radiological }),
      x: () => this.#swap(),
      p: () => this.#nextWindow(),
      0: () => viewer.resetView(),
      "+": () => viewer.zoom(1.25),
      "=": () => viewer.zoom(1.25),
      "-": () => viewer.zoom(0.8),
      "[": () => this.#moveCurtain(-0.05),
      "]": () => this.#moveCurtain(0.05),
      t: actions.theme,
      o: actions.open,
      g: actions.translate,
      "?": actions.help,
    };
    for (const [key, work] of Object.entries(more)) this.keys.set(key, work);
    window.addEventListener("keydown", (event) => this.#press(event));
  }

  setLetters(on) {
    this.letters = on;
    remember("local", "letters", on);
  }

  #press(event) {
    const { key, target } = event;
    if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
    if (target.closest("input, select, textarea") && !(["checkbox", "range"].includes(target.type) && LETTERS.test(key))) return;
    const inImages = target.closest("#panes") !== null;
    if (inImages && this.#move(key, event.shiftKey)) {
      event.preventDefault();
      return;
    }
    if (!this.letters || location.hash.match(/training|reports/)) {
      if (key === "?" && this.letters) this.actions.help();
      return;
    }
    const digit = event.code.match(/^(?:Digit|Numpad)([1-9])$/)?.[1];
    const work = digit ? () => this.#layer(Number(digit), event.shiftKey) : this.keys.get(key.toLowerCase());
    if (!work) return;
    event.preventDefault();
    work();
  }

  /** Arrows and Page keys move through the plane at hand; with Shift ten times as far. */
  #move(key, far) {
    const by = far ? 10 : 1;
    const { plane, radiological } = this.store.state;
    if (plane === "render") {
      const turns = { ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, 5], ArrowDown: [0, -5] };
      if (!(key in turns)) return false;
      this.viewer.turn(...turns[key]);
      return true;
    }
    const right = radiological ? -by : by;
    // Across, up and through the plane, in voxels towards R, A and S.
    const axes = {
      coronal: [[right, 0, 0], [0, 0, by], [0, by, 0]],
      sagittal: [[0, -by, 0], [0, 0, by], [by, 0, 0]],
    }[plane] ?? [[right, 0, 0], [0, by, 0], [0, 0, by]];
    const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [1, 1], ArrowDown: [1, -1], PageUp: [2, 1], PageDown: [2, -1] };
    if (!(key in moves)) return false;
    const [axis, sign] = moves[key];
    this.viewer.step(...axes[axis].map((part) => part * sign));
    return true;
  }

  #layer(number, alone) {
    const layer = layersOfCase(this.store.state)[number - 1];
    if (!layer) return;
    if (alone) showAlone(this.store, layer.volume.id);
    else changeLayer(this.store, layer.volume.id, { shown: !layer.shown });
  }

  /** Shows the next layer alone: blinking between source and result finds what differs. */
  #swap() {
    const layers = layersOfCase(this.store.state);
    if (layers.length < 2) return;
    const top = layers.findLastIndex((layer) => layer.shown);
    showAlone(this.store, layers[(top + 1) % layers.length].volume.id);
  }

  #nextWindow() {
    const top = layersOfCase(this.store.state).findLast((layer) => layer.shown);
    const list = top && document.querySelector(`[data-volume="${CSS.escape(top.volume.id)}"] .look select`);
    if (!list) return;
    const keys = [...list.options].map((option) => option.value).filter((key) => key !== "own");
    list.value = keys[(keys.indexOf(list.value) + 1) % keys.length];
    list.dispatchEvent(new Event("change"));
  }

  #moveCurtain(by) {
    const { curtain } = this.store.state;
    this.store.set({ curtain: { ...curtain, at: Math.min(Math.max(curtain.at + by, 0), 1) } });
  }
}

const SHEET = {
  Images: [
    ["Arrow keys", "Move the crosshair in the plane; turn the 3D view"],
    ["Page up, Page down", "Next slice; with Shift, ten"],
    ["A, C, S, M, V", "Axial, coronal, sagittal, three planes, 3D"],
    ["B", "3D beside the three planes"],
    ["+, −, 0", "Larger, smaller, whole image"],
    ["N", "Voxels as they are (nearest neighbour)"],
    ["R", "Right on the left (radiological), or on the right"],
    ["H", "Crosshair"],
  ],
  Layers: [
    ["1 to 9", "Show or hide a layer; with Shift, show it alone"],
    ["X", "The next layer alone: compare by blinking"],
    ["P", "Next window of the topmost layer"],
    ["L, D, W", "Layers, side by side, curtain"],
    ["[ and ]", "Move the curtain"],
  ],
  Page: [
    ["O", "Open files"],
    ["G", "Go to Translate"],
    ["T", "Dark, light or as the system has it"],
    ["?", "This sheet"],
  ],
  Mouse: [
    ["Left button", "Place the crosshair; turn the 3D view"],
    ["Wheel", "Next slice; with Ctrl, zoom"],
    ["Right button", "Window of the lowest layer: across for width, up and down for level"],
    ["Shift and left button", "Move the image"],
  ],
  Fingers: [
    ["One", "Place the crosshair; turn the 3D view"],
    ["Two, apart or together", "Larger, smaller"],
    ["Two, up or down", "Next slices"],
  ],
};

export function buildHelp(keyboard) {
  const sheet = $("help-sheet");
  const letters = el("input", { type: "checkbox", checked: keyboard.letters, onchange: () => keyboard.setLetters(letters.checked) });
  const close = el("button", { type: "button", class: "main", onclick: () => sheet.close() }, "Close");
  sheet.append(
    el("h2", { id: "help-title" }, "Keys and mouse"),
    el(
      "div",
      { class: "sheet" },
      Object.entries(SHEET).map(([title, rows]) =>
        el("section", {}, el("h3", {}, title), el("dl", {}, rows.flatMap(([keys, what]) => [el("dt", {}, keys), el("dd", {}, what)]))),
      ),
    ),
    el("label", { class: "shown" }, letters, el("span", {}, "Single letters are keys")),
    el("p", { class: "quiet" }, "Right is on the left of axial and coronal planes, as radiologists look; sagittal planes face left. Two letters, as in AS, mark the border of an oblique plane."),
    close,
  );
  const show = () => sheet.open || sheet.showModal();
  $("help").addEventListener("click", show);
  return show;
}
