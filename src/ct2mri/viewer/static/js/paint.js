// Colours for voxels, computed here and not by NiiVue's shader: where the processor computes the graphics anyway, a
// shader takes ten times as long for it.

const LEVELS = 4096;
const LEAST_SEEN = 2 / 256; // NiiVue shows whatever is above the window's lower end at least so
let painted = new Uint32Array(0);

/**
 * Fills a texture with an image in its window and colours, as NiiVue does for the lowest layer.
 * False, with nothing done, for what only NiiVue's shader can draw.
 */
export function paint(nv, image, texture) {
  const { img, hdr, dimsRAS, img2RASstart: start, img2RASstep: step } = image;
  const plain = image.colormapType === 0 && !image.colormapNegative && !image.colormapLabel && image.modulationImage === null;
  if (!plain || image.nFrame4D > 1 || !(img instanceof Int16Array || img instanceof Float32Array)) return false;
  const [, width, height, depth] = dimsRAS;
  const low = Math.min(image.cal_min, image.cal_max);
  const perLevel = Math.max(1e-5, Math.abs(image.cal_max - image.cal_min)) / (LEVELS - 1);
  const colours = table(nv.colormap(image._colormap), image.opacity);
  const [scale, offset] = [hdr.scl_slope / perLevel, (hdr.scl_inter - low) / perLevel];
  const count = width * height * depth;
  if (painted.length !== count) painted = new Uint32Array(count);
  let to = 0;
  for (let k = 0; k < depth; k++) {
    for (let j = 0; j < height; j++) {
      let from = start[0] + start[1] + start[2] + j * step[1] + k * step[2];
      for (let i = 0; i < width; i++, from += step[0]) {
        const level = img[from] * scale + offset;
        painted[to++] = colours[level <= 0 ? 0 : level >= LEVELS - 1 ? LEVELS - 1 : Math.ceil(level)];
      }
    }
  }
  const { gl } = nv;
  gl.activeTexture(gl.TEXTURE0);
  gl.bindTexture(gl.TEXTURE_3D, texture);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.texSubImage3D(gl.TEXTURE_3D, 0, 0, 0, 0, width, height, depth, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(painted.buffer));
  return true;
}

/** The colours of a window from its lower to its upper end, as a texture of 256 colours gives them between two. */
function table(map, opacity) {
  const bytes = new Uint8ClampedArray(LEVELS * 4);
  for (let level = 0; level < LEVELS; level++) {
    const share = level === 0 ? 0 : Math.max(level / (LEVELS - 1), LEAST_SEEN);
    const at = Math.min(Math.max(share * 256 - 0.5, 0), 255);
    const [below, part] = [Math.floor(at), at % 1];
    for (let channel = 0; channel < 4; channel++) {
      const [a, b] = [map[below * 4 + channel], map[Math.min(below + 1, 255) * 4 + channel]];
      bytes[level * 4 + channel] = (a + (b - a) * part) * (channel === 3 ? opacity : 1);
    }
  }
  return new Uint32Array(bytes.buffer);
}
