// The list of layers: shown or not, opacity, window, colours, the value under the pointer, downloads.

import { post, remove } from "./api.js";
import { el, labelled, select } from "./dom.js";
import { refreshVolumes, valueAt } from "./images.js";
import { casesOf, changeLayer, layersOfCase, showAlone, windowsOf } from "./layers.js";
import { isHU, isImage, MAPS, roleName, valueText } from "./looks.js";
import { announce, attempt } from "./notices.js";
import { whenRead } from "./opening.js";

export class LayerPanel {
  #rows = new Map();

  constructor(store, images, host) {
    this.store = store;
    this.images = images;
    this.cases = select({}, "", { id: "case", onchange: () => store.set({ case: this.cases.value }) });
    this.caseField = labelled("Case", this.cases);
    this.list = el("ol", { class: "layers" });
    this.none = el("p", { class: "quiet" }, "Nothing is open yet.");
    host.append(this.caseField, this.none, this.list);
    store.on(["volumes", "case", "layers", "imagesLoaded"], () => this.#update());
    store.on(["pointer", "place", "imagesLoaded", "layers"], () => this.#read());
    this.#update();
  }

  #update() {
    const { state } = this.store;
    const cases = casesOf(state);
    this.caseField.hidden = cases.length < 2;
    if (cases.join("\n") !== [...this.cases.options].map((option) => option.value).join("\n")) {
      this.cases.replaceChildren(...cases.map((name) => el("option", { value: name }, name)));
    }
    this.cases.value = state.case ?? "";
    // The topmost layer comes first, as in every image editor.
    const layers = layersOfCase(state).reverse();
    this.none.hidden = layers.length > 0;
    const wanted = layers.map((layer) => layer.volume.id);
    for (const [id, row] of this.#rows) {
      if (wanted.includes(id)) continue;
      row.root.remove();
      this.#rows.delete(id);
    }
    layers.forEach((layer, index) => {
      const id = layer.volume.id;
      if (!this.#rows.has(id)) this.#rows.set(id, new Row(this.store, this.images, layer.volume));
      const row = this.#rows.get(id);
      if (this.list.children[index] !== row.root) this.list.insertBefore(row.root, this.list.children[index] ?? null);
      const alike = layers.filter((other) => other.volume.role === layer.volume.role).length;
      row.update(layer, layers.length - index, alike > 1 || layer.volume.role === "source" || layer.volume.role === "other");
    });
  }

  #read() {
    const { pointer, place } = this.store.state;
    const mm = pointer ?? place;
    for (const [id, row] of this.#rows) {
      const image = this.images.loaded(id);
      row.read(mm && image ? valueAt(image, mm) : null);
    }
  }
}

class Row {
  #windowKeys = "";

