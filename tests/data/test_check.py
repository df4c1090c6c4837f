import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from ct2mri.data.check import check
from ct2mri.data.check_case import Pair, measure
from ct2mri.data.check_page import page
from ct2mri.data.check_rules import CaseReport, Finding, hand, judge_case, worst_first
from ct2mri.data.check_set import DataReport, judge_set
from ct2mri.data.geometry import to_canonical
from ct2mri.data.io import save_volume
from ct2mri.data.layouts import load_picture
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.prepare import prepare
from ct2mri.data.volume import Volume
from ct2mri.errors import CasesLeftOutError, RequestError
from ct2mri.options.data import CheckOptions, PrepareOptions

MM = 5.0  # mm: coarse enough to be drawn and compared in a second
VALUES_MM = 10.0  # mm: enough where values alone are judged


@pytest.fixture(scope="module")
def phantoms():
    return [draw_phantom("head", seed, MM) for seed in range(3)]


@pytest.fixture(scope="module")
def good(phantoms):
    """What is measured of the first two phantoms' pairs as they are."""
    return [measured(phantom.ct, phantom.mr) for phantom in phantoms[:2]]


@pytest.fixture(scope="module")
def added():
    """A coarse pair, and a function: what is said of a pair beyond what is said of that one."""
    phantom = draw_phantom("head", 0, VALUES_MM)
    usual = {text for _, text in said(measured(phantom.ct, phantom.mr))}

    def compare(source, target):
        return [entry for entry in said(measured(source, target)) if entry[1] not in usual]

    return phantom.ct, phantom.mr, compare


def measured(source, target, **given):
    pair = {
        "mask": None,
        "valid": None,
        "names": ("ct.nii.gz", "mr.nii.gz"),
        "modalities": ("ct", "mr"),
        "in_hu": (True, False),
        **given,
    }
    return measure(Pair(source, target, **pair))[0]


def said(facts, is_picture=False):
    return [(finding.severity, finding.text) for finding in judge_case(facts, is_picture=is_picture)]


