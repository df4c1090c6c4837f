"""What counts as a changed result, and what is said of a model."""

import numpy as np
import pytest

from ct2mri.errors import RequestError
from ct2mri.evaluation.stability import (
    Results,
    change_of_content,
    interior,
    measure_change,
    read_stability,
    require_same_cases,
    shares_of_error,
    verdict,
)

SHAPE, SPACING = (30, 32, 34), (2.0, 2.0, 2.0)
INDEX = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in SHAPE], indexing="ij"))
RADIUS = 2 * np.sqrt((INDEX**2).sum(axis=0))  # mm
BODY = RADIUS < 26
IMAGE = np.where(BODY, 0.5 + 0.2 * np.sin(INDEX[0] / 3), 0).astype(np.float32)
EVERYWHERE = np.ones(SHAPE, bool)


def results(image=IMAGE, in_hu=False):
    return Results(image, BODY, SPACING, in_hu, 4000.0 if in_hu else 1.0, -1024.0 if in_hu else 0.0)


def ball(mm, place=(0, 0, 0)):
    return 2 * np.sqrt(((INDEX - np.array(place)[:, None, None, None]) ** 2).sum(axis=0)) < mm


def test_another_brightness_and_contrast_is_no_other_content():
    brighter = np.where(BODY, 0.3 + 1.4 * IMAGE, 0).astype(np.float32)
    values, notes = measure_change(results(), brighter, EVERYWHERE, 12.0)
    assert values["change"] == pytest.approx(np.abs(brighter - IMAGE)[BODY].mean(), rel=1e-5)
    assert values["altered"] == 0 and values["largest_ml"] == 0 and values["source_change"] == 12
    assert not notes
    deep = interior(BODY, SPACING)
    np.testing.assert_allclose(change_of_content(IMAGE, brighter, BODY, deep), 0, atol=1e-6)


def test_a_result_that_loses_its_contrast_has_changed():
    flat = np.where(BODY, 0.5 + 1e-3 * (IMAGE - 0.5), 0).astype(np.float32)
    assert measure_change(results(), flat, EVERYWHERE, None)[0]["altered"] > 0.3


def test_something_that_appears_is_found_with_its_share_and_size():
    appeared = ball(9, (3, 0, 0))
    changed = np.where(appeared, IMAGE + 0.5, IMAGE).astype(np.float32)
    values, _ = measure_change(results(), changed, EVERYWHERE, None)
    deep = interior(BODY, SPACING)
    true_ml = 8 * appeared.sum() / 1000
    # Half of the ball's edge is smoothed below what is seen, or a little beyond it.
    assert values["altered"] == pytest.approx(appeared.sum() / deep.sum(), rel=0.35)
    assert values["largest_ml"] == pytest.approx(true_ml, rel=0.35)
    twice = np.where(ball(5, (-8, 0, 0)), changed + 0.5, changed).astype(np.float32)
    more, _ = measure_change(results(), twice, EVERYWHERE, None)
    assert more["altered"] > 1.05 * values["altered"]
    assert more["largest_ml"] == pytest.approx(values["largest_ml"], rel=0.1)


def test_noise_of_single_voxels_and_the_skin_do_not_count():
    noise = np.random.default_rng(0).normal(0, 0.05, SHAPE).astype(np.float32)
    assert measure_change(results(), IMAGE + noise, EVERYWHERE, None)[0]["altered"] == 0
    skin = BODY & ~ball(24)
    flayed = np.where(skin, 0, IMAGE).astype(np.float32)
    values, _ = measure_change(results(), flayed, EVERYWHERE, None)
    assert values["change"] > 0.05 and values["altered"] < 0.02


def test_in_hu_what_is_seen_is_a_hundred_hu():
    image = np.where(BODY, 1000 * IMAGE, -1024).astype(np.float32)
    for hu, seen in ((60, False), (300, True)):
        changed = np.where(ball(9), image + hu, image).astype(np.float32)
        values, _ = measure_change(results(image, in_hu=True), changed, EVERYWHERE, None)
        assert (values["altered"] > 0) == seen


