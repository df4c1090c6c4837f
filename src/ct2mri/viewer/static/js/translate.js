// The form that asks for a translation.

import { post } from "./api.js";
import { el, labelled, select } from "./dom.js";
import { announce, attempt } from "./notices.js";

export class TranslatePanel {
  constructor(store, jobs, host) {
    this.store = store;
    this.jobs = jobs;
    this.model = select({}, "", { id: "model", onchange: () => this.#fitModel() });
    this.volume = select({}, "", { id: "translate-volume" });
    this.steps = el("input", { type: "number", id: "steps", min: "1", step: "1", inputmode: "numeric" });
    this.seed = el("input", { type: "number", id: "seed", min: "0", step: "1", value: "0", required: true, inputmode: "numeric" });
    this.samples = el("input", { type: "number", id: "samples", min: "1", max: "64", step: "1", value: "1", required: true, inputmode: "numeric" });
    this.sampler = select({}, "", { id: "sampler" });
    this.more = el("details", {}, el("summary", {}, "Sampler"), labelled("Sampler of the last stage", this.sampler));
    this.about = el("div", { class: "about" });
    this.button = el("button", { type: "submit", class: "main", id: "start" }, "Translate");
    this.why = el("p", { class: "quiet", id: "why-not" });
    this.form = el(
      "form",
      { novalidate: false, "aria-describedby": "why-not" },
      labelled("Image", this.volume),
      labelled("Model", this.model),
      this.about,
      el("div", { class: "three" }, labelled("Steps", this.steps), labelled("Seed", this.seed), labelled("Samples", this.samples)),
      this.more,
      this.button,
      this.why,
    );
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    host.append(this.form);
    store.on(["models", "volumes", "case"], () => this.#update());
    this.#update();
  }

  focus() {
    (this.button.disabled ? this.model : this.button).focus();
  }

  get #chosen() {
    return this.store.state.models.find((model) => model.id === this.model.value);
  }

  #update() {
    const { models, volumes } = this.store.state;
    fill(this.model, models.map((model) => [model.id, model.name]));
    this.#fitModel();
    const sources = volumes.filter((volume) => volume.role === "source" || volume.role === "other");
    const shown = this.store.state.case;
    const here = sources.find((volume) => volume.group === shown);
    const chosen = sources.find((volume) => volume.id === this.volume.value);
    fill(this.volume, sources.map((volume) => [volume.id, `${volume.modality ?? "Image"}: ${volume.name}`]));
    // The image is that of the case, once another case is shown; until then it stays what a person chose.
    if (!chosen || (here && shown !== this.shown)) this.volume.value = (here ?? sources[0])?.id ?? "";
    this.shown = shown;
    const wanting = models.length === 0 ? "There is no model to translate with." : sources.length === 0 ? "Open an image first." : "";
    this.button.disabled = wanting !== "";
    this.why.textContent = wanting;
  }

  #fitModel() {
    const model = this.#chosen;
    if (!model) return;
    this.button.textContent = `Translate ${model.source_modality.toUpperCase()} to ${model.target_modality.toUpperCase()}`;
    this.steps.placeholder = String(model.steps);
    this.steps.max = model.max_steps;
    fill(this.sampler, [["", "The model's own"], ...model.samplers.map((name) => [name, name])]);
    this.more.hidden = model.samplers.length === 0;
    this.about.replaceChildren(...(model.warnings ?? []).map((warning) => el("p", { class: "warning" }, warning)));
  }

  #start() {
    attempt(async () => {
      const job = await post("/api/jobs", {
        volume: this.volume.value,
        model: this.model.value,
        steps: this.steps.value === "" ? null : Number(this.steps.value),
        seed: Number(this.seed.value),
        samples: Number(this.samples.value),
        sampler: this.sampler.value || null,
        mask: null,
      });
      announce("The translation is queued.");
      this.jobs.follow(job);
    });
  }
}

/** Gives a select these [value, text] pairs, keeping what was chosen; true if they changed. */
function fill(list, pairs) {
  const wanted = JSON.stringify(pairs);
  if (list.dataset.pairs === wanted) return false;
  const chosen = list.value;
  list.dataset.pairs = wanted;
  list.replaceChildren(...pairs.map(([value, text]) => el("option", { value }, text)));
  if (pairs.some(([value]) => value === chosen)) list.value = chosen;
  return true;
}
