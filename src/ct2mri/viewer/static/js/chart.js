// One small chart of curves over steps, drawn as SVG and said in words.

import { el, svg } from "./dom.js";

const [WIDTH, HEIGHT] = [420, 220];
const BOX = { left: 58, right: 12, top: 10, bottom: 30 };

/** A figure of `curves` [{name, kind, points: [[step, value]]}] with its description and numbers. */
export function chart(title, curves, logarithmic) {
  const log = logarithmic && curves.every((curve) => curve.points.every(([, value]) => value > 0));
  const drawn = curves.map((curve) => ({ ...curve, points: curve.points.map(([x, y]) => [x, log ? Math.log10(y) : y]) }));
  const all = drawn.flatMap((curve) => curve.points);
  const [x0, x1] = span(all.map(([x]) => x));
  const [y0, y1] = span(all.map(([, y]) => y));
  const x = (value) => BOX.left + ((value - x0) / (x1 - x0)) * (WIDTH - BOX.left - BOX.right);
  const y = (value) => HEIGHT - BOX.bottom - ((value - y0) / (y1 - y0)) * (HEIGHT - BOX.top - BOX.bottom);
  const id = `chart-${title.replace(/\W+/g, "-")}`;
  const said = curves.map(describe).join(" ");
  const grid = ticks(y0, y1, 6).map((value) => [
    svg("line", { class: "grid", x1: BOX.left, x2: WIDTH - BOX.right, y1: y(value), y2: y(value) }),
    svg("text", { class: "tick", x: BOX.left - 6, y: y(value) + 4, "text-anchor": "end" }, number(log ? 10 ** value : value)),
  ]);
  const steps = ticks(x0, x1, 4).map((value) =>
    svg("text", { class: "tick", x: x(value), y: HEIGHT - BOX.bottom + 18, "text-anchor": "middle" }, number(value)),
  );
  const lines = drawn.flatMap(({ kind, points }) => [
    svg("polyline", { class: `curve ${kind}`, points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") }),
    ...(points.length <= 40 ? points.map(([a, b]) => svg("circle", { class: `dot ${kind}`, cx: x(a), cy: y(b), r: 2.5 })) : []),
  ]);
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-labelledby": `${id}-title ${id}-desc` },
    svg("title", { id: `${id}-title` }, `${title} over steps`),
    svg("desc", { id: `${id}-desc` }, said),
    grid.flat(),
    steps,
    lines,
  );
  return el(
    "figure",
    { class: "chart", "data-chart": title },
    el("figcaption", {}, el("strong", {}, title), curves.map((curve) => el("span", { class: `key ${curve.kind}` }, `${curve.name} ${number(curve.points.at(-1)[1])}`))),
    picture,
    el("details", {}, el("summary", {}, "Numbers"), el("p", { class: "quiet" }, said), table(title, curves)),
  );
}

function describe({ name, points }) {
  const lowest = points.reduce((best, point) => (point[1] < best[1] ? point : best));
  const highest = points.reduce((best, point) => (point[1] > best[1] ? point : best));
  const [first, last] = [points[0], points.at(-1)];
  return `${name}: ${number(first[1])} at step ${first[0]}, ${number(last[1])} at step ${last[0]}; lowest ${number(lowest[1])} at step ${lowest[0]}, highest ${number(highest[1])} at step ${highest[0]}.`;
}

/** The last ten points of each curve. */
function table(title, curves) {
  const rows = curves.flatMap(({ name, points }) => points.slice(-10).map(([step, value]) => [name, step, number(value)]));
  const cells = (kind, words) => words.map((word) => el(kind, {}, String(word)));
  return el(
    "table",
    {},
    el("caption", {}, `The last points of ${title}`),
    el("thead", {}, el("tr", {}, cells("th", ["Curve", "Step", "Value"]))),
    el("tbody", {}, rows.map((row) => el("tr", {}, cells("td", row)))),
  );
}

function span(values) {
  const [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  if (low < high) return [low, high];
  const room = Math.abs(low) * 0.1 || 0.5; // around a single value
  return [low - room, high + room];
}

/** About `count` round numbers between two. */
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  return found;
}

/** Three significant digits. */
export function number(value) {
  const size = Math.abs(value);
  if (size >= 1e5 || (size > 0 && size < 1e-3)) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(size >= 1000 ? 4 : 3)));
}
