// One canvas with NiiVue in it, and the marks over it.

import "../vendor/niivue.umd.js";
import { el, perFrame } from "./dom.js";
import { OWN_MAPS } from "./looks.js";
import { Marks } from "./marks.js";
import { paint } from "./paint.js";
import { listenToTouch } from "./touch.js";

const { Niivue, DRAG_MODE, SHOW_RENDER, SLICE_TYPE } = globalThis.niivue;

export const PLANES = {
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  render: SLICE_TYPE.RENDER,
};

/**
 * How slices are drawn: the lowest layer with the others over it. NiiVue's own shader reads up to 40 voxels more for
 * drawings and outlines, which this page has none of. It looks for one uniform a line.
 */
const SLICE_SHADER = `#version 300 es
precision highp float;
uniform highp sampler3D volume;
uniform highp sampler3D overlay;
uniform float overlays;
uniform float opacity;
uniform float overlayAlphaShader;
in vec3 texPos;
out vec4 color;
void main() {
  color = vec4(texture(volume, texPos).rgb, opacity);
  if (overlays == 0.0) return;
  vec4 over = texture(overlay, texPos);
  over.a *= overlayAlphaShader;
  float alpha = over.a + color.a * (1.0 - over.a);
  if (alpha > 0.0) color = vec4(mix(color.rgb, over.rgb, over.a / alpha), alpha);
}`;

export class Pane {
  #marks;
  #radiological = true;
  #plane = "multi";
  #withRender = false;
  #shape = "";

  /** `events`: drawn(pane), pointed(pane, mm or null), windowed(pane, low, high). */
  constructor(events) {
    this.events = events;
    this.title = el("span", { class: "pane-title" });
    this.canvas = el("canvas", { tabindex: "0", role: "img" });
    const over = el("div", { class: "marks" });
    this.root = el("div", { class: "pane" }, this.canvas, over, this.title);
    this.#marks = new Marks(over);
  }

