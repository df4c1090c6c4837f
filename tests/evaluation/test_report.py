import base64
import copy
import io
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ct2mri.data.io import load_volume, save_volume
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.evaluation.case_pictures import case_columns, worst_median_best
from ct2mri.evaluation.compare import comparison_of
from ct2mri.evaluation.evaluate import evaluate, evaluation_of, pictures_of
from ct2mri.evaluation.pairing import Pair
from ct2mri.evaluation.report import page
from ct2mri.evaluation.report_sections import _patient_order
from ct2mri.evaluation.stability import SETTINGS, verdict
from ct2mri.evaluation.statistics import summarise_patients
from ct2mri.files import write_json
from ct2mri.options.evaluation import CompareOptions, EvaluateOptions

# LPS, and unlike edges: what is shown must not depend on how the voxels are stored.
AFFINE = np.array([[-4.0, 0, 0, 40], [0, -5.0, 0, 50], [0, 0, 6.0, -30], [0, 0, 0, 1]])
SHAPE = (20, 22, 16)
NAMES = ("a", "b", "c", "d", "e")


def make_head(seed):
    """CT and MR of a ball of water with a bony shell and texture in it, in air."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    radius = np.sqrt(i**2 + j**2 + k**2)
    ct = np.where(radius < 0.85, np.where(radius > 0.7, 900, 40), -1000).astype(np.float32)
    mr = np.where(radius < 0.7, 300 + 60 * rng.uniform(size=SHAPE), 20).astype(np.float32)
    return Volume(ct, AFFINE), Volume(mr, AFFINE), Volume((radius < 0.85).astype(np.float32), AFFINE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    for number, name in enumerate(NAMES):
        ct, mr, mask = make_head(number)
        noise = np.random.default_rng(number + 50).standard_normal((3, *SHAPE)).astype(np.float32)
        samples = mr.array + 10 * (number + 1) * noise
        save_volume(ct, root / "ct" / f"{name}.nii.gz")
        save_volume(mr, root / "mr" / f"{name}.nii.gz")
        save_volume(mask, root / "masks" / f"{name}.nii.gz")
        save_volume(mr.with_array(samples.mean(axis=0)), root / "predicted" / f"{name}.nii.gz")
        save_volume(mr.with_array(samples.std(axis=0, ddof=1)), root / "spread" / f"{name}.nii.gz")
        (root / "spread" / f"{name}.json").write_text(json.dumps({"samples": 3}))
    save_volume(mr, root / "mr" / "lonely.nii.gz")
    lines = [f"{name},p{name},{'north' if name < 'c' else 'south'}" for name in NAMES]
    (root / "cases.csv").write_text("\n".join(["case_id,patient_id,centre", *lines]))
    options = EvaluateOptions(
        predictions=root / "predicted",
        targets=root / "mr",
        masks=root / "masks",
        sources=root / "ct",
        uncertainty=root / "spread",
        cases=root / "cases.csv",
        output=root / "report",
    )
    evaluate(options)
    return root, options


@pytest.fixture(scope="module")
def html(folders):
    return (folders[0] / "report" / "evaluation.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.all = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))

    def of(self, tag):
        return [attributes for name, attributes in self.all if name == tag]


def test_the_page_fetches_nothing_and_its_links_lead_somewhere(html):
    elements = Elements(html)
    names = [attributes["id"] for _, attributes in elements.all if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in elements.all:
        for field in ("src", "href", "xlink:href"):
            if field in attributes:
                value = attributes[field]
                assert value.startswith("data:") or value[1:] in names
        for label in (attributes.get("aria-labelledby"),):
            assert label is None or label in names
    for reference in re.findall(r"url\(([^)]*)\)", html):
        assert reference[1:] in names
    assert "default-src 'none'" in html and "font: " not in re.sub(
        r"<style>.*?</style>", "", html, flags=re.S
    )


def test_the_page_can_be_read_without_seeing_it(html):
    elements = Elements(html)
    images = elements.of("img")
    assert len(images) == 3 * 7
    assert all(
        image["alt"].startswith("Case ") and "axial, coronal, sagittal" in image["alt"] for image in images
    )
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in elements.of("svg"))
    assert len(elements.of("svg")) > 15
    assert len(elements.of("caption")) == len(elements.of("table"))
    assert all("scope" in heading for heading in elements.of("th"))
    levels = [int(tag[1]) for tag, _ in elements.all if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_part_of_the_report_is_there(html):
    for words in (
        "Noise floor", "Worst, median and best case", "CT, bone", "CT, soft tissue", "Signed error",
        "Prediction, CT edges", "Spread over samples", "Slice continuity", "Errors by tissue", "By centre",
        "north", "south", "Spread over seeds is not error", "not for diagnosis", "Not predicted: lonely",
        "least-squares gain", "uniform window",
    ):  # fmt: skip
        assert words in html, words
    assert html.count("<tfoot>") == 2 and "noise floor, mean" in html  # all cases, and by centre
    assert "nan" not in re.sub(r'base64,[^"]*|<style>.*?</style>', "", html, flags=re.S).lower().split()


def test_worst_median_and_best_are_told_by_mae(folders):
    report = json.loads((folders[0] / "report" / "evaluation.json").read_text())
    maes = {case["case_id"]: case["values"]["mae"] for case in report["cases"]}
    ranked = sorted(maes, key=maes.get)
    assert worst_median_best(report["cases"]) == [
        ("worst", ranked[-1]), ("median", ranked[2]), ("best", ranked[0]),
    ]  # fmt: skip
    assert [role for role, _ in worst_median_best(report["cases"][:2])] == ["worst", "best"]
    assert [role for role, _ in worst_median_best(report["cases"][:1])] == ["only"]
    undefined = [{"case_id": "x", "values": {"mae": None}}]
    assert worst_median_best(undefined) == []


def test_the_spread_is_in_the_units_of_the_errors(folders):
    report = json.loads((folders[0] / "report" / "evaluation.json").read_text())
    # The truth is what the samples scatter around, so their mean misses it by half of what is expected.
    for case in report["cases"]:
        assert case["values"]["uncertainty.inside_95"] == pytest.approx(0.987, abs=0.012)
        assert case["values"]["uncertainty.spread_ratio"] == pytest.approx(np.sqrt(4), abs=0.3)
        assert case["settings"]["uncertainty"]["samples"] == 3
        assert len(case["spread_groups"]["error"]) == 10


def test_a_hundred_cases_weigh_less_than_ten_megabytes(folders):
    _, options = folders
    report = json.loads((folders[0] / "report" / "evaluation.json").read_text())
    pictures = pictures_of(options, report)
    more = []
    for number in range(100):
        case = copy.deepcopy(report["cases"][number % len(NAMES)])
        case["case_id"], case["patient_id"] = f"case-{number:03d}", f"patient-{number:03d}"
        more.append(case)
    shown = [copy.copy(case) for case in pictures]
    for number, case in enumerate(shown):
        object.__setattr__(case, "case_id", f"case-{number:03d}")
    report["cases"] = more
    # Pictures of noise at the size of the page's columns: nothing weighs more.
    noise = np.random.default_rng(0).integers(0, 256, (900, 315, 3), np.uint8)
    packed = io.BytesIO()
    Image.fromarray(noise).save(packed, "JPEG", quality=86, subsampling=0)
    text = page(report, shown)
    heaviest = 3 * 8 * len(packed.getvalue()) * 4 / 3
    images = sum(len(data) for data in re.findall(r"base64,([^\"]*)", text))
    assert len(text.encode()) - images + 0.5 * heaviest < 10e6
    assert text.count('<tr><th scope="row" data-value=') == 100


def test_pictures_show_the_patient_and_not_the_way_of_storing():
    ct, mr, mask = make_head(3)
    prediction = mr.array.copy()
    prediction[:5] += 100  # i runs to the left here, so this is the patient's right
    pair = Pair(
        "x", prediction / 400, mr.array / 400, mask.array > 0, "", {}, "", mr.grid, "x",
        ct=ct.array, ct_in_hu=True, source=ct.array, source_in_hu=True,
    )  # fmt: skip
    columns = {column.title: column for column in case_columns(pair, None)}
    assert list(columns) == [
        "CT, bone", "CT, soft tissue", "Prediction", "Truth", "Signed error", "Prediction, CT edges",
    ]  # fmt: skip
    assert columns["Prediction"].subtitle == columns["Truth"].subtitle
    error = columns["Signed error"]
    image = np.asarray(Image.open(io.BytesIO(error.jpeg)).convert("RGB")).astype(int)
    axial = image[: image.shape[1] // 2]
    red = axial[..., 0] - axial[..., 2] > 40
    middle = image.shape[1] // 2
    assert red[:, :middle].sum() > 20 * max(red[:, middle:].sum(), 1)  # the patient's right is on the left
    assert [error.scale[place][0] for place in (0, 6, -1)] == pytest.approx([-0.25, 0, 0.25])
    assert columns["Truth"].scale == []


def test_pictures_of_ct_and_of_unknown_sources():
    ct, _, mask = make_head(1)
    pair = Pair(
        "x", ct.array + 20, ct.array, mask.array > 0, "", {}, "", ct.grid, "x", data_range=4095.0, in_hu=True,
        ct=ct.array, ct_in_hu=True,
    )  # fmt: skip
    columns = case_columns(pair, np.full(SHAPE, 10, np.float32))
    assert [column.title for column in columns] == [
        "Prediction", "Truth", "Signed error", "Prediction, CT edges", "Spread over samples",
    ]  # fmt: skip
    assert "HU" in columns[0].subtitle


def test_profiles_run_the_same_way_however_voxels_are_stored():
    profile = {
        "axis": 0, "slice_mm": 2.0, "steps": [1, 2, 3],
        "change_prediction": [1, 2, 3], "change_target": [4, 5, 6],
    }  # fmt: skip
    case = {"profiles": {"sagittal": profile}, "orientation": "RAS"}
    assert _patient_order(case, "sagittal") == ([0, 2, 4], [1, 2, 3], [4, 5, 6])
    case["orientation"] = "LPS"
    assert _patient_order(case, "sagittal") == ([0, 2, 4], [3, 2, 1], [6, 5, 4])
    assert _patient_order(case, "axial") is None


def test_a_report_without_sources_masks_or_spread_is_a_page_as_well(folders, tmp_path):
    root, _ = folders
    evaluate(
        EvaluateOptions(
            predictions=root / "predicted" / "a.nii.gz", targets=root / "mr" / "a.nii.gz", output=tmp_path
        )
    )
    text = (tmp_path / "evaluation.html").read_text()
    assert "The case" in text and "Uncertainty" not in text and "Errors by tissue" not in text


def test_identical_volumes_say_so_in_the_page(folders, tmp_path):
    root, _ = folders
    evaluate(EvaluateOptions(predictions=root / "mr", targets=root / "mr", output=tmp_path))
    text = (tmp_path / "evaluation.html").read_text()
    assert "identical" in text and "inf" not in re.findall(r">\s*(\w+)\s*<", text)


def test_a_target_that_tells_no_scale_leaves_no_number_on_the_page(folders, tmp_path):
    root, _ = folders
    mr = load_volume(root / "mr" / "a.nii.gz")
    save_volume(mr.with_array(-mr.array), tmp_path / "a.nii.gz")
    evaluate(
        EvaluateOptions(
            predictions=root / "predicted" / "a.nii.gz",
            targets=tmp_path / "a.nii.gz",
            masks=root / "masks",
            sources=root / "ct",
            uncertainty=root / "spread",
            output=tmp_path / "report",
        )
    )
    assert "tells no scale" in (tmp_path / "report" / "evaluation.html").read_text()
    (case,) = json.loads((tmp_path / "report" / "evaluation.json").read_text())["cases"]
    assert not case["profiles"] and not case["spread_groups"]
    assert set(case["values"].values()) == {None} and set(case["values"]) == set(case["notes"])


def test_stability_is_in_the_appendix_beside_the_error(folders, tmp_path):
    root, _ = folders
    words = {"seed": "another seed of the noise", "hu_higher": "HU 20 higher"}
    found = {
        name: {
            measure: summarise_patients(dict.fromkeys(NAMES[:2], value), {n: n for n in NAMES}).to_json()
            for measure, value in values.items()
        }
        for name, values in {
            "seed": {"source_change": None, "change": 0.0, "ssim": 1.0, "altered": 0.0, "largest_ml": 0.0},
            "hu_higher": {
                "source_change": 20, "change": 5e-3, "ssim": 0.9, "altered": 0.034, "largest_ml": 7.1
            },
        }.items()
    }  # fmt: skip
    values = {"seed": {"change": 0.0}, "hu_higher": {"change": 5e-3}}
    content = {
        "format_version": 2, "in_hu": False, "source_in_hu": True, "data_range": 400.0, "changes": words,
        "request": {
            "model": {"name": "tiny & small"}, "num_inference_steps": 4, "sampler": "ddim", "samples": 1
        },
        "settings": SETTINGS, "statistics": {}, "summary": found, "verdict": verdict(found, words),
        "cases": [{"case_id": name, "patient_id": name, "values": values} for name in NAMES[:2]],
    }  # fmt: skip
    write_json(tmp_path / "stability.json", content)
    options = {"predictions": root / "predicted", "targets": root / "mr", "masks": root / "masks"}
    evaluate(EvaluateOptions(**options, stability=tmp_path, output=tmp_path / "report"))
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    shares = []
    for case in report["cases"][:2]:
        scale = case["factors"]["gain"] / case["factors"]["reference"]
        shares.append(5e-3 * 400 * scale / case["values"]["mae"])
    of_error = report["stability"]["of_error"]["hu_higher"]
    assert of_error["mean"] == pytest.approx(np.mean(shares)) and of_error["patients"] == 2
    text = (tmp_path / "report" / "evaluation.html").read_text()
    assert "Appendix: stability" in text and "Hallucinates under small changes" in text
    assert "tiny &amp; small" in text and "3.40%" in text and "hallucinates, by the rule" in text
    plain = page(evaluation_of(EvaluateOptions(**options)), [])
    assert "Appendix" not in plain


def test_a_stability_of_others_is_refused_before_anything_is_measured(folders, tmp_path, monkeypatch):
    root, _ = folders
    content = {name: {} for name in ("request", "changes", "summary", "verdict")}
    content |= {"format_version": 2, "in_hu": False, "cases": [{"case_id": "another"}]}
    write_json(tmp_path / "stability.json", content)
    monkeypatch.setattr("ct2mri.evaluation.evaluate.measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(RequestError, match=r"No case is both in the stability \(another\)"):
        evaluation_of(
            EvaluateOptions(predictions=root / "predicted", targets=root / "mr", stability=tmp_path)
        )


def test_reports_of_another_kind_are_not_taken_for_each_other(folders, tmp_path):
    """They have format versions of the same number."""
    root, options = folders
    report = root / "report" / "evaluation.json"
    with pytest.raises(RequestError, match=r"evaluation\.json is no report of `ct2mri stability`"):
        evaluate(replace(options, stability=report, output=None))
    content = {name: {} for name in ("request", "changes", "summary", "verdict")}
    write_json(tmp_path / "stability.json", content | {"format_version": 2, "in_hu": False, "cases": []})
    with pytest.raises(RequestError, match=r"stability\.json is no report of `ct2mri evaluate`"):
        comparison_of(CompareOptions(systems=[tmp_path / "stability.json", report]))


def test_spreads_that_lack_a_case_are_refused(folders, tmp_path):
    root, _ = folders
    shutil.copy(root / "spread" / "a.nii.gz", tmp_path / "a.nii.gz")
    with pytest.raises(RequestError, match="no spread for b, c, d, e"):
        evaluation_of(
            EvaluateOptions(predictions=root / "predicted", targets=root / "mr", uncertainty=tmp_path)
        )


TRY_OUT = """<script>
const table = document.getElementById("table-cases");
const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].dataset.value).join("");
const before = names(), head = table.tHead.rows[0].cells[0].querySelector("button");
head.click();
const once = names();
head.click();
const twice = names(), sorted = table.tHead.rows[0].cells[0].getAttribute("aria-sort");
const find = document.querySelector('[data-for="table-cases"] input');
find.value = "south"; find.dispatchEvent(new Event("input"));
const shown = [...table.tBodies[0].rows].filter(row => !row.hidden).length;
const picture = document.querySelector(".pictures button");
picture.click();
const wide = picture.getAttribute("aria-expanded");
document.body.dataset.result = [before, once, twice, sorted, shown, wide].join(" ");
</script></body>"""


def test_the_page_works_in_a_browser(html, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed, so the page is not tried in a browser")
    (tmp_path / "page.html").write_text(html.replace("</body>", TRY_OUT), encoding="utf-8")
    done = subprocess.run(
        [
            browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    result = re.search(r'data-result="([^"]*)"', done.stdout)
    assert result is not None
    assert result[1].split() == ["edcba", "abcde", "edcba", "descending", "3", "true"]
    assert base64.b64encode(b"\xff\xd8\xff").decode() in done.stdout
