import numpy as np
import pytest
from scipy import ndimage

from ct2mri.evaluation.edges import NAMES, compare_edges, edge_displacements, find_edges

SPACINGS = [(1.0, 1.0, 1.0), (1.5, 1.0, 2.5)]


def ball(radius_mm, spacing, centre_mm=(0.0, 0.0, 0.0), extent_mm=48.0):
    """How much of each voxel lies in a ball, smoothed by half a voxel or so."""
    axes = [np.arange(-extent_mm / 2, extent_mm / 2, edge) for edge in spacing]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre_mm, strict=True)))
    return np.clip((radius_mm - distance) / max(spacing) + 0.5, 0, 1)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_larger_ball_is_displaced_by_the_difference_of_radii(spacing):
    ct = 1000 * ball(12, spacing)
    inside = np.ones(ct.shape, bool)
    points = find_edges(ct, inside, spacing)
    assert len(points.places) > 200
    for radius in (10.5, 12, 13):
        found = edge_displacements(ball(radius, spacing), inside, points, 1.0)
        # The normal points to the denser side, which is inwards.
        assert np.nanmedian(found) == pytest.approx(12 - radius, abs=0.15)
        assert np.isfinite(found).mean() > 0.95
    dark = edge_displacements(1 - ball(13, spacing), inside, points, 1.0)
    assert np.nanmedian(dark) == pytest.approx(-1, abs=0.15), "contrast may be inverted, as in MR"


def test_a_shift_is_seen_in_mm_whatever_the_voxels():
    for spacing in SPACINGS:
        ct, moved = 1000 * ball(12, spacing), ball(12, spacing, (0, 2.0, 0))
        inside = np.ones(ct.shape, bool)
        points = find_edges(ct, inside, spacing)
        truth, shifted = (edge_displacements(of, inside, points, 1.0) for of in (ct / 1000, moved))
        values, notes = compare_edges(shifted, truth)
        assert not notes and values["truth_median_mm"] < 0.1 * max(spacing)
        # 2 mm times the mean |cosine| to the direction of the shift, whose median on a sphere is 1/2.
        assert values["median_mm"] == pytest.approx(1.0, abs=0.2)
        assert values["against_truth_mm"] == pytest.approx(values["median_mm"], abs=0.1)
        assert 1.7 < values["p95_mm"] < 2.2 and values["found"] > 0.9


def test_the_masks_own_border_is_no_edge_and_nothing_outside_counts():
    spacing = (1.0, 1.0, 1.0)
    ct, image = 1000 * ball(6, spacing), ball(7, spacing)
    mask = ball(18, spacing) > 0.5
    points = find_edges(ct, mask, spacing)
    found = edge_displacements(image, mask, points, 1.0)
    assert np.nanmedian(found) == pytest.approx(-1, abs=0.15)
    ct[~mask], image[~mask] = -5000, np.nan
    again = find_edges(ct, mask, spacing)
    np.testing.assert_array_equal(again.places, points.places)
    np.testing.assert_array_equal(edge_displacements(image, mask, again, 1.0), found)


def test_a_blurred_edge_stays_and_a_missing_one_is_told():
    spacing = (1.0, 1.0, 1.0)
    ct = 1000 * ball(12, spacing)
    inside = np.ones(ct.shape, bool)
    points = find_edges(ct, inside, spacing)
    truth = edge_displacements(ct / 1000, inside, points, 1.0)
    blurred = edge_displacements(ndimage.gaussian_filter(ct / 1000, 1.5), inside, points, 1.0)
    assert compare_edges(blurred, truth)[0]["against_truth_mm"] < 0.3
    flat = edge_displacements(np.zeros_like(ct), inside, points, 1.0)
    values, notes = compare_edges(flat, truth)
    assert values["median_mm"] is None and values["found"] == 0
    assert "prediction has no edges" in notes["median_mm"] and "both edges" in notes["against_truth_mm"]


def test_a_single_slice_and_a_constant_ct():
    spacing = (1.0, 1.0, 5.0)
    ct = 1000 * ball(12, (1.0, 1.0, 1.0))[:, :, 24:25]
    inside = np.ones(ct.shape, bool)
    points = find_edges(ct, inside, spacing)
    wider = ball(13, (1.0, 1.0, 1.0))[:, :, 24:25]
    assert np.nanmedian(edge_displacements(wider, inside, points, 1.0)) == pytest.approx(-1, abs=0.15)
    for image, mask in [(np.zeros_like(ct), inside), (ct, ~inside)]:
        nothing = find_edges(image, mask, spacing)
        found = edge_displacements(wider, mask, nothing, 1.0)
        values, notes = compare_edges(found, found)
        assert set(values) == set(NAMES) and set(values.values()) == {None}
        assert "0 edge points" in notes["median_mm"]
