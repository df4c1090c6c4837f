"""How soon the page shows a large volume. The figure is of the machine at hand; run by hand on a free one."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_driving import open_page, pixels, until
from serving import serving

from ct2mri.data.io import save_volume
from ct2mri.data.volume import Volume

pytestmark = pytest.mark.slow

SECONDS = 3.0


def test_a_volume_of_256_256_160_is_shown_within_three_seconds(chromium: Any, tmp_path: Path) -> None:
    shape = (256, 256, 160)
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    radius = np.sqrt(sum(axis**2 for axis in axes))
    array = np.where(radius < 0.8, 40, -1000) + np.random.default_rng(0).normal(0, 10, shape)
    affine = np.diag([0.9, 0.9, 1.0, 1.0])
    save_volume(Volume(np.round(array).astype(np.float32), affine), tmp_path / "large_ct.nii")
    with serving(tmp_path / "results", str(tmp_path / "large_ct.nii")) as server:
        server.until("/api/status", lambda status: status["initial"]["pending"] == 0)
        took = []
        for _ in range(3):
            start = time.perf_counter()
            with open_page(chromium, server.address) as page:
                until(page, "document.querySelectorAll('.tile').length === 3")
                while pixels(page, ".tile[data-plane=axial]").std() < 20:
                    pass
                took.append(time.perf_counter() - start)
    print(f"shown after {', '.join(f'{seconds:.2f} s' for seconds in took)}")
    assert min(took) < SECONDS
