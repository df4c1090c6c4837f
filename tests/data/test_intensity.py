import numpy as np
import pytest
from scipy import ndimage
from skimage.exposure import equalize_adapthist

from ct2mri.data.intensity import (
    body_mask,
    border_padding,
    defaced,
    enhance_local_contrast,
    otsu_threshold,
    scale_target,
    scale_windows,
    shift_windows,
    target_reference,
    unscale_target,
    unscale_window,
)
from ct2mri.data.io import load_volume
from ct2mri.data.phantom import draw_phantom


def ball(shape, centre, radius):
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) <= radius**2


def test_windows_map_their_ends_to_one_and_clip():
    source = np.array([-2000, -1024, 988, 3000, 5000], np.float32).reshape(5, 1, 1)
    scaled = scale_windows(source, [[-1024, 3000], [-160, 240]])
    assert scaled.shape == (2, 5, 1, 1) and scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[0].ravel(), [-1, -1, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(scaled[1].ravel(), [-1, -1, 1, 1, 1], atol=1e-6)
    inside = np.linspace(-160, 240, 50, dtype=np.float32).reshape(50, 1, 1)
    np.testing.assert_allclose(
        unscale_window(scale_windows(inside, [[-160, 240]])[0], [-160, 240]), inside, atol=1e-3
    )


@pytest.mark.parametrize(
    "windows", [[[-1024, 3000], [-160, 240]], [[-160, 240], [-1024, 3000]], [[-1024, 3000]]]
)
@pytest.mark.parametrize("shift", [-25.0, 0.0, 30.0])
def test_shifted_windows_are_those_of_the_shifted_source(windows, shift):
    source = np.linspace(-1020, 2950, 300, dtype=np.float32).reshape(300, 1, 1)
    source[:3] = -1024
    wanted = scale_windows(np.where(source > -1024, source + np.float32(shift), source), windows)
    shifted = shift_windows(scale_windows(source, windows), windows, shift)
    assert shifted.dtype == np.float32
    np.testing.assert_allclose(shifted, wanted, atol=2e-6)


def test_target_scale_keeps_what_lies_above_the_reference():
    target = np.array([0, 50, 100, 250], np.float32).reshape(4, 1, 1)
    scaled = scale_target(target, (0, 100))
    np.testing.assert_allclose(scaled.ravel(), [-1, 0, 1, 4], atol=1e-4)
    np.testing.assert_allclose(unscale_target(scaled, (0, 100)), target, atol=100 * 2**-16)


def test_reference_is_a_percentile_inside_the_mask_only():
    target = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    mask = target < 101
    assert target_reference(target, mask, 50) == pytest.approx(50)


def body_with_table(shape=(60, 70, 50)):
    hu = np.full(shape, -1000, np.float32)
    body = ball(shape, (30, 40, 25), 18)
    hu[body] = 40
    hu[ball(shape, (30, 42, 25), 6)] = -1000  # air inside, like a sinus or lung
    hu[5:55, 18:20, :] = 100  # a table 4 mm thick, 2 mm off the body
    return hu, body


def test_body_leaves_out_the_table_and_takes_in_the_air_inside():
    hu, body = body_with_table()
    mask = body_mask(hu, (2, 2, 2), -300)
    assert mask[body].mean() > 0.995
    assert not mask[:, :18, :].any()
    assert (mask & ~body).sum() < 0.01 * body.sum()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_body_in_a_single_slice(axis):
    hu, body = body_with_table()
    index = (30, 40, 25)[axis]
    mask = body_mask(np.take(hu, [index], axis), (2, 2, 2), -300)
    body = np.take(body, [index], axis)
    assert mask.shape == body.shape
    assert (mask ^ body).sum() < 0.05 * body.sum()


def test_two_legs_are_both_body_and_a_thin_sheet_is_none():
    hu = np.full((60, 40, 20), -1000, np.float32)
    hu[ball((60, 40, 20), (15, 20, 10), 9)] = 40
    hu[ball((60, 40, 20), (45, 20, 10), 8)] = 40
    mask = body_mask(hu, (3, 3, 3), -300)
    assert mask[15, 20, 10] and mask[45, 20, 10]
    sheet = np.full((40, 40, 20), -1000, np.float32)
    sheet[:, 20:22] = 40
    assert not body_mask(sheet, (2, 2, 2), -300).any()


@pytest.mark.parametrize(("name", "table"), [("head", np.s_[:, :6, :]), ("abdomen_pelvis", np.s_[:, :0, :])])
def test_body_of_a_real_ct(shared_data, name, table):
    volume = load_volume(shared_data / "real_ct" / f"{name}.nii.gz")
    array = volume.array[::2, ::2, ::2]
    mask = body_mask(array, tuple(2 * edge for edge in volume.spacing), -300)
    soft = (array > 0) & (array < 80)
    # Almost all soft tissue is body, and what is body holds little air.
    assert mask[soft].mean() > 0.97
    assert (array[mask] < -500).mean() < 0.1
    assert 0.1 < mask.mean() < 0.8
    assert not mask[table].any()


def test_padding_is_whole_planes_of_zeros_at_the_border():
    target = np.ones((10, 12, 8), np.float32)
    target[:2] = 0
    target[:, :, -1] = 0
    target[5] = 0  # dark, but inside
    padding = border_padding(target)
    assert padding[:2].all() and padding[:, :, -1].all()
    assert not padding[2:, :, :-1].any()
    assert not border_padding(np.ones((4, 4, 1), np.float32)).any()


def test_a_blanked_face_is_found_but_not_dark_bone_sinuses_or_noise():
    shape = (60, 60, 40)
    mask = ball(shape, (30, 30, 20), 26)
    tissue = mask & ~ball(shape, (30, 20, 20), 5)  # a sinus is no tissue
    face = mask & (np.indices(shape)[1] > 45)
    dark = np.random.default_rng(0).random(shape) < 0.05
    dark[ball(shape, (30, 20, 20), 5)] = True
    shell = mask & ~ball(shape, (30, 30, 20), 25)  # a dark rim 2 mm thick
    dark |= shell
    assert not defaced(dark, mask, tissue, (2, 2, 2)).any()
    found = defaced(dark | face, mask, tissue, (2, 2, 2))
    assert found[face].mean() > 0.95
    assert not found[:, :43].any()


def test_a_blanked_part_of_a_single_slice():
    shape = (80, 80, 1)
    mask = ball(shape, (40, 40, 0), 35)
    dark = np.zeros(shape, bool)
    dark[:, 60:] = True
    found = defaced(dark, mask, mask, (1, 1, 1))
    assert found[:, 60:][mask[:, 60:]].mean() > 0.95
    dark[:, 60:] = False
    dark[40:46, 40:46] = True  # 36 mm²
    assert not defaced(dark, mask, mask, (1, 1, 1)).any()


def test_targets_in_hu_come_back():
    hu = np.array([-1024, -1000, 40, 3000, 3500], np.float32).reshape(5, 1, 1)
    scaled = scale_target(hu, (-1024, 3000))
    np.testing.assert_allclose(scaled.ravel()[[0, 3]], [-1, 1], atol=1e-6)
    np.testing.assert_allclose(unscale_target(scaled, (-1024, 3000)), hu, atol=0.04)


@pytest.mark.parametrize("anatomy", ["head", "pelvis"])
@pytest.mark.parametrize("noise", [0, 0.08])
def test_the_body_in_an_mr_is_the_body_in_the_ct(anatomy, noise):
    phantom = draw_phantom(anatomy, 5, spacing=4)
    mr, generator = phantom.mr.array, np.random.default_rng(0)
    deviation = noise * np.percentile(mr, 99)
    real, imaginary = (generator.normal(0, deviation, mr.shape) for _ in range(2))
    noisy = np.hypot(mr + real, imaginary).astype(np.float32)
    found = body_mask(noisy, phantom.mr.spacing, otsu_threshold(noisy))
    true = body_mask(phantom.ct.array, phantom.ct.spacing, -300)
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.97
    assert (true & ~found).sum() < 0.015 * true.sum()
    assert otsu_threshold(noisy * 7) == pytest.approx(7 * otsu_threshold(noisy), rel=1e-3)


def test_the_body_in_a_real_mr(shared_data):
    mr, ct = (load_volume(shared_data / "head_templates" / f"{name}.nii.gz") for name in ("mr", "ct"))
    found = body_mask(mr.array, mr.spacing, otsu_threshold(mr.array))
    true = body_mask(ct.array, ct.spacing, -300)
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.93


def test_an_empty_volume_has_no_threshold_above_it():
    assert otsu_threshold(np.zeros((4, 4, 4), np.float32)) == 0


def test_contrast_enhancement_agrees_with_the_oracle():
    generator = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(generator.random((64, 48, 56)), 3)
    volume = (100 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)
    ours = enhance_local_contrast(volume, 100)
    oracle = equalize_adapthist(volume.astype(float) / 100, kernel_size=(8, 8, 8), clip_limit=0.01) * 100
    assert np.corrcoef(ours.ravel(), oracle.ravel())[0, 1] > 0.99
    assert np.abs(ours - oracle).mean() < 5
    assert ours.std() > 1.5 * volume.std()


def test_contrast_enhancement_keeps_the_ends_and_what_lies_beyond():
    ramp = np.linspace(-20, 130, 40 * 30 * 20, dtype=np.float32).reshape(40, 30, 20)
    ramp[0], ramp[1] = 0, 100
    enhanced = enhance_local_contrast(ramp, 100)
    beyond = (ramp <= 0) | (ramp >= 100)
    np.testing.assert_array_equal(enhanced[beyond], ramp[beyond])
    assert enhanced[~beyond].min() > 0 and enhanced[~beyond].max() < 100
    for shape in ((1, 40, 30), (5, 1, 1), (3, 4, 7)):
        small = generator_values(shape)
        out = enhance_local_contrast(small, 1)
        assert out.shape == shape and np.isfinite(out).all() and out.min() >= 0 and out.max() <= 1


def generator_values(shape):
    return np.random.default_rng(1).random(shape).astype(np.float32)
