"""Stages that look values up: the table and the mean."""

import numpy as np
import pytest
import torch

import tiny
from ct2mri.diffusion import SeededNoise
from ct2mri.errors import RequestError
from ct2mri.models.lookup import LookupTable, MeanVolumes, resized
from ct2mri.pipeline import TranslationPipeline
from ct2mri.stages import LookupStage, MeanStage, load_stage

SHAPE = (5, 7, 6)


def lookup(channel=0):
    table = LookupTable.of(torch.tensor([-1.0, -0.5, 1.0]), torch.tensor([-1.0, 0.5, 0.0]))
    return LookupStage(table, channel=channel)


def mean(shape=(3, 4, 2), **others):
    volume = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return MeanStage(MeanVolumes.of({"volume": volume, **others}))


def body(shape=SHAPE):
    inside = torch.zeros(1, *shape)
    inside[:, 1:4, 2:6, 3:5] = 1
    return inside


def test_a_table_is_numpys_interpolation():
    rng = np.random.default_rng(0)
    knots, values = np.sort(rng.uniform(-1, 1, 40)), rng.uniform(-1, 1, 40)
    at = np.concatenate([rng.uniform(-1.2, 1.2, 500), knots])
    table = LookupTable.of(torch.from_numpy(knots), torch.from_numpy(values))
    found = table(torch.from_numpy(at).float())
    np.testing.assert_allclose(found, np.interp(at, knots, values), atol=1e-4)
    one = LookupTable.of(torch.tensor([0.2]), torch.tensor([0.7]))
    assert torch.equal(one(torch.tensor([-1.0, 0.2, 1.0])), torch.full((3,), 0.7))


def test_the_lookup_stage_takes_its_channel_and_leaves_air_around_the_body():
    source = torch.rand(2, *SHAPE) * 2 - 1
    drawn = lookup(1).sample({"source": source, "body": body()}, SeededNoise(0))
    inside = body() > 0
    assert torch.equal(drawn[inside], lookup().table(source[1:])[inside])
    assert (drawn[~inside] == -1).all()
    everywhere = lookup(1).sample({"source": source}, SeededNoise(0))
    assert torch.equal(everywhere[inside], drawn[inside])
    assert (everywhere[~inside] > -1).any()


def test_the_mean_stage_fills_the_box_of_the_body():
    stage = mean()
    drawn = stage.sample({"source": torch.zeros(1, *SHAPE), "body": body()}, SeededNoise(0))
    assert torch.equal(drawn[0, 1:4, 2:6, 3:5], stage.means.get_buffer("volume"))
    around = torch.ones(SHAPE, dtype=torch.bool)
    around[1:4, 2:6, 3:5] = False
    assert (drawn[0][around] == -1).all()


def test_means_of_another_size_keep_what_is_constant_and_what_is_linear():
    ramp = torch.linspace(-1, 1, 9)[:, None, None].expand(9, 4, 5)
    larger = resized(ramp, (18, 6, 3))
    assert larger.shape == (18, 6, 3)
    steps = larger[1:-1, 0, 0].diff()  # beyond the outer voxels' centres nothing is known
    torch.testing.assert_close(steps, torch.full_like(steps, 0.125), atol=1e-6, rtol=0)
    assert torch.equal(larger[:, :1, :1].expand_as(larger), larger)


def test_slices_have_means_of_their_own():
    axial = torch.full((4, 4, 1), 0.5)
    stage = mean(axial=axial)
    slice_body = torch.zeros(1, 8, 9, 1)
    slice_body[:, 2:6, 3:7] = 1
    drawn = stage.sample({"source": torch.zeros(1, 8, 9, 1), "body": slice_body}, SeededNoise(0))
    assert (drawn[slice_body > 0] == 0.5).all()
    with pytest.raises(RequestError, match=r"made from volume, axial cases, this one is coronal"):
        stage.sample({"source": torch.zeros(1, 8, 1, 9), "body": torch.ones(1, 8, 1, 9)}, SeededNoise(0))


def test_what_they_cannot_do_is_refused():
    condition = {"source": torch.zeros(1, *SHAPE), "body": body()}
    for stage in (lookup(), mean()):
        with pytest.raises(RequestError, match=f"A {stage.kind} stage draws at once"):
            stage.sample(condition, SeededNoise(0), num_inference_steps=2)
        with pytest.raises(RequestError, match="leave out --sampler"):
            TranslationPipeline(tiny.plan(), [stage]).check(sampler="ddim")
    for empty in ({}, {"body": torch.zeros(1, *SHAPE)}):
        with pytest.raises(RequestError, match="needs to know the body"):
            mean().sample({"source": condition["source"], **empty}, SeededNoise(0))
    with pytest.raises(RequestError, match="source window 1, counted from 0, and the plan has 1"):
        TranslationPipeline(tiny.plan(), [lookup(1)])


@pytest.mark.parametrize("stage", [lookup(), mean()], ids=["lookup", "mean"])
def test_pipelines_of_them_come_back_from_disk(stage, tmp_path):
    pipeline, ct = TranslationPipeline(tiny.plan(), [stage], {"name": "free"}), tiny.ct()
    pipeline.save_pretrained(tmp_path / "model")
    again = TranslationPipeline.from_pretrained(tmp_path / "model", "cpu")
    result = pipeline.translate(ct, num_inference_steps=1)
    assert np.array_equal(result.volume.array, again(ct).array)
    assert again.hash == pipeline.hash
    assert result.volume.grid.matches(ct.grid)
    assert result.volume.array.max() > 0
    assert f"{stage.kind}: " in (tmp_path / "model" / "README.md").read_text()
    assert isinstance(load_stage(tmp_path / "model" / stage.kind), type(stage))


def test_a_kind_that_is_not_known_is_named(tmp_path):
    pipeline = TranslationPipeline(tiny.plan(), [lookup()], {"name": "free"})
    pipeline.save_pretrained(tmp_path / "model")
    stage, facts = tmp_path / "model" / "lookup" / "stage.json", tmp_path / "model" / "pipeline.json"
    stage.write_text(stage.read_text().replace('"lookup"', '"oracle"'))
    with pytest.raises(RequestError, match=r"is a `oracle` stage, and this program knows slices, latents"):
        load_stage(stage.parent)
    with pytest.raises(RequestError, match=r"holds a `oracle` stage; a `lookup` stage was asked for"):
        TranslationPipeline.from_pretrained(tmp_path / "model", "cpu")
    before = facts.read_text()
    facts.write_text(before.replace('"lookup"', '"oracle"'))
    with pytest.raises(RequestError, match=r"is a `oracle` stage, and this program knows slices, latents"):
        TranslationPipeline.from_pretrained(tmp_path / "model", "cpu")
    facts.write_text(before.replace('"lookup"', '"../lookup"'))
    with pytest.raises(RequestError, match=r"pipeline.json is damaged"):
        TranslationPipeline.from_pretrained(tmp_path / "model", "cpu")
