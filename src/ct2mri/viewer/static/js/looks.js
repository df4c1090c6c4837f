// How volumes look by default: roles, windows and colour maps.

/** The roles of volumes in the order of layers, from the bottom up. */
export const ROLES = ["source", "other", "target", "draft", "result", "mask", "error", "spread"];

const ROLE_NAMES = {
  target: "Truth",
  draft: "Draft",
  result: "Result",
  error: "Error",
  spread: "Uncertainty",
  mask: "Mask",
};

export function roleName(volume) {
  if (volume.role === "source" || volume.role === "other") return volume.modality ?? "Image";
  return ROLE_NAMES[volume.role];
}

export const isHU = (volume) => /\bHU\b|Hounsfield/.test(volume.units ?? "");
export const isImage = (volume) => !["error", "spread", "mask"].includes(volume.role);
export const isSigned = (volume) => volume.role === "error";

/** Windows in the units of the volume: [low, high]. */
const CT_WINDOWS = {
  brain: ["Brain", 0, 80],
  soft: ["Soft tissue", -160, 240],
  bone: ["Bone", -500, 1500],
  lung: ["Lung", -1350, 150],
  wide: ["All of CT", -1024, 3000],
};

/** The window presets of a volume: {key: [name, low, high]}; `robust` and `full` are its measured ranges. */
export function windows(volume, robust, full) {
  if (isSigned(volume)) {
    const reach = Math.max(Math.abs(robust[0]), Math.abs(robust[1])) || 1;
    const most = Math.max(Math.abs(full[0]), Math.abs(full[1])) || 1;
    return {
      auto: ["Auto, symmetric", -reach, reach],
      half: ["Half of that", -reach / 2, reach / 2],
      full: ["Full, symmetric", -most, most],
    };
  }
  if (volume.role === "mask") return { auto: ["Mask", 0.5, 1] };
  const measured = { auto: ["Auto", ...robust], full: ["Full range", ...full] };
  if (isHU(volume) && volume.role !== "spread") return { ...CT_WINDOWS, ...measured };
  if (volume.role === "spread") measured.auto = ["Auto", 0, robust[1] || full[1] || 1];
  return measured;
}

export function defaultWindow(volume) {
  return isHU(volume) && volume.role !== "spread" && !isSigned(volume) ? "soft" : "auto";
}

/** Colour maps of NiiVue, and our own two. */
export const MAPS = {
  gray: "Grey",
  hotiron: "Hot iron",
  viridis: "Viridis",
  inferno: "Inferno",
  "ct2mri-signed": "Blue to red, signed",
  red: "Red",
};

export function defaultMap(volume) {
  if (isSigned(volume)) return "ct2mri-signed";
  return { spread: "inferno", mask: "red" }[volume.role] ?? "gray";
}

export function defaultOpacity(volume) {
  return { error: 0.8, spread: 0.7, mask: 0.35 }[volume.role] ?? 1;
}

/** Colour maps of our own: an error on its own is blue below zero, red above, black at zero. */
export const OWN_MAPS = {
  "ct2mri-signed": {
    R: [90, 40, 0, 210, 255],
    G: [200, 100, 0, 60, 200],
    B: [255, 230, 0, 40, 80],
    A: [255, 255, 0, 255, 255],
    I: [0, 77, 128, 179, 255],
  },
  // The same over an image, from zero up and from zero down; zero itself is clear.
  "ct2mri-above": { R: [210, 210, 210, 255], G: [60, 60, 60, 200], B: [40, 40, 40, 80], A: [0, 255, 255, 255], I: [0, 1, 102, 255] },
  "ct2mri-below": { R: [40, 40, 40, 90], G: [100, 100, 100, 200], B: [230, 230, 230, 255], A: [0, 255, 255, 255], I: [0, 1, 102, 255] },
  // Grey that covers what is under it, dark parts too.
  "ct2mri-gray-over": { R: [0, 255], G: [0, 255], B: [0, 255], A: [255, 255], I: [0, 255] },
};

const FADED = 1; // NiiVue's colormapType: values between zero and cal_min fade out
const FADES_BELOW = 0.5;

/** What NiiVue's image takes to look so: over others, errors and uncertainties fade out towards zero. */
export function niivueLook(volume, { opacity, low, high, map }, over) {
  // Not `colormap`: setting that one measures the image anew and puts the window back.
  const look = { opacity, cal_min: low, cal_max: high, _colormap: map };
  if (!over) return look;
  if (map === "gray") return { ...look, _colormap: "ct2mri-gray-over" };
  const faded = { ...look, cal_min: high * FADES_BELOW, colormapType: FADED };
  if (map === "ct2mri-signed") {
    const below = { colormapNegative: "ct2mri-below", cal_minNeg: low, cal_maxNeg: low * FADES_BELOW };
    return { ...faded, ...below, _colormap: "ct2mri-above" };
  }
  return volume.role === "spread" ? faded : look;
}

/** A value as it is read: whole HU, three significant digits of anything else. */
export function valueText(volume, value) {
  if (value === null || Number.isNaN(value)) return "–";
  if (isHU(volume)) return `${Math.round(value)} HU`;
  if (volume.role === "mask") return String(value);
  const size = Math.abs(value);
  const text = size >= 100 ? value.toFixed(0) : size >= 1 ? value.toFixed(2) : value.toFixed(3);
  return `${text} a.u.`;
}