def test_only_what_can_be_compared_counts():
    seen = EVERYWHERE.copy()
    seen[:20] = False
    broken = IMAGE.copy()
    broken[:20] += 5
    values, _ = measure_change(results(), broken, seen, None)
    assert values["change"] == 0 and values["altered"] == 0


def test_what_is_not_defined_says_why():
    thin = np.zeros(SHAPE, bool)
    thin[10:12] = True
    values, notes = measure_change(Results(IMAGE, thin, SPACING, False, 1.0, 0.0), IMAGE, EVERYWHERE, None)
    assert values["altered"] is None and "5 mm from its surface" in notes["altered"]
    assert values["source_change"] is None and "the same" in notes["source_change"]
    nothing = Results(IMAGE, np.zeros(SHAPE, bool), SPACING, False, 1.0, 0.0)
    values, notes = measure_change(nothing, IMAGE, EVERYWHERE, None)
    assert (
        values["change"] is None and "mask is empty" in notes["change"] and "mask is empty" in notes["ssim"]
    )
    assert interior(EVERYWHERE, SPACING).all()  # the image cuts the body, which is no surface


def of(share, patients=3):
    return {"altered": {"mean": share, "patients": patients}}


def test_the_rule_names_the_changes_that_alter_too_much():
    words = {"seed": "another seed", "moved": "a step aside"}
    stable = verdict({"seed": of(0.0), "moved": of(0.0099)}, words)
    assert stable["hallucinates"] == [] and "at most 0.99%" in stable["sentence"]
    assert "a step aside" in stable["sentence"] and "mean of 3 patients" in stable["sentence"]
    guilty = verdict({"seed": of(0.0101), "moved": of(0.25, 1)}, words)
    assert guilty["hallucinates"] == ["seed", "moved"] and "25.0% with a step aside" in guilty["sentence"]
    unknown = verdict({"seed": of(None, 0)}, words)
    assert unknown["hallucinates"] == [] and "could not be measured" in unknown["sentence"]


def test_changes_are_told_in_shares_of_the_error():
    def found(**more):
        case = {"case_id": "a", "values": {"seed": {"change": 0.02}}}
        return {"in_hu": False, "data_range": 500.0, "changes": {"seed": "x"}, "cases": [case]} | more

    ours = {"target_low": 0.0, "target_high": 500.0}
    case = {"case_id": "a", "factors": ours, "values": {"mae": 0.1}}
    assert shares_of_error(found(), [case], False) == {"seed": {"a": pytest.approx(0.2)}}
    fitted = {**case, "factors": {"gain": 2.0, "reference": 1000.0}}  # 0.02 · 500 · 2 / 1000 = 0.02
    assert shares_of_error(found(), [fitted], False)["seed"]["a"] == pytest.approx(0.2)
    in_hu = {**case, "values": {"mae": 0.08}}
    assert shares_of_error(found(in_hu=True), [in_hu], True)["seed"]["a"] == pytest.approx(0.25)
    for mae in (None, 0.0):
        assert shares_of_error(found(), [{**case, "values": {"mae": mae}}], False)["seed"]["a"] is None
    require_same_cases(found(), ["a", "b"], False)
    with pytest.raises(RequestError, match="HU and the predictions are not"):
        require_same_cases(found(), ["a"], True)
    with pytest.raises(RequestError, match="No case is both"):
        require_same_cases(found(), ["b"], False)


def test_what_is_no_stability_report_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no report"):
        read_stability(tmp_path)
    (tmp_path / "stability.json").write_text('{"format_version": 99}')
    with pytest.raises(RequestError, match="format 99"):
        read_stability(tmp_path)
    (tmp_path / "stability.json").write_text("[1]")
    with pytest.raises(RequestError, match="no report"):
        read_stability(tmp_path)