def moved(volume, shift_mm, angles_deg=(0, 0, 0)):
    """The volume turned about its middle and shifted, in RAS+ mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()
    middle = volume.affine @ [*((np.array(volume.spatial_shape) - 1) / 2), 1]
    matrix[:3, 3] = middle[:3] - matrix[:3, :3] @ middle[:3] + shift_mm
    return Volume(volume.array, matrix @ volume.affine)


def mirrored(volume):
    """The volume with left and right exchanged, and off its grid by part of a voxel."""
    return moved(volume.with_array(volume.array[::-1]), (1.1, 0.7, -0.6))


def symmetric(volume):
    return volume.with_array((volume.array + volume.array[::-1]) / 2)


def test_a_good_pair_has_nothing_to_say(phantoms, good):
    facts = good[0]
    assert said(facts) == []
    assert facts.source.air_hu == pytest.approx(-1000, abs=15)
    assert 0.05 < facts.source.bone_share < 0.4
    assert facts.source.shape == phantoms[0].ct.spatial_shape and facts.source.orientation == "RAS"
    assert facts.pair.seen_share == 1 and facts.pair.shift_mm < 1 and facts.pair.edge_distance_mm < 2
    assert hand(facts.pair) == "same"


@pytest.mark.parametrize(
    ("anatomy", "swapped"),
    [
        ("head", False),
        pytest.param("head", True, marks=pytest.mark.slow),
        pytest.param("pelvis", False, marks=pytest.mark.slow),
        pytest.param("pelvis", True, marks=pytest.mark.slow),
    ],
)
def test_left_and_right_are_told_apart_however_the_patient_lies(anatomy, swapped):
    phantom = draw_phantom(anatomy, 5, 4.0)
    tilted = moved(phantom.mr, (3, -4, 2), (4, 5, -6))
    wrong = mirrored(tilted)

    def facts(mr):
        if swapped:
            return measured(mr, phantom.ct, in_hu=(False, True), modalities=("mr", "ct")).pair
        return measured(phantom.ct, mr).pair

    assert hand(facts(tilted)) == "same"
    assert hand(facts(wrong)) == "mirrored"


def test_a_mirrored_target_is_an_error(phantoms):
    texts = said(measured(phantoms[0].ct, mirrored(phantoms[0].mr)))
    assert [severity for severity, _ in texts] == ["error"] and "Left and right differ" in texts[0][1]


def test_of_a_symmetric_patient_nobody_can_tell():
    phantom = draw_phantom("head", 0, 4.0)
    ct, mr = symmetric(phantom.ct), symmetric(phantom.mr)
    for target in (mr, mirrored(mr)):
        pair = measured(ct, target).pair
        assert hand(pair) == "cannot tell"
        assert pair.mirrored_fit == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("anatomy", ["head", "pelvis"])
def test_no_false_alarm_and_no_miss_over_many_patients(anatomy):
    for seed in range(20, 40):
        phantom = draw_phantom(anatomy, seed, 2.5)
        generator = np.random.default_rng(seed)
        other = moved(phantom.mr, generator.uniform(-8, 8, 3), generator.uniform(-6, 6, 3))
        assert hand(measured(phantom.ct, phantom.mr).pair) == "same", seed
        assert hand(measured(phantom.ct, other).pair) == "same", seed
        assert hand(measured(phantom.ct, mirrored(phantom.mr)).pair) == "mirrored", seed
        assert hand(measured(phantom.ct, mirrored(other)).pair) == "mirrored", seed


@pytest.mark.parametrize("orientation", ["LPS", pytest.param("RAS", marks=pytest.mark.slow)])
def test_a_shift_is_measured_and_its_direction_named(phantoms, orientation):
    ct, mr = phantoms[1].ct, phantoms[1].mr
    if orientation == "LPS":
        turn = np.diag([-1.0, -1.0, 1.0, 1.0])
        turn[:2, 3] = np.array(ct.spatial_shape[:2]) - 1
        ct, mr = (Volume(volume.array[::-1, ::-1], volume.affine @ turn) for volume in (ct, mr))
        assert ct.orientation == "LPS"
    shift = np.array([11.0, -10.0, 0.0])
    facts = measured(ct, moved(mr, shift))
    np.testing.assert_allclose(facts.pair.direction_mm, shift, atol=1.5)
    assert facts.pair.shift_mm == pytest.approx(np.linalg.norm(shift), abs=1.5)
    ((severity, text),) = [entry for entry in said(facts) if entry[0] != "note"]
    assert severity == "error" and "--register rigid" in text
    assert re.search(r"1\d\.\d to the right, \d+\.\d to the back", text)
    ((severity, text),) = [
        entry for entry in said(measured(ct, moved(mr, (0, 0, 3.5)))) if entry[0] != "note"
    ]
    assert severity == "warning" and "to the top" in text


def test_headers_with_exchanged_directions_are_recognised(phantoms):
    mr = phantoms[2].mr
    turned = Volume(mr.array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ mr.affine)
    back = np.eye(4)
    back[:3, 3] = (
        (phantoms[2].ct.affine - turned.affine) @ [*((np.array(mr.spatial_shape) - 1) / 2), 1] @ np.eye(4, 3)
    )
    texts = said(measured(phantoms[2].ct, Volume(turned.array, back @ turned.affine)))
    assert texts[0][0] == "error" and "turned over left-right and front-back" in texts[0][1]
    upside_down = said(measured(phantoms[2].ct, mr.with_array(mr.array[:, :, ::-1])))
    assert "turned over head-foot" in upside_down[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 12))
def test_heads_upside_down_are_recognised(seed):
    phantom = draw_phantom("head", (3, seed), 4.0)
    texts = said(measured(phantom.ct, phantom.mr.with_array(phantom.mr.array[:, :, ::-1])))
    assert texts[0][0] == "error" and "turned over head-foot" in texts[0][1]


def test_values_that_are_no_hu_are_told_and_the_rest_is_checked_all_the_same(phantoms, added):
    offset = measured(phantoms[0].ct.with_array(phantoms[0].ct.array + 1024), phantoms[0].mr)
    ((severity, text),) = said(offset)
    assert severity == "error" and "offset by +1024" in text
    assert offset.pair.shift_mm < 1 and offset.source.bone_share > 0.05
    ct, mr, compare = added
    ((severity, text),) = compare(ct.with_array(ct.array + 120), mr)
    assert severity == "warning" and "air at -880 HU" in text
    assert any("No voxel lies below -200" in text for _, text in compare(mr, ct))
    flat = np.where(ct.array > 150, 60, ct.array)
    assert any("shows no bone" in text for _, text in compare(ct.with_array(flat), mr))


@pytest.mark.parametrize(("limit", "severity"), [(240.0, "error"), (600.0, "warning")])
def test_clipped_sources(added, limit, severity):
    ct, mr, compare = added
    (found,) = compare(ct.with_array(np.minimum(ct.array, limit)), mr)
    assert found[0] == severity and f"cut off at {limit:.0f} HU" in found[1]


def test_clipped_targets(added):
    ct, mr, compare = added
    (found,) = compare(ct, mr.with_array(np.minimum(mr.array, np.percentile(mr.array, 95))))
    assert found[0] == "warning" and "the target" in found[1].lower() and "clipped" in found[1]


def test_constant_broken_blank_and_coarse_volumes(added):
    ct, mr, compare = added
    constant = mr.with_array(np.full_like(mr.array, 7))
    assert measured(ct, constant).pair is None
    assert compare(ct, constant) == [
        ("error", "The target (mr.nii.gz) shows nothing: every voxel is 7; export it again.")
    ]
    assert "no number" in compare(ct, mr.with_array(np.full_like(mr.array, np.nan)))[1][1]
    broken = ct.array.copy()
    broken[3:5, 3, 3] = np.nan, np.inf
    facts = measured(ct.with_array(broken), mr)
    assert facts.source.broken == 2 and "2 voxels that are NaN" in said(facts)[0][1]
    assert facts.pair.shift_mm < 3
    blank = mr.array.copy()
    blank[:, :, 10:12] = 0
    assert any("2 blank slices" in text for _, text in compare(ct, mr.with_array(blank)))
    coarse = np.rint(mr.array / mr.array.max() * 12)
    assert any("only 13 different values" in text for _, text in compare(ct, mr.with_array(coarse)))


def test_little_or_no_overlap(phantoms):
    ct, mr = phantoms[0].ct, phantoms[0].mr
    ((severity, text),) = said(measured(ct, moved(mr, (900, 0, 0))))
    assert severity == "error" and "shows 0 %" in text and "do not overlap" in text
    half = mr.affine.copy()
    half[:3, 3] += half[:3, 2] * (mr.spatial_shape[2] // 2)
    texts = said(measured(ct, Volume(mr.array[:, :, mr.spatial_shape[2] // 2 :], half)))
    assert [severity for severity, _ in texts] == ["warning"] and re.search(r"shows \d\d %", texts[0][1])
    assert said(measured(ct, ct, in_hu=(True, True)))[0][1].startswith("Source and target are the same image")


def test_a_target_that_shows_nothing_where_the_source_lies(added):
    ct, mr, compare = added
    beside = np.full((2 * mr.spatial_shape[0], *mr.spatial_shape[1:]), 7, dtype=np.float32)
    beside[mr.spatial_shape[0] :] = mr.array + 7
    ((severity, text),) = compare(ct, Volume(beside, mr.affine))[:1]
    assert severity == "warning" and "cannot be told" in text


@pytest.mark.parametrize("part", [np.s_[5:6, 9:10], np.s_[5:6, 9:12, :3]])
def test_what_is_too_thin_to_be_drawn_is_judged_all_the_same(tmp_path, part, added):
    """In voxels, or in mm where a header counts in metres without saying so."""
    ct, mr, _ = added
    in_metres = np.diag([0.001, 0.001, 0.001, 1]) @ ct.affine
    for name, source, target in (
        ("thin", Volume(ct.array[part], ct.affine), Volume(mr.array[part], mr.affine)),
        ("metres", Volume(ct.array, in_metres), Volume(mr.array, in_metres)),
    ):
        save_volume(source, tmp_path / "raw" / name / "ct.nii.gz")
        save_volume(target, tmp_path / "raw" / name / "mr.nii.gz")
    check(CheckOptions(data=tmp_path / "raw", workers=0))
    content = json.loads((tmp_path / "raw-check" / "check.json").read_text())
    cases = {case["case_id"]: [f["text"] for f in case["findings"]] for case in content["cases"]}
    assert any("look whether the header's spacing is right" in text for text in cases["metres"])
    assert cases["thin"]


def report(name, facts, patient=None, split=None, thumbnail=None):
    findings = judge_case(facts, is_picture=False)
    return CaseReport(name, patient or name, None, split, facts, findings, thumbnail)


def test_copies_under_two_names_are_found_however_they_are_stored(phantoms, good):
    first, second = good
    ct = phantoms[0].ct
    turned = Volume(ct.array[::-1].transpose(1, 0, 2), ct.affine[:, [1, 0, 2, 3]] @ np.diag([1, -1, 1, 1]))
    copy = measured(Volume(turned.array, turned.affine), phantoms[2].mr)
    assert copy.source.digest == first.source.digest != second.source.digest
    found = judge_set([report("a", first), report("b", second), report("c", copy)])
    assert set(found) == {"a", "c"}
    assert found["a"] == [
        Finding(
            "error",
            "The source is, voxel for voxel, that of c, under another patient's name; keep one of them, or "
            "give both one patient identifier.",
        )
    ]
    sides = [report("a", first, "p1", "train"), report("c", first, "p2", "test")]
    assert "two sides of the split (train and test)" in judge_set(sides)["a"][0].text
    same_patient = [report("a", first, "p1", "train"), report("c", first, "p1", "train")]
    assert judge_set(same_patient)["a"][0].severity == "note"
    alike = [report("a", first, "P-01", "train"), report("b", second, "p01", "test")]
    assert "may be the same person as p01" in judge_set(alike)["a"][0].text


def test_a_pair_of_two_patients_stands_out(phantoms, good):
    cases = []
    for n in range(5):
        source, target = replace(good[0].source, digest=f"ct{n}"), replace(good[0].target, digest=f"mr{n}")
        cases.append(report(f"p{n}", replace(good[0], source=source, target=target)))
    strange = report("strange", measured(phantoms[1].ct, moved(phantoms[2].mr, (0, 0, 0))))
    found = judge_set([*cases, strange])
    assert set(found) == {"strange"} and "different patients" in found["strange"][0].text


def write(folder, ct, mr):
    save_volume(ct, folder / "ct.nii.gz")
    if mr is not None:
        save_volume(mr, folder / "mr.nii.gz")


def test_a_raw_folder_is_checked_as_a_whole(tmp_path, capsys, phantoms):
    raw = tmp_path / "raw"
    write(raw / "good", phantoms[0].ct, phantoms[0].mr)
    write(raw / "copy", phantoms[0].ct, phantoms[1].mr)
    write(raw / "lonely", phantoms[2].ct, None)
    write(raw / "cut", phantoms[2].ct, phantoms[2].mr)
    (raw / "cut" / "ct.nii.gz").write_bytes((raw / "good" / "ct.nii.gz").read_bytes()[:900])
    check(CheckOptions(data=raw, workers=0))
    content = json.loads((tmp_path / "raw-check" / "check.json").read_text())
    cases = {case["case_id"]: case for case in content["cases"]}
    assert content["kind"] == "pairs" and content["counts"] == {
        "error": 4,
        "warning": 0,
        "note": 0,
        "fine": 0,
    }
    assert "no mr" in cases["lonely"]["findings"][0]["text"]
    assert "cannot be read" in cases["cut"]["findings"][0]["text"] and cases["cut"]["measured"] is None
    assert "voxel for voxel" in cases["good"]["findings"][0]["text"]
    assert cases["good"]["left_right"] == "same" and cases["good"]["measured"]["pair"]["shift_mm"] < 1
    out = capsys.readouterr().out
    assert re.search(r"^good +error +\d+×\d+×\d+ +5×5×5 +-\d{3,4} ", out, re.M)
    assert "4 cases: 4 with errors" in out and "lonely: error:" in out
    for name in ("good", "copy"):
        shutil.rmtree(raw / name)
    write(raw / "cut2", phantoms[2].ct, phantoms[2].mr)  # a pair by name, so that the folder is recognised
    (raw / "cut2" / "mr.nii.gz").write_bytes(b"")
    with pytest.raises(CasesLeftOutError, match="3 of 3 cases have an error"):
        check(CheckOptions(data=raw, output=tmp_path / "out", workers=0, strict=True))
    assert (tmp_path / "out" / "check.html").is_file()
    with pytest.raises(RequestError, match="no folder"):
        check(CheckOptions(data=tmp_path / "nothing", workers=0))


def test_worker_processes_find_the_same(tmp_path, capsys):
    for number in range(2):
        phantom = draw_phantom("head", number, VALUES_MM)
        write(tmp_path / "raw" / f"p{number}", phantom.ct, phantom.mr)
    found = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        check(CheckOptions(data=tmp_path / "raw", output=out, workers=workers))
        found.append((json.loads((out / "check.json").read_text()), (out / "check.html").read_text()))
    assert found[0] == found[1]
    assert [case["measured"]["pair"]["seen_share"] for case in found[0][0]["cases"]] == [1, 1]


def test_a_prepared_data_set_is_checked_with_its_split(tmp_path, capsys, phantoms):
    raw = tmp_path / "raw"
    write(raw / "p0", phantoms[0].ct, phantoms[0].mr)
    write(raw / "p1", phantoms[1].ct, mirrored(phantoms[1].mr))
    write(raw / "p2", phantoms[0].ct, phantoms[0].mr)
    write(raw / "p3", phantoms[2].ct, None)
    (raw / "splits.json").write_text(json.dumps({"train": ["p0"], "validation": ["p1"], "test": ["p2"]}))
    prepare(PrepareOptions(raw=raw, dataset=tmp_path / "set", workers=0))
    check(CheckOptions(data=tmp_path / "set", output=tmp_path / "out", workers=0))
    content = json.loads((tmp_path / "out" / "check.json").read_text())
    cases = {case["case_id"]: case for case in content["cases"]}
    assert content["kind"] == "prepared" and {c["split"] for c in cases.values()} == {
        "train",
        "validation",
        "test",
    }
    for name, side in (("p0", "train and test"), ("p2", "test and train")):
        assert [f["text"] for f in cases[name]["findings"] if f["severity"] == "error"] == [
            f"The source and the target are, voxel for voxel, those of {'p2' if name == 'p0' else 'p0'}, and "
            f"these are on two sides of the split ({side}), so that a model would be tested on what it was "
            "trained on; keep one of them, or give both one patient identifier."
        ]
    assert [f["text"][:25] for f in cases["p1"]["findings"] if f["severity"] == "error"] == [
        "Left and right differ: th"
    ]
    assert any("Left out by prepare: p3" in finding["text"] for finding in content["findings"])


class Reader(HTMLParser):
    """Collects elements with their attributes, and the text."""

    def __init__(self):
        super().__init__()
        self.elements, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_stands_alone_and_can_be_read_without_seeing_it(phantoms):
    from ct2mri.data.check_picture import thumbnail

    hu = (True, False)
    pair = Pair(phantoms[0].ct, phantoms[0].mr, None, None, ("ct", "mr"), ("ct", "mr"), hu)
    facts, coarse = measure(pair)
    picture = thumbnail(pair.source, pair.target, coarse, hu)
    assert len(picture) < 20_000
    bad = CaseReport("<b>bad</b>", None, None, None, None, [Finding("error", "It is <i>no</i> pair.")])
    reports = worst_first([report("fine", facts, "someone", "train", picture), bad])
    html = page(DataReport("some/raw", "pairs", ("ct", "mr"), reports, [Finding("warning", "Mind & look.")]))
    reader = Reader()
    reader.feed(html)
    assert "<b>bad" not in html and "&lt;b&gt;bad" in html and "<i>no" not in html
    assert (
        not re.search(r'(src|href)="(?!data:|#)', html) and "http://" not in html and "https://" not in html
    )
    assert reader.all("html") == [{"lang": "en"}] and len(reader.all("caption")) == 1
    headings = reader.all("th")
    assert {heading["scope"] for heading in headings} == {"col", "row"}
    assert [heading["scope"] for heading in headings].count("row") == 2
    assert [heading.get("aria-sort") for heading in headings].count("ascending") == 1
    cells = reader.all("td")
    assert len(cells) == 2 * ([heading["scope"] for heading in headings].count("col") - 1)
    (image,) = reader.all("img")
    assert image["alt"].startswith("fine:") and image["width"] and image["height"]
    shown = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
    assert shown.size == (int(image["width"]), int(image["height"]))
    assert reader.text.index("<b>bad</b>") < reader.text.index("someone")  # worst first
    for word in ("Error", "Warning", "Fine", "Mind & look.", "1 case"):
        assert word in reader.text
    # A severity is said in words, not by its colour alone.
    assert len(re.findall(r'class="badge (\w+)"><span aria-hidden="true">. </span>\1', html, re.I)) == len(
        re.findall(r'class="badge', html)
    )


def test_the_picture_shows_each_volume_where_it_lies(phantoms):
    from ct2mri.data.check_picture import thumbnail

    ct, mr = phantoms[0].ct, phantoms[0].mr
    hu = (True, False)

    def panels(target):
        pair = Pair(ct, target, None, None, ("ct", "mr"), ("ct", "mr"), hu)
        coarse = measure(pair)[1]
        image = np.asarray(
            Image.open(io.BytesIO(thumbnail(ct, target, coarse, hu))).convert("L"), dtype=float
        )
        axial = image[: image.shape[0] // 4]
        third = axial.shape[1] // 3
        return axial[:, :third], axial[:, third : 2 * third]

    def middle(panel):
        return float((panel.sum(axis=0) * np.arange(panel.shape[1])).sum() / panel.sum())

    source, target = panels(mr)
    assert middle(source) == pytest.approx(middle(target), abs=4)
    _, shifted = panels(moved(mr, (30, 0, 0)))
    assert middle(shifted) < middle(target) - 5  # the patient's right is on the left


def test_real_templates_of_different_people_are_taken_but_not_for_sure(shared_data):
    ct, mr = (nibabel.load(shared_data / "head_templates" / f"{name}.nii.gz") for name in ("ct", "mr"))
    source, target = (Volume(image.get_fdata(), image.affine) for image in (ct, mr))
    facts = measured(source, target)
    assert hand(facts.pair) == "cannot tell"  # averages of many people are symmetric
    assert facts.pair.shift_mm < 4
    assert not [entry for entry in said(facts) if entry[0] == "error"]


def test_real_slices_are_not_mirrored_and_would_be_found_if_they_were(shared_data):
    hands = {"same": [], "mirrored": []}
    for folder in sorted((shared_data / "synthrad2023_brain_slices").glob("1B?0*"))[::6]:
        ct, mr, mask = (load_picture(folder / f"{name}_axial.png", "axial") for name in ("ct", "mr", "mask"))
        for truth, target in (("same", mr), ("mirrored", mr.with_array(to_canonical(mr)[0].array[::-1]))):
            facts = measured(ct, target, mask=mask, in_hu=(False, False))
            hands[truth].append(hand(facts.pair))
            assert truth == "mirrored" or not [e for e in said(facts, True) if e[0] == "error"]
    assert len(hands["same"]) >= 8
    for truth, told in hands.items():
        assert set(told) <= {truth, "cannot tell"}
        assert told.count(truth) >= 0.7 * len(told)
