from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ct2mri.data.phantom import draw_phantom
from ct2mri.data.registration_picture import write_registration_picture
from ct2mri.data.volume import Volume


def coloured(path: Path) -> np.ndarray:
    """Where a picture shows a line, which alone has a colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return pixels.max(axis=2) - pixels.min(axis=2) > 60


@pytest.mark.parametrize("drawn", ["source", "target"])
def test_edges_of_the_ct_are_drawn_in_both_rows(tmp_path: Path, drawn: str) -> None:
    phantom = draw_phantom("head", 0, 5.0)
    source, after = (phantom.ct, phantom.mr) if drawn == "source" else (phantom.mr, phantom.ct)
    before = Volume(after.array, after.affine.copy(), after.metadata)
    before.affine[:3, 3] += [15, -10, 12]
    path = tmp_path / "registration.png"
    write_registration_picture(source, before, after, path)
    lines = coloured(path)
    upper, lower = np.array_split(lines, 2)
    assert upper.sum() > 1000
    assert lower.sum() > 1000
    assert [entry.name for entry in tmp_path.iterdir()] == ["registration.png"]
    moved = np.mean(upper[-lower.shape[0] :] != lower)
    write_registration_picture(source, after, after, path)
    same_upper, same_lower = np.array_split(coloured(path), 2)
    if drawn == "target":  # its lines move with it; those of the source stay where they are
        assert np.mean(same_upper[-same_lower.shape[0] :] != same_lower) < moved


def test_a_pair_without_common_space_is_drawn_still(tmp_path: Path) -> None:
    phantom = draw_phantom("head", 0, 8.0)
    away = Volume(phantom.mr.array, phantom.mr.affine.copy(), phantom.mr.metadata)
    away.affine[:3, 3] += 1000
    write_registration_picture(phantom.ct, away, phantom.mr, tmp_path / "away.png")
    assert coloured(tmp_path / "away.png").any()
