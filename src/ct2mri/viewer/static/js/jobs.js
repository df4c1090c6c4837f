// The jobs: what runs, what waits, what ended and how.

import { follow, get, hasEnded, remove } from "./api.js";
import { el } from "./dom.js";
import { refreshVolumes } from "./images.js";
import { downloads } from "./layer-panel.js";
import { announce, attempt } from "./notices.js";

const STATES = { queued: "Waiting", running: "Running", done: "Done", failed: "Failed", cancelled: "Cancelled" };

export class Jobs {
  #rows = new Map();
  #stops = new Map();

  constructor(store, host) {
    this.store = store;
    this.list = el("ol", { class: "jobs" });
    this.none = el("p", { class: "quiet" }, "No translation yet.");
    host.append(this.none, this.list);
  }

  /** Takes up all jobs that the server knows, also those begun before the page was loaded. */
  async start() {
    for (const job of await get("/api/jobs")) this.follow(job);
  }

  follow(job) {
    this.#show(job);
    if (hasEnded(job) || this.#stops.has(job.id)) return;
    this.#stops.set(job.id, follow(job.id, (changed) => this.#changed(changed)));
  }

  async #changed(job) {
    const before = this.store.state.jobs.find((other) => other.id === job.id);
    // The volumes first, since a job that is done links to them.
    if (job.state === "done") await attempt(() => refreshVolumes(this.store));
    this.#show(job);
    if (before?.state !== job.state || before?.stage !== job.stage) announce(sentence(job));
    if (!hasEnded(job)) return;
    this.#stops.delete(job.id);
    if (job.state === "done") attempt(() => this.#showResult(job));
  }

  async #showResult(job) {
    await refreshVolumes(this.store);
    const result = this.store.state.volumes.find((volume) => volume.id === job.results?.result);
    if (result) this.store.set({ case: result.group });
  }

  #show(job) {
    // The newest first; of two of one second, the one that was heard of last.
    const known = this.store.state.jobs;
    const jobs = known.some((other) => other.id === job.id) ? known.map((other) => (other.id === job.id ? job : other)) : [job, ...known];
    this.store.set({ jobs: jobs.sort((a, b) => Math.sign(Date.parse(b.created) - Date.parse(a.created))) });
    this.none.hidden = true;
    if (!this.#rows.has(job.id)) {
      const row = new Row(this, job);
      this.#rows.set(job.id, row);
      const older = this.store.state.jobs[this.store.state.jobs.indexOf(job) + 1];
      this.list.insertBefore(row.root, this.#rows.get(older?.id)?.root ?? null);
    }
    this.#rows.get(job.id).update(job, this.store.state);
  }

  /** Cancels a job, or deletes one that has ended with the volumes that it made. */
  drop(job) {
    attempt(async () => {
      await remove(`/api/jobs/${encodeURIComponent(job.id)}`);
      if (!hasEnded(job)) return;
      await refreshVolumes(this.store);
      this.#rows.get(job.id)?.root.remove();
      this.#rows.delete(job.id);
      this.store.set({ jobs: this.store.state.jobs.filter((other) => other.id !== job.id) });
      this.none.hidden = this.#rows.size > 0;
    });
  }

  open(job) {
    attempt(() => this.#showResult(job));
  }
}

class Row {
  #state = "";

  constructor(jobs, job) {
    this.jobs = jobs;
    this.state = el("span", { class: "state" });
    this.facts = el("p", { class: "facts" });
    this.bar = el("progress", { max: "1", "aria-label": "Progress of the translation" });
    this.said = el("p", { class: "said" });
    this.more = el("div", {});
    this.buttons = el("div", { class: "line buttons" });
    this.name = el("span", { class: "name" });
    this.root = el(
      "li",
      { class: "job", "data-job": job.id },
      el("div", { class: "line" }, this.name, this.state),
      this.facts,
      this.bar,
      this.said,
      this.more,
      this.buttons,
    );
  }

  update(job, state) {
    this.root.dataset.state = job.state;
    this.state.textContent = STATES[job.state];
    const volume = state.volumes.find((other) => other.id === job.volume);
    this.name.textContent = volume?.name ?? "Image";
    this.facts.textContent = factsText({ ...job, model: job.model_name });
    const running = job.state === "running";
    this.bar.hidden = hasEnded(job);
    if (running) this.bar.value = job.fraction ?? 0;
    else this.bar.removeAttribute("value");
    this.said.textContent = hasEnded(job) ? (job.detail ?? "") : progressText(job);
    this.said.hidden = this.said.textContent === "";
    if (this.#state === job.state) return;
    this.#state = job.state;
    this.more.replaceChildren(...(job.warnings ?? []).map((warning) => el("p", { class: "warning" }, warning)));
    this.buttons.replaceChildren(...this.#actions(job));
  }

  #actions(job) {
    const button = (text, onclick) => el("button", { type: "button", class: "plain small", onclick }, text);
    if (!hasEnded(job)) return [button("Cancel", () => this.jobs.drop(job))];
    if (job.state !== "done") return [button("Delete", () => this.jobs.drop(job))];
    // A result took time to make: deleting it takes two presses.
    const sure = button("Delete result for good", () => this.jobs.drop(job));
    sure.hidden = true;
    const ask = button("Delete", () => {
      sure.hidden = !sure.hidden;
      ask.textContent = sure.hidden ? "Delete" : "Keep";
      if (!sure.hidden) sure.focus();
    });
    const result = this.jobs.store.state.volumes.find((volume) => volume.id === job.results.result);
    if (!result) return [ask, sure];
    const saved = el("span", { class: "downloads" }, "Download ", downloads(result));
    return [button("Show", () => this.jobs.open(job)), ask, sure, saved];
  }
}

/** "starter, 10 steps, seed 0, 1 sample". */
export function factsText({ model, steps, seed, samples }) {
  const parts = [model];
  if (steps) parts.push(`${steps} ${steps === 1 ? "step" : "steps"}`);
  if (seed !== null && seed !== undefined) parts.push(`seed ${seed}`);
  if (samples) parts.push(`${samples} ${samples === 1 ? "sample" : "samples"}`);
  return parts.filter(Boolean).join(", ");
}

function progressText(job) {
  if (job.state === "queued") return "Waits for the device.";
  if (!job.stage) return "Starts.";
  if (!job.total) return `${job.stage[0].toUpperCase()}${job.stage.slice(1)}.`;
  const left = job.seconds_left === null || job.seconds_left === undefined ? "" : `, ${duration(job.seconds_left)} left`;
  return `Stage ${job.stage}, step ${job.step} of ${job.total}${left}`;
}

function sentence(job) {
  if (job.state === "done") return "The translation is done; its result is shown.";
  if (job.state === "failed") return `The translation failed: ${job.detail}`;
  if (job.state === "cancelled") return "The translation was cancelled.";
  return job.stage && job.total ? `The translation is in stage ${job.stage}.` : `The translation is ${STATES[job.state].toLowerCase()}.`;
}

function duration(seconds) {
  if (seconds < 60) return `about ${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 10) return `about ${minutes} min ${Math.round(seconds % 60)} s`;
  return minutes < 120 ? `about ${minutes} min` : `about ${(seconds / 3600).toFixed(1)} h`;
}
