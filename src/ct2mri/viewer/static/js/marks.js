// What is written over a slice: where its borders lie in the patient, its position, and a bar in millimetres.

import { el } from "./dom.js";

const PLANES = ["Axial", "Coronal", "Sagittal"];
const LETTERS = [
  ["L", "R"],
  ["P", "A"],
  ["I", "S"],
];
/** Directions with less than this share of an axis do not get its letter: 6 degrees off. */
const LEAST_SHARE = 0.1;

/** The letters of a direction in RAS space, the most important first: [0, 0.9, 0.4] is "AS". */
export function lettersOf(direction) {
  const length = Math.hypot(...direction) || 1;
  return direction
    .map((part, axis) => ({ share: Math.abs(part) / length, letter: LETTERS[axis][part > 0 ? 1 : 0] }))
    .filter(({ share }) => share > LEAST_SHARE)
    .sort((a, b) => b.share - a.share)
    .map(({ letter }) => letter)
    .join("");
}

/** Where the axes of a volume, in the order nearest to R, A, S, point in the patient: three columns. */
export function axesOf(image) {
  const m = image.matRAS;
  return [0, 1, 2].map((axis) => [m[axis], m[4 + axis], m[8 + axis]]);
}

/** The four marks of a plane (0 axial, 1 coronal, 2 sagittal) of a volume's own grid. */
export function borderMarks(image, plane, radiological) {
  const axes = axesOf(image);
  const [across, up] = [axes[plane === 2 ? 1 : 0], axes[plane === 0 ? 1 : 2]];
  // Sagittal planes face left in both conventions, as in the project's reports.
  const right = plane === 2 || radiological ? across.map((part) => -part) : across;
  const opposite = (direction) => direction.map((part) => -part);
  return {
    left: lettersOf(opposite(right)),
    right: lettersOf(right),
    top: lettersOf(up),
    bottom: lettersOf(opposite(up)),
  };
}

/** A round length in mm that takes about a quarter of a width, and its pixels. */
export function scaleBar(pixelsPerMm, width) {
  const most = (width * 0.3) / pixelsPerMm;
  const power = 10 ** Math.floor(Math.log10(most));
  const mm = power * ([5, 2, 1].find((digit) => digit * power <= most) ?? 1);
  return { mm, pixels: mm * pixelsPerMm };
}

/** Where a slice is along its normal, "S 12.5 mm" and "71/160". */
export function positionTexts(image, plane, mm, voxel) {
  const axis = 2 - plane;
  const worldAxis = [2, 1, 0][plane];
  const value = mm[worldAxis];
  const letter = LETTERS[worldAxis][value >= 0 ? 1 : 0];
  return [`${letter} ${Math.abs(value).toFixed(1)} mm`, `${Math.round(voxel[axis]) + 1}/${image.dimsRAS[axis + 1]}`];
}

/** The marks over one canvas. */
export class Marks {
  #host;
  #tiles = [];

  constructor(host) {
    this.#host = host;
  }

  /** Draws the marks of the slices that NiiVue has just drawn. */
  update(nv, radiological) {
    const slices = nv.volumes.length > 0 ? nv.screenSlices.filter((slice) => slice.axCorSag <= 2) : [];
    while (this.#tiles.length < slices.length) this.#tiles.push(newTile(this.#host));
    this.#tiles.forEach((tile, index) => {
      tile.root.hidden = index >= slices.length;
      if (index < slices.length) place(tile, nv, slices[index], radiological);
    });
  }
}

function newTile(host) {
  const parts = {};
  for (const side of ["left", "right", "top", "bottom"]) parts[side] = el("span", { class: `mark at-${side}` });
  parts.plane = el("span", { class: "plane" });
  parts.mm = el("span");
  parts.number = el("span");
  parts.where = el("span", { class: "where" }, parts.mm, parts.number);
  parts.place = el("span", { class: "place" }, parts.plane, parts.where);
  parts.bar = el("span", { class: "bar" });
  parts.length = el("span", { class: "length" });
  parts.scale = el("span", { class: "scale" }, parts.bar, parts.length);
  parts.root = el("div", { class: "tile" }, ...["left", "right", "top", "bottom", "place", "scale"].map((name) => parts[name]));
  host.append(parts.root);
  return parts;
}

function place(tile, nv, slice, radiological) {
  const dpr = nv.uiData.dpr || 1;
  const plane = slice.axCorSag;
  const image = nv.volumes[0];
  const [left, top, width, height] = slice.leftTopWidthHeight.map((pixels) => pixels / dpr);
  Object.assign(tile.root.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
  tile.root.dataset.plane = PLANES[plane].toLowerCase();
  tile.root.classList.toggle("small", width < 260);
  const marks = borderMarks(image, plane, radiological);
  for (const side of ["left", "right", "top", "bottom"]) write(tile[side], marks[side]);
  const mm = nv.frac2mm(nv.scene.crosshairPos, 0, true);
  write(tile.plane, PLANES[plane]);
  const [along, number] = positionTexts(image, plane, mm, nv.frac2vox(nv.scene.crosshairPos));
  write(tile.mm, along);
  write(tile.number, number);
  const bar = scaleBar(width / Math.abs(slice.fovMM[0]), width);
  tile.bar.style.width = `${bar.pixels}px`;
  write(tile.length, `${bar.mm} mm`);
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
