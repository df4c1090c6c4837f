// Dark, light, or as the system has it.

import { recall, remember } from "./store.js";

const NEXT = { system: "dark", dark: "light", light: "system" };
const WORDS = { system: "Theme: system", dark: "Theme: dark", light: "Theme: light" };

export class Theme {
  constructor(button) {
    this.button = button;
    this.apply(recall("local", "theme", "system"));
    button.addEventListener("click", () => this.next());
  }

  next() {
    this.apply(NEXT[this.chosen]);
    remember("local", "theme", this.chosen);
  }

  apply(chosen) {
    this.chosen = chosen in NEXT ? chosen : "system";
    if (this.chosen === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = this.chosen;
    this.button.textContent = WORDS[this.chosen];
    this.button.title = "Dark, light or as the system has it (T)";
  }
}
