import json

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

import tiny
from ct2mri.data.io import save_volume
from ct2mri.data.volume import Volume
from ct2mri.devices import choose_device
from ct2mri.errors import RequestError
from ct2mri.marking import safety_sentence, short_description, short_spread_description
from ct2mri.pipeline import TranslationPipeline


class Copies(nn.Module):
    """A network for one step that answers with the condition itself: −x_0 is v at the last timestep."""

    condition_channels = 1

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, sample, timestep, condition):
        return -condition


@pytest.mark.parametrize("parts", [{"latents": None}, {}], ids=["slices", "both"])
@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((19, 24, 17), tiny.OBLIQUE),
        ((25, 13, 22), np.diag([-3.1, 5.0, -4.0, 1.0])),
        ((16, 23, 9), np.array([[0, 0, 6, 1], [4, 0, 0, 2], [0, -4, 0, 3], [0, 0, 0, 1.0]])),
        ((32, 31, 1), np.diag([3.0, 3.0, 5.0, 1.0])),
    ],
    ids=["oblique", "flipped", "permuted", "one slice"],
)
def test_the_result_lies_on_the_grid_of_the_input(parts, shape, affine):
    ct = tiny.ct(shape, affine)
    result = tiny.pipeline(**parts).translate(ct)
    for volume in (result.volume, result.draft):
        if volume is not None:
            assert np.array_equal(volume.affine, ct.affine)
            assert volume.spatial_shape == ct.spatial_shape
            assert volume.array.dtype == np.float32
            assert np.isfinite(volume.array).all()
            assert volume.array.min() >= 0
            assert 0 < volume.array.max() <= 200
    assert (result.draft is None) == ("latents" in parts)
    assert result.warnings == []


def test_the_result_overlays_on_its_input():
    stage = tiny.slices_stage(Copies(), num_inference_steps=1)
    plan = tiny.plan(source_windows=[[-1000.0, 1000.0]], spacing=None)
    ct = tiny.ct()
    mr = TranslationPipeline(plan, [stage])(ct)
    inside = mr.array > 0
    # The window's width of 2000 HU became 200 units: a copy of the CT, where the body is.
    expected = (ct.array.clip(-1000, 1000) + 1000) / 10
    np.testing.assert_allclose(mr.array[inside], expected[inside], atol=1e-2)
    body = ct.array > -300
    assert (inside & body).sum() > 0.97 * body.sum()
    assert not mr.array[~body].any()


def test_resampled_results_overlay_too():
    stage = tiny.slices_stage(Copies(), num_inference_steps=1)
    ct = tiny.ct((40, 50, 36), tiny.OBLIQUE @ np.diag([0.5, 0.5, 0.5, 1.0]))
    plan = tiny.plan(source_windows=[[-1000.0, 1000.0]], spacing=(2.0, 2.0, 2.0))
    mr = TranslationPipeline(plan, [stage])(ct)
    places = np.argwhere(np.ones(ct.spatial_shape)).reshape(*ct.spatial_shape, 3)

    def centre_of_bone(array, soft):
        weight = np.clip(array - 1.5 * soft, 0, None)
        return (weight[..., None] * places).sum((0, 1, 2)) / weight.sum()

    moved = centre_of_bone(mr.array, 104) - centre_of_bone((ct.array + 1000) / 10, 104)
    assert np.abs(moved).max() < 0.1  # voxels of 1.5 mm
    soft = (np.abs(ct.array - 40) < 20) & (mr.array > 0)
    assert abs(np.median(mr.array[soft]) - 104) < 1


def test_a_mask_limits_the_result():
    ct = tiny.ct()
    mask = np.zeros(ct.spatial_shape, dtype=np.float32)
    mask[8:12, 9:15, 6:11] = 1
    pipeline = tiny.pipeline(latents=None, plan=tiny.plan(spacing=None))
    mr = pipeline(ct, mask=ct.with_array(mask))
    assert not mr.array[mask == 0].any()
    assert mr.array[mask == 1].any()
    far = Volume(mask, tiny.OBLIQUE + np.array([[0, 0, 0, 500.0], [0] * 4, [0] * 4, [0] * 4]))
    with pytest.raises(RequestError, match=r"no voxel above 0.5 where the source volume lies"):
        pipeline(ct, mask=far)


