import numpy as np
import pytest

from ct2mri.evaluation.synthrad import synthrad_metrics, synthrad_notes


@pytest.mark.parametrize("name", ["synthrad_metrics", "synthrad_metrics_hard"])
def test_synthrad_metrics_agree_with_the_organisers(reference, name):
    with np.load(reference / f"{name}.npz") as facts:
        arrays = facts["prediction"], facts["target"], facts["mask"]
        of_2023, of_2025 = synthrad_metrics(*arrays, 2023), synthrad_metrics(*arrays, 2025)
        for got, expected in [
            (of_2023["mae"], facts["mae"]),
            (of_2025["mae"], facts["mae"]),
            (of_2023["psnr"], facts["psnr2023"]),
            (of_2023["ssim"], facts["ssim2023"]),
            (of_2025["psnr"], facts["psnr2025"]),
            (of_2025["ms_ssim"], facts["ms_ssim2025"][1]),
        ]:
            assert got == pytest.approx(float(expected), rel=1e-6)


def test_synthrad_metrics_of_an_empty_mask_are_not_defined():
    ct = np.zeros((10, 10, 10))
    assert synthrad_metrics(ct, ct, ct, 2025) == {"mae": None, "psnr": None, "ms_ssim": None}
    assert synthrad_metrics(ct, ct, ct, 2023) == {"mae": None, "psnr": None, "ssim": None}


def test_what_a_challenge_gives_no_number_for_is_explained():
    ct = np.random.default_rng(0).uniform(-1000, 1000, (12, 12, 12))
    inside = np.ones(ct.shape, bool)
    assert synthrad_notes(synthrad_metrics(ct, ct, inside, 2023)) == {"psnr": "identical"}
    rim = inside.copy()
    rim[3:-3, 3:-3, 3:-3] = False
    values = synthrad_metrics(ct, ct + 1, rim, 2023)
    assert values["ssim"] is None and "3 voxels from the border" in synthrad_notes(values)["ssim"]
    assert "mask is empty" in synthrad_notes(synthrad_metrics(ct, ct, ~inside, 2025))["ms_ssim"]
