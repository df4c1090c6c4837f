import numpy as np
import pytest

from ct2mri.data.bias import correct_bias
from ct2mri.data.intensity import body_mask
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError


def test_known_shading_is_taken_away() -> None:
    phantom = draw_phantom("head", 0, 8.0)
    mr = phantom.mr
    body = body_mask(phantom.ct.array, phantom.ct.spacing, -300)
    body &= mr.array > 0.1 * np.percentile(mr.array, 99)
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in mr.spatial_shape], indexing="ij")
    shading = np.exp(0.35 * i - 0.25 * j * j + 0.2 * k * j)
    plain, shaded = correct_bias(mr), correct_bias(mr.with_array(mr.array * shading))

    assert np.array_equal(shaded.affine, mr.affine)
    assert shaded.metadata == mr.metadata
    left = np.log(shaded.array[body] / plain.array[body]).std()
    assert left < 0.4 * np.log(shading[body]).std()
    assert np.isfinite(shaded.array).all()
    assert shaded.array[body].mean() == pytest.approx((mr.array * shading)[body].mean(), rel=0.05)
    assert np.array_equal(correct_bias(mr).array, plain.array)


def test_a_voxel_far_below_nought_makes_no_ct_of_an_mr() -> None:
    mr = draw_phantom("head", 0, 8.0).mr
    array = mr.array.copy()
    array[0, 0, 0] = -250
    plain, undershot = (correct_bias(Volume(each, mr.affine)).array for each in (mr.array, array))
    np.testing.assert_allclose(undershot[1:], plain[1:], rtol=0.01)


def test_what_has_no_shading_is_refused() -> None:
    mr = draw_phantom("head", 0, 8.0).mr
    with pytest.raises(RequestError, match="at least 4 along every axis"):
        correct_bias(Volume(mr.array[:, :, :1], mr.affine))
    thin = mr.affine @ np.diag([1, 1, 1 / 8, 1])
    with pytest.raises(RequestError, match=r"5 mm thick.* needs more than 6 mm"):
        correct_bias(Volume(mr.array[:, :, 10:15], thin))
    with pytest.raises(RequestError, match="No body with signal"):
        correct_bias(mr.with_array(np.zeros_like(mr.array)))
    with pytest.raises(RequestError, match="No body with signal"):
        correct_bias(mr, mask=mr.with_array(np.zeros_like(mr.array)))
