// Sentences that a person has to see, and those for a screen reader alone.

import { $, el } from "./dom.js";

/** Shows a sentence until it is closed. */
export function notice(sentence, kind = "error") {
  for (const shown of $("notices").children) if (shown.firstChild.textContent === sentence) return;
  const close = el("button", { type: "button", class: "plain", "aria-label": "Close this message" }, "×");
  const box = el("div", { class: `notice ${kind}` }, el("p", {}, sentence), close);
  close.addEventListener("click", () => box.remove());
  $("notices").append(box);
}

/** Says a sentence to those who listen to the page. */
export function announce(sentence) {
  if ($("announce").textContent !== sentence) $("announce").textContent = sentence;
}

/** Runs `work`; what goes wrong becomes a notice. Returns undefined then. */
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") notice(error.message);
    return undefined;
  }
}
