// The sentence that is always on the screen, and how the shown result was made.

import { el } from "./dom.js";
import { factsText } from "./jobs.js";
import { layersOfCase, shownLayers } from "./layers.js";

const MADE = ["result", "draft", "spread", "error"];

export function buildSafety(store, host) {
  const sentence = el("p", { class: "sentence" });
  const made = el("p", { class: "made" });
  const warnings = el("details", { class: "warnings" }, el("summary"), el("ul"));
  host.append(sentence, made, warnings);
  const update = (state) => {
    const shown = shownInLayout(state).filter((layer) => MADE.includes(layer.volume.role));
    const sentences = [...new Set(shown.map(({ volume }) => volume.made?.safety).filter(Boolean))];
    sentence.textContent = sentences.join(" ") || (state.status?.safety ?? "Research use only; not for diagnosis.");
    const facts = [...new Set(shown.map(({ volume }) => volume.made && factsText(volume.made)).filter(Boolean))];
    made.textContent = facts.length > 0 ? `Shown result: ${facts.join("; ")}` : "";
    made.hidden = facts.length === 0;
    const said = [...new Set(shown.flatMap(({ volume }) => [...volume.warnings, ...(volume.made?.warnings ?? [])]))];
    warnings.hidden = said.length === 0;
    warnings.firstChild.textContent = said.length === 1 ? "1 warning about it" : `${said.length} warnings about it`;
    if (warnings.lastChild.textContent !== said.join("")) {
      warnings.lastChild.replaceChildren(...said.map((warning) => el("li", {}, warning)));
    }
  };
  store.on(["status", "volumes", "case", "layers", "layout", "curtain"], update);
  update(store.state);
}

function shownInLayout(state) {
  if (state.layout !== "curtain") return shownLayers(state);
  return layersOfCase(state).filter(({ volume }) => [state.curtain.left, state.curtain.right].includes(volume.id));
}
