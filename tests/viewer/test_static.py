"""The files that the page consists of."""

import hashlib
import re
from pathlib import Path

import ct2mri.viewer

STATIC = Path(ct2mri.viewer.__file__).parent / "static"

CHANGES = {
    "this.volumeTexture=i,this.gradientTexture=Ti({gl:this.gl,hdr:C,": (
        "this.volumeTexture=i,this.gradientTextureAmount>0&&(this.gradientTexture=Ti({gl:this.gl,hdr:C,"
    ),
    "rgbaTex:this.rgbaTex.bind(this)})),!this.renderShader)throw": (
        "rgbaTex:this.rgbaTex.bind(this)}))),!this.renderShader)throw"
    ),
    'new Error("back.dims undefined");if(br({gl:this.gl,': (
        'new Error("back.dims undefined");if(g===0&&this.paintVolume?.(A,i)||br({gl:this.gl,'
    ),
}
"""NiiVue as published, and as it is shipped."""


def test_niivue_is_the_published_file_but_for_what_is_told() -> None:
    told = (STATIC / "vendor" / "LICENSES.txt").read_text(encoding="utf-8")
    text = (STATIC / "vendor" / "niivue.umd.js").read_bytes().decode("utf-8")
    for published, shipped in CHANGES.items():
        assert text.count(shipped) == 1
        text = text.replace(shipped, published)
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    assert f"SHA-256 of the file as published: {digest}\n" in told


def test_every_module_is_fetched_at_once() -> None:
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    fetched = re.findall(r'(?:modulepreload" href|module" src)="/static/([^"]+)"', page)
    modules = [f"js/{path.name}" for path in (STATIC / "js").iterdir()]
    assert sorted(fetched) == sorted([*modules, "vendor/niivue.umd.js"])
