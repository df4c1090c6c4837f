// Elements are made here and nowhere from strings of markup, so data can never become markup.

/** An element with its attributes, listeners (on…) and children; text children become text nodes. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(element, attributes);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "checked" || name === "disabled" || name === "selected") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
}

/** A select with options {value: text}. */
export function select(options, chosen, attributes) {
  return el(
    "select",
    attributes,
    Object.entries(options).map(([value, text]) => el("option", { value, selected: value === chosen }, text)),
  );
}

/** A control with its label before it. */
export function labelled(text, control, attributes = {}) {
  return el("label", { class: "field", ...attributes }, el("span", {}, text), control);
}

export const $ = (id) => document.getElementById(id);

/** Runs at most once per frame, however often it is asked to. */
export function perFrame(work) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
}