  /** Starts NiiVue on the canvas, which has to be in the page by now. */
  async start() {
    this.nv = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.36, 0.76, 0.86, 1],
      crosshairWidth: 0.2,
      crosshairWidthUnit: "percent",
      crosshairGap: 4,
      dragAndDropEnabled: false,
      isOrientCube: true,
      isOrientationTextVisible: false,
      isRadiologicalConvention: true,
      loadingText: "",
      logLevel: "error",
      multiplanarShowRender: SHOW_RENDER.NEVER, // our own layout says where 3D is
      sagittalNoseLeft: true,
      // Beside the planes, 3D shows the lowest layer: an image that covers another would cover it with its air.
      renderOverlayBlend: 0,
      show3Dcrosshair: true,
      windowingGainFactor: 1,
      // The page has keys of its own.
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
      viewModeHotKey: "",
    });
    this.nv.setMouseEventConfig({
      leftButton: { primary: DRAG_MODE.crosshair, withShift: DRAG_MODE.pan },
      rightButton: DRAG_MODE.windowing,
      centerButton: DRAG_MODE.pan,
    });
    const ignore = () => {};
    this.nv.keyDownListener = ignore;
    this.nv.keyUpListener = ignore;
    this.nv.resetBriCon = ignore;
    const unheard = (event) => event.preventDefault(); // and so becomes no mouse's event either
    Object.assign(this.nv, { touchStartListener: unheard, touchMoveListener: unheard, touchEndListener: unheard });
    listenToTouch(this);
    await this.nv.attachToCanvas(this.canvas);
    this.#drawOncePerFrame();
    if (this.software) this.nv.paintVolume = (image, texture) => paint(this.nv, image, texture);
    this.nv.setCustomSliceShader(SLICE_SHADER);
    for (const [name, map] of Object.entries(OWN_MAPS)) this.nv.addColormap(name, map);
    this.canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => this.events.pointed(this, this.#mmAt({ x: offsetX, y: offsetY })));
    this.canvas.addEventListener("pointerleave", () => this.events.pointed(this, null));
    this.canvas.addEventListener("pointerup", () => this.#tellWindow());
    this.canvas.addEventListener("wheel", (event) => this.#zoomByWheel(event), { capture: true });
    new ResizeObserver(() => this.#arrange()).observe(this.root);
  }

  /** NiiVue draws at once whatever changes, several times over where several things do. */
  #drawOncePerFrame() {
    const { nv } = this;
    const draw = nv.drawScene.bind(nv);
    const drawNow = () => {
      draw();
      this.#marks.update(nv, this.#radiological);
      this.events.drawn(this);
    };
    const resize = nv.resizeListener.bind(nv);
    nv.drawScene = perFrame(drawNow);
    nv.resizeListener = () => {
      resize(); // empties the canvas, so it is filled before it is shown
      drawNow();
    };
  }

  /** Whether WebGL is computed by the processor. */
  get software() {
    const { gl } = this.nv;
    const info = gl.getExtension("WEBGL_debug_renderer_info");
    return /swiftshader|llvmpipe|software|basic render/i.test(info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : "");
  }

  /** Shows images (copies made for this pane), the first as the ground of the others. */
  show(images) {
    const nv = this.nv;
    const centre = nv.volumes.length === 0;
    nv.volumes = images;
    nv.back = images[0] ?? null;
    nv.overlays = images.slice(1);
    if (images.length === 0) {
      nv.drawScene();
      return;
    }
    nv.updateGLVolume();
    if (centre) nv.scene.crosshairPos = [0.5, 0.5, 0.5];
    this.#arrange();
  }

  setView({ plane, withRender, radiological, nearest, crosshair }) {
    const nv = this.nv;
    this.#plane = plane;
    this.#withRender = withRender;
    this.#radiological = radiological;
    nv.opts.isRadiologicalConvention = radiological;
    nv.opts.crosshairWidth = crosshair ? 0.2 : 0;
    nv.opts.show3Dcrosshair = crosshair;
    if (nv.opts.isNearestInterpolation !== nearest && nv.volumes.length > 0) nv.setInterpolation(nearest);
    nv.opts.isNearestInterpolation = nearest;
    this.#shape = "";
    this.#arrange();
  }

  /** The crosshair's place in mm of the patient. */
  get crosshair() {
    return Array.from(this.nv.frac2mm(this.nv.scene.crosshairPos, 0, true)).slice(0, 3);
  }

  set crosshair(mm) {
    const frac = this.nv.mm2frac(mm, 0, true);
    this.nv.scene.crosshairPos = frac.map((part) => Math.min(Math.max(part, 0), 1));
    this.nv.drawScene();
  }

  /** Moves the crosshair by voxels along the axes nearest to R, A and S. */
  step(right, anterior, superior) {
    if (this.nv.volumes.length === 0) return;
    this.nv.moveCrosshairInVox(right, anterior, superior);
    this.nv.drawScene();
  }

  /** Moves the crosshair through the plane that is shown at a place on the canvas. */
  stepThrough(place, slices) {
    const tile = this.#tileAt(place);
    if (tile === null) return;
    const along = [0, 0, 0];
    along[2 - tile.axCorSag] = slices;
    this.step(...along);
  }

  /** Puts the crosshair at a place on the canvas, or turns the 3D view that is there by the way from another. */
  point(place, from) {
    const mm = this.#mmAt(place);
    if (mm) this.crosshair = mm;
    else if (this.nv.volumes.length > 0 && this.#tileAt(place) === null) this.turn((place.x - from.x) / 2, (place.y - from.y) / 2);
  }

  turn(azimuth, elevation) {
    const { renderAzimuth, renderElevation } = this.nv.scene;
    this.nv.setRenderAzimuthElevation(renderAzimuth + azimuth, renderElevation + elevation);
  }

  zoom(factor) {
    const pan = this.nv.scene.pan2Dxyzmm;
    const zoom = Math.min(Math.max(pan[3] * factor, 1), 20);
    const mm = this.nv.frac2mm(this.nv.scene.crosshairPos);
    // The crosshair stays where it is on the screen.
    const kept = [0, 1, 2].map((axis) => (zoom === 1 ? 0 : pan[axis] + (pan[3] - zoom) * mm[axis]));
    this.nv.setPan2Dxyzmm([...kept, zoom]);
  }

  resetView() {
    this.nv.setPan2Dxyzmm([0, 0, 0, 1]);
    this.nv.scene.volScaleMultiplier = 1;
    this.nv.setRenderAzimuthElevation(110, 10);
  }

  /** Looks at what another pane looks at. */
  followView(other) {
    const [mine, theirs] = [this.nv, other.nv];
    if (mine.volumes.length === 0 || theirs.volumes.length === 0) return;
    const frac = mine.mm2frac(other.crosshair, 0, true).map((part) => Math.min(Math.max(part, 0), 1));
    const same = (a, b) => a.every((part, index) => Math.abs(part - b[index]) < 1e-6);
    const [a, b] = [mine.scene, theirs.scene];
    if (
      same(Array.from(frac), Array.from(a.crosshairPos)) &&
      same(Array.from(a.pan2Dxyzmm), Array.from(b.pan2Dxyzmm)) &&
      same([a.renderAzimuth, a.renderElevation, a.volScaleMultiplier], [b.renderAzimuth, b.renderElevation, b.volScaleMultiplier])
    ) {
      return;
    }
    a.crosshairPos = frac;
    a.pan2Dxyzmm = Array.from(b.pan2Dxyzmm);
    a.renderAzimuth = b.renderAzimuth;
    a.renderElevation = b.renderElevation;
    a.volScaleMultiplier = b.volScaleMultiplier;
    mine.drawScene();
  }

  /** Ends NiiVue and gives its graphics memory back. */
  stop() {
    this.nv?.cleanup();
    this.nv?.gl?.getExtension("WEBGL_lose_context")?.loseContext();
    this.root.remove();
  }

  #arrange() {
    const nv = this.nv;
    if (!nv || nv.volumes.length === 0) return;
    const wide = this.root.clientWidth >= this.root.clientHeight;
    const shape = `${this.#plane} ${wide} ${this.#withRender}`;
    if (shape === this.#shape) return;
    this.#shape = shape;
    if (this.#plane !== "multi") {
      nv.customLayout = null;
      nv.setSliceType(PLANES[this.#plane]);
      return;
    }
    nv.opts.sliceType = SLICE_TYPE.MULTIPLANAR;
    nv.setCustomLayout(multiplanar(wide, this.#withRender));
  }

  /** The slice at a place on the canvas; null beside all of them, and over 3D. */
  #tileAt({ x, y }) {
    const { nv } = this;
    if (nv.volumes.length === 0) return null;
    const dpr = nv.uiData.dpr || 1;
    const slice = nv.screenSlices[nv.tileIndex(x * dpr, y * dpr)];
    return slice && slice.axCorSag <= SLICE_TYPE.SAGITTAL ? slice : null;
  }

  #mmAt(place) {
    const slice = this.#tileAt(place);
    if (slice === null) return null;
    const { nv } = this;
    const dpr = nv.uiData.dpr || 1;
    const frac = nv.screenXY2TextureFrac(place.x * dpr, place.y * dpr, nv.screenSlices.indexOf(slice));
    return frac[0] < 0 ? null : Array.from(nv.frac2mm(frac, 0, true)).slice(0, 3);
  }

  #tellWindow() {
    const ground = this.nv.volumes[0];
    if (ground) this.events.windowed(this, ground.cal_min, ground.cal_max);
  }

  #zoomByWheel(event) {
    if (!event.ctrlKey || this.#plane === "render") return;
    event.preventDefault();
    event.stopImmediatePropagation();
    this.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
  }
}

function multiplanar(wide, withRender) {
  const tile = (sliceType, ...position) => ({ sliceType, position });
  const { AXIAL, CORONAL, SAGITTAL, RENDER } = SLICE_TYPE;
  if (withRender) {
    return [
      tile(AXIAL, 0, 0, 0.5, 0.5),
      tile(CORONAL, 0.5, 0, 0.5, 0.5),
      tile(SAGITTAL, 0, 0.5, 0.5, 0.5),
      tile(RENDER, 0.5, 0.5, 0.5, 0.5),
    ];
  }
  if (wide) return [tile(AXIAL, 0, 0, 0.6, 1), tile(CORONAL, 0.6, 0, 0.4, 0.5), tile(SAGITTAL, 0.6, 0.5, 0.4, 0.5)];
  return [tile(AXIAL, 0, 0, 1, 0.55), tile(CORONAL, 0, 0.55, 0.5, 0.45), tile(SAGITTAL, 0.5, 0.55, 0.5, 0.45)];
}