def test_the_seed_decides_and_the_batch_size_does_not():
    pipeline = tiny.pipeline()
    ct = tiny.ct()
    first = pipeline(ct, seed=3).array
    assert np.array_equal(first, pipeline(ct, seed=3).array)
    assert not np.allclose(first, pipeline(ct, seed=4).array)
    only = tiny.pipeline(latents=None)
    drawn = only(ct).array
    only.stages[0].batch_size = 3
    np.testing.assert_allclose(only(ct).array, drawn, atol=0.02)


def test_steps_go_to_the_last_stage():
    told = []
    pipeline = tiny.pipeline()
    mr = pipeline(tiny.ct(), num_inference_steps=5, on_step=lambda *step: told.append(step))
    totals = {stage: total for stage, _, total in told}
    assert totals["latents"] == 5
    assert totals["slices"] % 2 == 0  # batches of the stage's own 2 steps
    assert [stage for stage, *_ in told] == sorted((stage for stage, *_ in told), reverse=True)
    assert not np.allclose(mr.array, pipeline(tiny.ct()).array)
    other = pipeline(tiny.ct(), num_inference_steps=5, sampler="ddpm")
    assert not np.allclose(mr.array, other.array)


def test_samples_are_averaged_and_their_spread_told():
    pipeline, ct = tiny.pipeline(plan=tiny.plan(spacing=None)), tiny.ct()
    singles = [pipeline.translate(ct, seed=seed) for seed in (7, 8, 9)]
    told = []
    result = pipeline.translate(ct, seed=7, samples=3, on_step=lambda *step: told.append(step))
    prepared = np.stack([single.volume.array for single in singles])
    # Negative values are cut off after averaging, in the single results before: compare where neither was.
    above = (prepared > 0).all(axis=0)
    np.testing.assert_allclose(result.volume.array[above], prepared.mean(axis=0)[above], atol=1e-3)
    np.testing.assert_allclose(result.spread.array[above], prepared.std(axis=0, ddof=1)[above], atol=1e-3)
    assert above.sum() > 100
    assert result.spread.array[above].max() > 0
    assert singles[0].spread is None
    assert result.warnings == []
    assert [step for stage, step, _ in told if stage == "latents"] == [1, 2, 3, 4, 5, 6]
    assert {total for stage, _, total in told if stage == "latents"} == {6}


def test_what_a_script_saves_is_marked_as_synthetic(tmp_path):
    result = tiny.pipeline().translate(tiny.ct(), samples=2)
    assert result.draft is not None
    assert result.spread is not None
    marks = [short_description(tiny.plan())] * 2 + [short_spread_description(tiny.plan())]
    for volume, mark in zip((result.volume, result.draft, result.spread), marks, strict=True):
        save_volume(volume, tmp_path / "a.nii.gz")
        assert nibabel.load(tmp_path / "a.nii.gz").header["descrip"].item().decode() == mark
    save_volume(result.volume.with_array(result.volume.array * 2), tmp_path / "b.mha")
    assert marks[0].encode() in (tmp_path / "b.mha").read_bytes()[:2000]
    save_volume(result.volume, tmp_path / "c.nii.gz", description="Another remark")
    assert nibabel.load(tmp_path / "c.nii.gz").header["descrip"].item() == b"Another remark"


def test_samples_of_a_single_step_are_said_to_be_alike():
    result = tiny.pipeline(latents=None).translate(tiny.ct(), num_inference_steps=1, samples=2)
    assert not result.spread.array.any()
    assert any("All samples are alike" in sentence for sentence in result.warnings)


def test_a_pipeline_of_the_3d_stage_alone():
    pipeline = tiny.pipeline(slices=None, latents=tiny.latents_stage(condition=["source"]))
    ct = tiny.ct()
    result = pipeline.translate(ct)
    assert result.draft is None
    assert result.volume.grid.matches(ct.grid)
    assert [stage.kind for stage in pipeline.stages] == ["latents"]