  constructor(store, images, volume) {
    this.store = store;
    this.images = images;
    this.volume = volume;
    const { id } = volume;
    const change = (changes) => changeLayer(store, id, changes);
    const name = `${roleName(volume)}, ${volume.name}`;
    this.shown = el("input", { type: "checkbox", onchange: () => change({ shown: this.shown.checked }) });
    this.value = el("output", { class: "value", "aria-label": `Value of ${name}` }, "–");
    this.number = el("kbd", { "aria-hidden": "true" });
    this.opacity = el("input", {
      type: "range",
      min: "0",
      max: "1",
      step: "0.05",
      "aria-label": `Opacity of ${name}`,
      oninput: () => change({ opacity: Number(this.opacity.value) }),
    });
    this.alone = el(
      "button",
      { type: "button", class: "plain small", "aria-label": `Show ${name} alone`, onclick: () => showAlone(store, id) },
      "Only",
    );
    this.window = select({}, "", { onchange: () => this.#choose(this.window.value) });
    this.low = el("input", { type: "number", step: "any", "aria-label": "Lowest value of the window" });
    this.high = el("input", { type: "number", step: "any", "aria-label": "Highest value of the window" });
    for (const input of [this.low, this.high]) input.addEventListener("change", () => this.#own());
    this.map = select(MAPS, "", { onchange: () => change({ map: this.map.value }) });
    const facts = [volume.shape?.join(" × "), volume.spacing && `${volume.spacing.map((mm) => trim(mm)).join(" × ")} mm`];
    this.error = el("button", { type: "button", class: "plain small", onclick: () => this.#makeError() }, "Error against the truth");
    this.name = el("p", { class: "name", title: volume.name }, volume.name);
    this.more = el("button", { type: "button", class: "plain small", "aria-expanded": "false", "aria-label": `More about ${name}` }, "More");
    const look = el(
      "div",
      { class: "look", hidden: true },
      labelled("Window", this.window),
      el("div", { class: "range" }, this.low, el("span", { "aria-hidden": "true" }, "to"), this.high),
      labelled("Colours", this.map),
      isImage(volume) &&
        el("button", { type: "button", class: "plain small", onclick: () => this.#spread() }, `This window for all in ${isHU(volume) ? "HU" : "a.u."}`),
      volume.role === "result" && this.error,
      el("p", { class: "quiet" }, volume.name),
      el("p", { class: "quiet" }, facts.filter(Boolean).join(", ")),
      (volume.warnings ?? []).map((warning) => el("p", { class: "warning" }, warning)),
      el("p", { class: "downloads" }, "Download ", downloads(volume)),
      el("button", { type: "button", class: "plain small", onclick: () => this.#close() }, "Close this volume"),
    );
    this.more.addEventListener("click", () => {
      look.hidden = !look.hidden;
      this.more.setAttribute("aria-expanded", String(!look.hidden));
    });
    this.root = el(
      "li",
      { class: "layer", "data-role": volume.role, "data-volume": id },
      el(
        "div",
        { class: "line" },
        el("label", { class: "shown" }, this.shown, el("span", { class: "role" }, roleName(volume)), this.number),
        this.value,
      ),
      this.name,
      el("div", { class: "line" }, this.opacity, this.alone, this.more),
      look,
    );
  }

  /** `number` is the layer's key; `named` says whether its role alone does not tell it from others. */
  update(layer, number, named) {
    this.name.hidden = !named;
    this.error.hidden = this.#truth === undefined;
    this.shown.checked = layer.shown;
    this.number.textContent = number <= 9 ? String(number) : "";
    this.opacity.value = layer.opacity;
    this.root.classList.toggle("off", !layer.shown);
    this.map.value = layer.map;
    const image = this.images.loaded(this.volume.id);
    if (!image) return;
    const presets = { ...windowsOf(this.volume, image), own: ["Own"] };
    if (Object.keys(presets).join() !== this.#windowKeys) {
      this.#windowKeys = Object.keys(presets).join();
      this.window.replaceChildren(...Object.entries(presets).map(([key, [text]]) => el("option", { value: key }, text)));
    }
    this.window.value = layer.window;
    if (layer.low === null) return;
    if (document.activeElement !== this.low) this.low.value = trim(layer.low);
    if (document.activeElement !== this.high) this.high.value = trim(layer.high);
  }

  read(value) {
    const text = valueText(this.volume, value);
    if (this.value.textContent !== text) this.value.textContent = text;
  }

  get #truth() {
    return layersOfCase(this.store.state).find((layer) => layer.volume.role === "target")?.volume;
  }

  /** Has the server subtract the truth from this result; the error becomes a layer. */
  #makeError() {
    attempt(async () => {
      this.error.disabled = true;
      announce("The error is being computed.");
      try {
        const { id } = await post(`/api/volumes/${encodeURIComponent(this.volume.id)}/error`, { target: this.#truth.id });
        const made = await whenRead(id);
        await refreshVolumes(this.store);
        changeLayer(this.store, made, { shown: true });
        announce("The error is a layer now.");
      } finally {
        this.error.disabled = false;
      }
    });
  }

  #choose(key) {
    if (key === "own") return;
    const [, low, high] = windowsOf(this.volume, this.images.loaded(this.volume.id))[key];
    changeLayer(this.store, this.volume.id, { window: key, low, high });
  }

  #own() {
    const [low, high] = [Number(this.low.value), Number(this.high.value)];
    const usable = this.low.value !== "" && this.high.value !== "" && low < high;
    for (const input of [this.low, this.high]) input.setAttribute("aria-invalid", String(!usable));
    if (usable) changeLayer(this.store, this.volume.id, { window: "own", low, high });
  }

  #spread() {
    const { state } = this.store;
    const mine = state.layers[this.volume.id];
    const layers = { ...state.layers };
    for (const { volume } of layersOfCase(state)) {
      const alike = isImage(volume) && isHU(volume) === isHU(this.volume);
      if (alike && layers[volume.id].low !== null) layers[volume.id] = { ...layers[volume.id], low: mine.low, high: mine.high, window: "own" };
    }
    this.store.set({ layers });
  }

  #close() {
    attempt(async () => {
      await remove(`/api/volumes/${encodeURIComponent(this.volume.id)}`);
      await refreshVolumes(this.store);
    });
  }
}

/** Links that save a volume in the formats a person may want. */
export function downloads(volume) {
  const names = { nifti: "NIfTI", nrrd: "NRRD", dicom: "DICOM", sidecar: "Facts" };
  return volume.downloads.map((format) =>
    el("a", { href: `/api/volumes/${encodeURIComponent(volume.id)}/download?format=${format}`, download: "" }, names[format]),
  );
}

/** At most four significant digits, without trailing zeros. */
export const trim = (number) => String(Number(Number(number).toPrecision(4)));
