import numpy as np
import pytest

from ct2mri.errors import RequestError
from ct2mri.evaluation.regions import as_labels, errors_by_label, errors_by_tissue, overlap_of_labels


def test_errors_are_sorted_by_the_cts_hu():
    ct = np.array([-1000, -301, -300, 0, 249, 250, 2000.0]).reshape(7, 1, 1)
    target = np.zeros_like(ct)
    prediction = np.array([1, 3, 5, -5, 0, 8, -2.0]).reshape(7, 1, 1)
    inside = np.ones(ct.shape, bool)
    values, notes = errors_by_tissue(prediction, target, inside, ct)
    assert values["air.mae"] == 2 and values["air.bias"] == 2 and values["air.rmse"] == pytest.approx(5**0.5)
    assert values["soft_tissue.mae"] == pytest.approx(10 / 3) and values["soft_tissue.bias"] == 0
    assert values["bone.mae"] == 5 and values["bone.bias"] == 3 and not notes
    inside[5:] = False
    values, notes = errors_by_tissue(prediction, target, inside, ct)
    assert values["bone.mae"] is None and "no bone" in notes["bone.bias"]


def test_errors_by_label():
    labels = np.array([0, 2, 2, 7, 7, 9]).reshape(6, 1, 1)
    error = np.array([100, 1, -3, 4, 4, 5.0]).reshape(6, 1, 1)
    inside = np.array([1, 1, 1, 1, 0, 0], bool).reshape(6, 1, 1)
    values, notes = errors_by_label(error, np.zeros_like(error), inside, labels)
    assert values["2.mae"] == 2 and values["2.bias"] == -1 and values["7.mae"] == 4
    assert values["9.mae"] is None and "outside the mask" in notes["9.mae"]
    assert not any(name.startswith("0.") for name in values)


def test_dice_and_volumes():
    true = np.array([0, 1, 1, 1, 2, 3]).reshape(6, 1, 1)
    predicted = np.array([1, 1, 1, 0, 2, 4]).reshape(6, 1, 1)
    values = overlap_of_labels(predicted, true, voxel_ml=0.5)
    assert values["1.dice"] == pytest.approx(2 * 2 / 6) and values["2.dice"] == 1
    assert values["3.dice"] == 0 and values["4.dice"] == 0
    assert (
        values["1.volume_ml"] == 1.5 and values["4.true_volume_ml"] == 0 and values["3.true_volume_ml"] == 0.5
    )


@pytest.mark.parametrize("bad", [[0.5, 1], [-1, 2], [np.nan, 1]])
def test_what_is_no_label_map_is_refused(bad):
    with pytest.raises(RequestError, match="no label map"):
        as_labels(np.array(bad, np.float32), "x.nii.gz")
    assert as_labels(np.array([0, 3.00001], np.float32), "x").tolist() == [0, 3]