def test_progress_can_cancel():
    def cancel(stage, step, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.pipeline()(tiny.ct(), on_step=cancel)


# --- bad input -------------------------------------------------------------------------------------------


def test_what_is_no_ct_is_refused():
    pipeline, ct = tiny.pipeline(), tiny.ct()
    with pytest.raises(RequestError, match=r"No voxel lies below -200 HU .* looks like an MR"):
        pipeline(ct.with_array((ct.array.clip(0) + 10) / 5))
    with pytest.raises(RequestError, match="modality is MR; give a CT"):
        pipeline(Volume(ct.array, ct.affine, {"modality": "MR"}))
    broken = ct.array.copy()
    broken[3, 4, 5] = np.nan
    with pytest.raises(RequestError, match=r"1 of .* voxels are NaN or infinite"):
        pipeline(ct.with_array(broken))
    with pytest.raises(RequestError, match="No body was found"):
        pipeline(ct.with_array(np.full_like(ct.array, -1000)))
    with pytest.raises(RequestError, match="offset by"):
        pipeline(ct.with_array(ct.array + 1024))


def test_what_is_no_volume_at_all_is_told():
    pipeline = tiny.pipeline(latents=None)
    for given in ("ct.nii.gz", tiny.ct().array):
        with pytest.raises(TypeError, match=f"A Volume is needed, .* got {type(given).__name__}"):
            pipeline(given)
    assert repr(pipeline) == "TranslationPipeline(tiny: ct to mr by slices, on cpu)"


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_steps_are_refused_before_anything_is_done(steps):
    with pytest.raises(RequestError, match=f"1 to 1000 steps, got {steps}"):
        tiny.pipeline()(tiny.ct(), num_inference_steps=steps, on_step=lambda *_: pytest.fail("it began"))
    with pytest.raises(RequestError, match="samples is at least 1, got 0"):
        tiny.pipeline().translate(tiny.ct(), samples=0)


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(RequestError, match="needs one stage or more, each of another kind; got none"):
        TranslationPipeline(tiny.plan(), [])
    with pytest.raises(RequestError, match="got slices, slices"):
        TranslationPipeline(tiny.plan(), [tiny.slices_stage(), tiny.slices_stage()])
    with pytest.raises(RequestError, match="the stage that draws them is missing"):
        tiny.pipeline(slices=None)
    with pytest.raises(RequestError, match="plan has 2 source windows, the slices stage was trained with 1"):
        tiny.pipeline(plan=tiny.plan(source_windows=[[-1024.0, 3000.0], [0.0, 80.0]]))


def test_unknown_and_absent_devices():
    with pytest.raises(RequestError, match="auto, cpu, cuda or mps, got tpu"):
        choose_device("tpu")
    assert choose_device("cpu") == torch.device("cpu")
    for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if there:
            assert choose_device("auto").type != "cpu"
        else:
            with pytest.raises(
                RequestError, match=f"There is no {name} on this machine; choose --device auto"
            ):
                choose_device(name)


def test_numbers_that_are_not_finite_are_refused():
    pipeline = tiny.pipeline(latents=None)
    with torch.no_grad():
        next(pipeline.stages[0].network.parameters()).fill_(float("nan"))
    with pytest.raises(RequestError, match="slices stage of tiny drew numbers that are not finite"):
        pipeline(tiny.ct())


def test_warnings_of_the_file_and_the_plan_are_passed_on():
    ct = tiny.ct()
    ct = Volume(ct.array, ct.affine, {"warnings": ["One slice only."]})
    pipeline = tiny.pipeline(plan=tiny.plan(assumptions=["Air is −1000."]))
    assert pipeline.translate(ct).warnings == ["One slice only.", "Assumed: Air is −1000."]
    with pytest.warns(UserWarning) as told:
        pipeline(ct)
    assert [str(w.message) for w in told if w.category is UserWarning] == [
        "One slice only.",
        "Assumed: Air is −1000.",
    ]


# --- on disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    tiny.pipeline(plan=tiny.plan(anatomy="head", assumptions=["Air is −1000."])).save_pretrained(
        tmp_path / "m"
    )
    return tmp_path / "m"


