// The pages that `evaluate`, `compare` and `check` have written.

import { get } from "./api.js";
import { el } from "./dom.js";
import { attempt } from "./notices.js";

const KINDS = { evaluation: "Evaluation", comparison: "Comparison", check: "Check of data" };

export class Reports {
  constructor(host) {
    this.list = el("ul", { class: "reports" });
    this.none = el(
      "p",
      { class: "quiet" },
      "No report was given. Start the viewer with one to read it here: ",
      el("code", {}, "ct2mri view REPORT"),
      ".",
    );
    this.frame = el("iframe", { title: "Report", sandbox: "allow-scripts", hidden: true });
    host.append(el("h2", {}, "Reports"), this.none, this.list, this.frame);
  }

  async show(chosen) {
    const reports = (await attempt(() => get("/api/reports"))) ?? [];
    this.none.hidden = reports.length > 0;
    this.list.replaceChildren(
      ...reports.map((report) =>
        el(
          "li",
          {},
          el("button", { type: "button", onclick: () => this.#open(report) }, report.name),
          el("span", { class: "quiet" }, KINDS[report.kind] ?? ""),
          el("a", { href: report.url, target: "_blank", rel: "noopener" }, "In a tab of its own"),
        ),
      ),
    );
    const first = reports.find((report) => report.id === chosen);
    if (first && this.frame.hidden) this.#open(first);
  }

  #open(report) {
    this.frame.hidden = false;
    this.frame.title = `Report ${report.name}`;
    this.frame.src = report.url;
  }
}
