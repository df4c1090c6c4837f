"""Colours that the page computes itself are those of NiiVue's shader."""

from typing import Any

import numpy as np
import pytest
from page_driving import open_page, wait_for_images

DRAW = """async ([type, low, high, map, opacity, slope, intercept, flipped]) => {
    await import("/static/vendor/niivue.umd.js");
    const { paint } = await import("/static/js/paint.js");
    const { Niivue, NVImage } = globalThis.niivue;
    const size = [11, 9, 7];
    const whole = type === "int";
    const values = Array.from({ length: 11 * 9 * 7 }, (_, index) => ((index * 7919) % 3001) - 1000);
    const voxels = whole ? Int16Array.from(values) : Float32Array.from(values, (value) => value + 0.37);
    const affine = flipped
        ? [0, -2, 0, 9, 0, 0, 2, -3, 3, 0, 0, 5, 0, 0, 0, 1]
        : [2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1];
    const bytes = new Uint8Array(voxels.buffer);
    const file = NVImage.createNiftiArray(size, [2, 2, 2], affine, whole ? 4 : 16, bytes);
    const url = URL.createObjectURL(new Blob([await file]));
    const textures = [];
    for (const own of [false, true]) {
        const canvas = document.createElement("canvas");
        document.body.append(canvas);
        const nv = new Niivue({ logLevel: "error" });
        await nv.attachToCanvas(canvas);
        const image = await NVImage.loadFromUrl({ url, name: "drawn.nii" });
        image.hdr.scl_slope = slope;
        image.hdr.scl_inter = intercept;
        Object.assign(image, { _colormap: map, cal_min: low, cal_max: high, opacity });
        let painted = null;
        if (own) nv.paintVolume = (given, texture) => (painted = paint(nv, given, texture));
        nv.addVolume(image);
        const { gl } = nv;
        const [, width, height, depth] = image.dimsRAS;
        const buffer = gl.createFramebuffer();
        gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
        const all = [];
        for (let slice = 0; slice < depth; slice++) {
            gl.framebufferTextureLayer(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, nv.volumeTexture, 0, slice);
            const colours = new Uint8Array(width * height * 4);
            gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, colours);
            all.push(...colours);
        }
        textures.push(all);
        if (own && painted !== true) throw new Error("nothing was painted");
        canvas.remove();
    }
    return textures;
}"""


@pytest.fixture(scope="module")
def page(chromium: Any, address: str) -> Any:
    # The page's policy lets no blob be fetched, which this test does.
    with open_page(chromium, address, bypass_csp=True) as opened:
        wait_for_images(opened, 6)
        yield opened


@pytest.mark.parametrize(
    "look",
    [
        ("int", -160, 240, "gray", 1, 1, 0, False),
        ("int", -500, 1500, "hotiron", 1, 1, 0, True),
        ("int", -3000, 9000, "viridis", 0.5, 2.5, -40, True),
        ("float", 0, 80, "gray", 1, 1, 0, True),
        ("float", -1000, 2001, "ct2mri-signed", 0.8, 1, 0, False),
        ("float", 100, 100, "gray", 1, 1, 0, False),
    ],
)
def test_painting_is_what_the_shader_draws(page: Any, look: tuple[Any, ...]) -> None:
    by_shader, by_page = (np.array(texture) for texture in page.evaluate(DRAW, list(look)))
    assert by_shader.size == 11 * 9 * 7 * 4 and by_shader.std() > 10
    assert np.abs(by_shader - by_page).max() <= 2
