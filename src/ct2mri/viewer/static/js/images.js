// The volumes' voxels, loaded once and kept while their case is shown.

import "../vendor/niivue.umd.js";
import { get } from "./api.js";

const { NVImage } = globalThis.niivue;

export class Images {
  #loading = new Map();
  #loaded = new Map();

  constructor(store) {
    this.store = store;
  }

  /** The image of a volume, or undefined until `load` is through. */
  loaded(id) {
    return this.#loaded.get(id);
  }

  /** Loads a volume's image; asking again gives the same. */
  load(volume) {
    if (!this.#loading.has(volume.id)) {
      const image = NVImage.loadFromUrl({
        url: `/api/volumes/${encodeURIComponent(volume.id)}/data.nii`,
        name: `${volume.id}.nii`,
      }).then(
        (found) => {
          this.#loaded.set(volume.id, found);
          this.store.set({ imagesLoaded: this.store.state.imagesLoaded + 1 });
          return found;
        },
        () => {
          this.#loading.delete(volume.id);
          throw new Error(`The voxels of ${volume.name} could not be loaded.`);
        },
      );
      this.#loading.set(volume.id, image);
    }
    return this.#loading.get(volume.id);
  }

  /** Forgets all images but these. */
  keep(ids) {
    for (const id of this.#loading.keys()) {
      if (ids.includes(id)) continue;
      this.#loading.delete(id);
      this.#loaded.delete(id);
    }
  }
}

/** The volumes as the server lists them now. */
export async function refreshVolumes(store) {
  store.set({ volumes: await get("/api/volumes") });
}

const MOST_SORTED = 200_000;
const OUTSIDE = 0.005; // share of voxels below, and above, the robust range
const ranges = new WeakMap();

/** The range of all values, and that of all but the lowest and highest. NiiVue's own are of the image's middle. */
export function rangesOf(image) {
  const { img } = image;
  if (!ranges.has(img)) {
    const { scl_slope: slope, scl_inter: inter } = image.hdr;
    let [low, high] = [Infinity, -Infinity];
    for (let index = 0; index < img.length; index++) {
      if (img[index] < low) low = img[index];
      if (img[index] > high) high = img[index];
    }
    const stride = Math.ceil(img.length / MOST_SORTED);
    const some = Float64Array.from({ length: Math.floor(img.length / stride) }, (_, index) => img[index * stride]);
    const sorted = some.filter((value) => !Number.isNaN(value)).sort();
    const at = (share) => sorted[Math.round(share * (sorted.length - 1))] ?? 0;
    const scaled = (pair) => pair.map((value) => value * slope + inter).sort((a, b) => a - b);
    ranges.set(img, { full: scaled([low, high]), robust: scaled([at(OUTSIDE), at(1 - OUTSIDE)]) });
  }
  return ranges.get(img);
}

/** The value of an image at a place in mm, null outside it. */
export function valueAt(image, mm) {
  const voxel = image.mm2vox([mm[0], mm[1], mm[2]]);
  const inside = [0, 1, 2].every((axis) => voxel[axis] >= 0 && voxel[axis] < image.dimsRAS[axis + 1]);
  return inside ? image.getValue(voxel[0], voxel[1], voxel[2]) : null;
}

/** The same voxels for another canvas, with a look of its own. */
export function lookOf(image, look) {
  return Object.assign(Object.create(Object.getPrototypeOf(image)), image, look);
}

/** Whether two images lie on one grid. */
export function sameGrid(a, b) {
  return (
    a.dimsRAS.slice(1, 4).every((size, axis) => size === b.dimsRAS[axis + 1]) &&
    a.matRAS.every((part, index) => Math.abs(part - b.matRAS[index]) < 1e-3)
  );
}
