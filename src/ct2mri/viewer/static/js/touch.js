// Fingers on the images: one places the crosshair or turns the 3D view; two zoom, and go through the slices.

const PIXELS_PER_SLICE = 8;

/** Lets a pane be touched. NiiVue's own way takes two quick taps for a double one, and does nothing then. */
export function listenToTouch(pane) {
  const { canvas } = pane;
  const fingers = new Map();
  let several = false;
  let rows = 0;
  const both = () => {
    const [a, b] = [...fingers.values()];
    return { apart: Math.hypot(a.x - b.x, a.y - b.y), middle: { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 } };
  };
  const moved = (event) => {
    const before = fingers.get(event.pointerId);
    const now = { x: event.offsetX, y: event.offsetY };
    if (fingers.size !== 2) {
      fingers.set(event.pointerId, now);
      if (!several) pane.point(now, before);
      return;
    }
    const was = both();
    fingers.set(event.pointerId, now);
    const is = both();
    if (was.apart > 0) pane.zoom(is.apart / was.apart);
    rows += was.middle.y - is.middle.y;
    const slices = Math.trunc(rows / PIXELS_PER_SLICE);
    rows -= slices * PIXELS_PER_SLICE;
    if (slices !== 0) pane.stepThrough(is.middle, slices);
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "touch") return;
    fingers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    several = fingers.size > 1;
    rows = 0;
  });
  canvas.addEventListener("pointermove", (event) => fingers.has(event.pointerId) && moved(event));
  const lifted = (event) => {
    if (!fingers.has(event.pointerId)) return;
    if (event.type === "pointerup") moved(event);
    fingers.delete(event.pointerId);
  };
  canvas.addEventListener("pointerup", lifted);
  canvas.addEventListener("pointercancel", lifted);
}