@pytest.mark.parametrize(
    "parts",
    [{}, {"latents": None}, {"slices": None, "latents": tiny.latents_stage(condition=["source"])}],
    ids=["both", "slices", "latents"],
)
def test_a_saved_pipeline_gives_bit_equal_results(parts, tmp_path):
    pipeline, ct = tiny.pipeline(**parts), tiny.ct()
    pipeline.save_pretrained(tmp_path / "model")
    again = TranslationPipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert np.array_equal(pipeline(ct).array, again(ct).array)
    assert (again.name, again.hash) == ("tiny", pipeline.hash)
    files = {path.name for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert files <= {
        "README.md", "config.json", "model.safetensors", "pipeline.json", "plan.json", "stage.json"
    }  # fmt: skip
    facts = json.loads((tmp_path / "model" / "pipeline.json").read_text())
    assert facts["format_version"] == 1
    assert facts["stages"] == [stage.kind for stage in pipeline.stages]


def test_the_hash_tells_weights_apart(folder):
    assert tiny.pipeline().hash == TranslationPipeline.from_pretrained(folder, "cpu").hash
    assert tiny.pipeline(slices=tiny.slices_stage(seed=1)).hash != tiny.pipeline().hash
    assert tiny.pipeline(latents=None).hash != tiny.pipeline().hash


def test_no_patient_is_named_in_a_model(folder):
    assert tiny.plan().split.train
    plan = TranslationPipeline.from_pretrained(folder, "cpu").plan
    assert plan.split.patient_ids == []
    assert plan.anatomy == "head"
    assert plan.target_range == (0.0, 200.0)


def test_the_model_card(folder):
    text = (folder / "README.md").read_text()
    sentence = safety_sentence(tiny.plan())
    for part in ("# tiny", sentence, "head", "-1024 to 3000", "Air is −1000.", "No medical device"):
        assert part in text
    assert text.startswith("---\nlibrary_name: ct2mri\n")


def test_the_model_card_tells_each_training_by_itself_and_no_more_digits_than_are_worth(tmp_path):
    run = {"steps": 700, "best": {"step": 525, "score": 0.05756840109825134}, "seed": 0}
    pipeline = tiny.pipeline(latents=None)
    pipeline.card["training"] = {"slices": {"steps": 6, "seed": 1}, "latents": run}
    pipeline.write_card(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert (
        "- Training: slices: steps 6, seed 1; latents: steps 700, best (step 525, score 0.05757), seed 0\n"
        in text
    )


@pytest.mark.parametrize(
    "missing",
    [
        "pipeline.json",
        "plan.json",
        "slices",
        "slices/stage.json",
        "slices/model.safetensors",
        "vqvae",
        "latents",
    ],
)
def test_a_missing_part_is_named(folder, missing):
    path = folder / missing
    path.rename(folder.parent / "away")
    with pytest.raises(RequestError, match=missing.split("/")[-1]):
        TranslationPipeline.from_pretrained(folder, "cpu")


def test_what_is_no_model_folder_is_refused(folder, tmp_path):
    with pytest.raises(RequestError, match="There is no model folder"):
        TranslationPipeline.from_pretrained(tmp_path / "nowhere", "cpu")
    with pytest.raises(RequestError, match=r"no pipeline.json; give a folder"):
        TranslationPipeline.from_pretrained(folder / "slices", "cpu")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(RequestError, match="the run of one stage, and `ct2mri export` makes a model of it"):
        TranslationPipeline.from_pretrained(tmp_path / "run", "cpu")
    path = folder / "pipeline.json"
    facts = json.loads(path.read_text())
    for content, part in [
        (json.dumps(facts | {"format_version": 9}), "format_version 9.*update ct2mri"),
        (json.dumps({"format_version": 1}), "pipeline.json is damaged"),
        ("nonsense", "pipeline.json is damaged"),
    ]:
        path.write_text(content)
        with pytest.raises(RequestError, match=part):
            TranslationPipeline.from_pretrained(folder, "cpu")


def test_saving_replaces_a_pipeline_but_nothing_else(folder, tmp_path):
    tiny.pipeline(latents=None).save_pretrained(folder)
    assert not (folder / "latents").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(RequestError, match="holds something other than a pipeline"):
        tiny.pipeline().save_pretrained(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    (folder / "predictions").mkdir()
    (folder / "predictions" / "mr.nii.gz").write_text("hours of work")
    before = (folder / "pipeline.json").read_text()
    with pytest.raises(RequestError, match="holds predictions beside its pipeline"):
        tiny.pipeline().save_pretrained(folder)
    assert (folder / "predictions" / "mr.nii.gz").read_text() == "hours of work"
    assert (folder / "pipeline.json").read_text() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("place", [".", ".."])
def test_a_pipeline_does_not_take_the_place_of_where_one_is(place, tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside" if place == "." else tmp_path)
    with pytest.raises(RequestError, match="give the folder by its name, from outside"):
        tiny.pipeline().save_pretrained(place)
    assert [path.name for path in tmp_path.rglob("*")] == ["inside"]
