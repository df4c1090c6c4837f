// Runs while they train: curves and validation pictures, followed as the files grow.

import { get } from "./api.js";
import { chart, number } from "./chart.js";
import { el, labelled, select } from "./dom.js";
import { attempt } from "./notices.js";

const EVERY_MS = 4000;
const NAMES = { train: "Training", validation: "Validation" };

export class Training {
  #seen = "";
  #timer = null;

  constructor(host) {
    this.host = host;
    this.runs = select({}, "", { onchange: () => this.#refresh() });
    this.log = el("input", { type: "checkbox", onchange: () => this.#draw() });
    this.facts = el("p", { class: "facts", role: "status" });
    this.bar = el("progress", { max: "1", "aria-label": "Progress of the run" });
    this.charts = el("div", { class: "charts" });
    this.step = el("input", { type: "range", step: "1", min: "0", "aria-label": "Step of the pictures", oninput: () => this.#showPictures() });
    this.stepSaid = el("output", {});
    this.pictures = el("div", { class: "pictures" });
    this.pictureSection = el(
      "section",
      { "aria-labelledby": "pictures-title" },
      el("h3", { id: "pictures-title" }, "Validation pictures"),
      el("div", { class: "line" }, this.step, this.stepSaid),
      this.pictures,
    );
    this.content = el(
      "div",
      {},
      el("div", { class: "controls" }, labelled("Run", this.runs), el("label", { class: "shown" }, this.log, el("span", {}, "Logarithmic"))),
      this.facts,
      this.bar,
      this.charts,
      this.pictureSection,
    );
    this.none = el(
      "p",
      { class: "quiet" },
      "No run was given. Start the viewer with a run folder to follow it: ",
      el("code", {}, "ct2mri view RUN"),
      ".",
    );
    host.append(el("h2", {}, "Training"), this.none, this.content);
  }

  /** Shows and follows the runs while this section is on the screen. */
  async show(chosen) {
    const runs = (await attempt(() => get("/api/runs"))) ?? [];
    this.none.hidden = runs.length > 0;
    this.content.hidden = runs.length === 0;
    const before = this.runs.value || chosen;
    this.runs.replaceChildren(...runs.map((run) => el("option", { value: run.id }, run.stage ? `${run.name} (${run.stage})` : run.name)));
    if (runs.some((run) => run.id === before)) this.runs.value = before;
    if (runs.length > 0) await this.#refresh();
  }

  hide() {
    clearTimeout(this.#timer);
  }

  async #refresh() {
    clearTimeout(this.#timer);
    const run = await attempt(() => get(`/api/runs/${encodeURIComponent(this.runs.value)}`));
    if (this.host.hidden) return;
    if (!run || !run.finished) this.#timer = setTimeout(() => this.#refresh(), EVERY_MS);
    if (!run) return;
    const seen = JSON.stringify([run.id, run.step, run.finished, run.validation.rows.length, run.pictures.length]);
    if (seen === this.#seen) return;
    const another = this.run?.id !== run.id;
    this.#seen = seen;
    this.run = run;
    this.#draw();
    this.#offerPictures(another);
  }

  #draw() {
    const { run } = this;
    if (!run) return;
    const of = run.max_steps ? ` of ${run.max_steps}` : "";
    this.facts.textContent = run.finished ? `Finished at step ${run.step}.` : `Step ${run.step}${of}, followed as it trains.`;
    this.bar.hidden = run.finished || !run.max_steps;
    if (!this.bar.hidden) this.bar.value = run.step / run.max_steps;
    const open = new Set([...this.charts.querySelectorAll("details[open]")].map((details) => details.closest("figure").dataset.chart));
    this.charts.replaceChildren(...quantities(run).map(([name, curves]) => chart(name, curves, this.log.checked)));
    for (const figure of this.charts.children) if (open.has(figure.dataset.chart)) figure.querySelector("details").open = true;
    if (this.charts.children.length === 0) this.charts.append(el("p", { class: "quiet" }, "Nothing is logged yet."));
  }

  #offerPictures(another) {
    this.steps = [...new Set(this.run.pictures.map((picture) => picture.step))].sort((a, b) => a - b);
    this.pictureSection.hidden = this.steps.length === 0;
    if (this.steps.length === 0) return;
    // The newest is followed until the person looks back.
    const newest = another || Number(this.step.value) >= Number(this.step.max);
    this.step.max = this.steps.length - 1;
    if (newest) this.step.value = this.steps.length - 1;
    this.step.disabled = this.steps.length === 1;
    this.#showPictures();
  }

  #showPictures() {
    const step = this.steps[Number(this.step.value)];
    this.step.setAttribute("aria-valuetext", `Step ${step}`);
    this.stepSaid.textContent = `Step ${number(step)}`;
    const shown = this.run.pictures.filter((picture) => picture.step === step);
    const wanted = shown.map((picture) => picture.url).join();
    if (this.pictures.dataset.shown === wanted) return;
    this.pictures.dataset.shown = wanted;
    this.pictures.replaceChildren(
      ...shown.map(({ name, url }) =>
        el("figure", {}, el("img", { src: url, alt: `Validation picture ${name} at step ${step}`, loading: "lazy" }), el("figcaption", {}, name)),
      ),
    );
  }
}

/** The logged quantities, the loss first: [[name, curves]]. */
function quantities(run) {
  const found = new Map();
  for (const kind of ["train", "validation"]) {
    const { columns, rows } = run[kind];
    columns.slice(1).forEach((name, index) => {
      const points = rows.map((row) => [row[0], row[index + 1]]).filter(([, value]) => Number.isFinite(value));
      if (points.length === 0) return;
      if (!found.has(name)) found.set(name, []);
      found.get(name).push({ name: NAMES[kind], kind, points });
    });
  }
  const order = (name) => (name === "loss" ? 0 : found.get(name).some((curve) => curve.kind === "validation") ? 1 : 2);
  return [...found.entries()].sort(([a], [b]) => order(a) - order(b)).map(([name, curves]) => [name.replaceAll("_", " "), curves]);
}
