from dataclasses import replace

import pytest

import tiny
from ct2mri.marking import safety_sentence, short_description, short_spread_description, units

MR_TO_CT = replace(
    tiny.plan(),
    source_modality="mr",
    target_modality="ct",
    target_units="HU",
    target_scaling="window",
    target_window=[-1024.0, 3000.0],
    target_range=(-1024.0, 3000.0),
)


def test_the_words_follow_the_plan():
    plan = tiny.plan()
    assert safety_sentence(plan).startswith("SYNTHETIC MR, generated from CT, not acquired.")
    assert safety_sentence(MR_TO_CT).startswith("SYNTHETIC CT, generated from MR, not acquired.")
    for sentence in (safety_sentence(plan), safety_sentence(MR_TO_CT)):
        assert "not for diagnosis, contouring or dose planning" in sentence
    assert units(plan) == "arbitrary MR units on the training set's median scale"
    assert units(MR_TO_CT) == "Hounsfield units (HU), estimated"
    assert "T2 units" in units(replace(plan, target_modality="t2"))
    assert "CLAHE" in units(replace(plan, enhance_contrast=True))
    assert short_description(MR_TO_CT).startswith("SYNTHETIC CT from MR, not acquired.")


@pytest.mark.parametrize(("source", "target"), [("ct", "mr"), ("cbct", "flair"), ("t1w-contrast", "größer")])
def test_short_descriptions_fit_a_nifti_header(source, target):
    plan = replace(tiny.plan(), source_modality=source, target_modality=target)
    for description in (short_description(plan), short_spread_description(plan)):
        assert len(description) <= 79 and description.isascii()
        assert "SYNTHETIC" in description and "no diagnosis" in description
