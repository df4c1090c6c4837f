import json

import numpy as np
import pytest
import torch

import tiny
from ct2mri.errors import RequestError
from ct2mri.export import export
from ct2mri.files import write_json
from ct2mri.options.translation import ExportOptions
from ct2mri.pipeline import TranslationPipeline
from ct2mri.stage_files import file_hash
from ct2mri.stages import save_vqvae


def record(run, stage, plan=None):
    (plan or tiny.plan()).write(run / "plan.json")
    facts = {"stage": stage, "seed": 3, "steps": 70, "options": {"data": "/home/somebody/data"}}
    write_json(run / "run.json", facts)
    return run


@pytest.fixture
def runs(tmp_path):
    """Runs of the three stages, trained for one another: drafts were drawn with settings of their own."""
    slices, vqvae, latents = (tmp_path / name for name in ("slices", "vqvae", "latents"))
    tiny.slices_stage().save_stage(record(slices, "slices") / "best")
    autoencoder = tiny.vqvae()
    save_vqvae(autoencoder, record(vqvae, "vqvae") / "best")
    save_vqvae(autoencoder, latents / "vqvae")
    facts = {
        "model": file_hash(slices / "best" / "model.safetensors"),
        "sampler": "ddpm",
        "num_inference_steps": 3,
        "seed": 0,
        "orientations": ["axial", "coronal"],
        "out_of_fold": True,
    }
    tiny.latents_stage(autoencoder=autoencoder, draft=facts).save_stage(record(latents, "latents") / "best")
    return {"slices": slices, "vqvae": vqvae, "latents": latents}


def make(tmp_path, runs, *names, **options):
    chosen = {name: runs[name] for name in names}
    export(ExportOptions(output=tmp_path / "model", **chosen, **options))
    return TranslationPipeline.from_pretrained(tmp_path / "model", "cpu")


def test_all_stages(tmp_path, runs, capsys):
    pipeline = make(tmp_path, runs, "slices", "vqvae", "latents", name="our heads")
    assert pipeline.name == "our heads"
    slices = tiny.slices_stage(sampler="ddpm", num_inference_steps=3, orientations=("axial", "coronal"))
    expected = tiny.pipeline(slices=slices)
    assert np.array_equal(pipeline(tiny.ct()).array, expected(tiny.ct()).array)
    assert "slices and latents" in capsys.readouterr().out
    text = (tmp_path / "model" / "README.md").read_text()
    assert "# our heads" in text
    assert "steps 70" in text
    assert not [p for p in (tmp_path / "model").rglob("*") if p.is_file() and b"somebody" in p.read_bytes()]


def test_the_vqvae_that_the_run_kept_is_taken_where_none_is_given(tmp_path, runs):
    pipeline = make(tmp_path, runs, "slices", "latents")
    assert [stage.kind for stage in pipeline.stages] == ["slices", "latents"]
    assert pipeline.name == "model"


def test_the_2d_stage_alone_is_usable(tmp_path, runs):
    pipeline = make(tmp_path, runs, "slices")
    assert np.array_equal(pipeline(tiny.ct()).array, tiny.pipeline(latents=None)(tiny.ct()).array)
    assert sorted(p.name for p in (tmp_path / "model").iterdir() if p.is_dir()) == ["slices"]


def test_the_3d_stage_alone_is_usable_on_the_source(tmp_path, runs):
    stage = tiny.latents_stage(condition=["source"])
    stage.save_stage(runs["latents"] / "best")
    pipeline = make(tmp_path, runs, "vqvae", "latents")
    assert np.array_equal(
        pipeline(tiny.ct()).array, tiny.pipeline(slices=None, latents=stage)(tiny.ct()).array
    )


def test_an_older_pipeline_is_replaced(tmp_path, runs, capsys):
    make(tmp_path, runs, "slices", "latents")
    assert "in place of" not in capsys.readouterr().out
    assert len(make(tmp_path, runs, "slices").stages) == 1
    assert "in place of the model that was there" in capsys.readouterr().out


def test_stages_that_were_not_trained_for_one_another_are_refused(tmp_path, runs):
    other = tmp_path / "other"
    tiny.slices_stage(seed=9).save_stage(record(other, "slices") / "best")
    with pytest.raises(RequestError, match=r"latents was trained on drafts of another model than .*other"):
        make(tmp_path, runs | {"slices": other}, "slices", "latents")
    save_vqvae(tiny.vqvae(seed=9), record(tmp_path / "v", "vqvae") / "best")
    with pytest.raises(RequestError, match="latent space of another VQ-VAE"):
        make(tmp_path, runs | {"vqvae": tmp_path / "v"}, "slices", "vqvae", "latents")
    tiny.plan(target_range=(0.0, 7.0)).write(runs["latents"] / "plan.json")
    with pytest.raises(RequestError, match="trained with plans that differ in target_range"):
        make(tmp_path, runs, "slices", "latents")
    assert not (tmp_path / "model").exists()


def test_incomplete_requests_are_refused(tmp_path, runs):
    for names, part in [
        ((), "give --slices RUN, --latents RUN or both"),
        (("vqvae",), "give --slices RUN, --latents RUN or both"),
        (("slices", "vqvae"), "--vqvae is the latent space of the 3D stage"),
        (("latents",), "refines drafts, so the model that draws them is needed"),
    ]:
        with pytest.raises(RequestError, match=part):
            make(tmp_path, runs, *names)
    with pytest.raises(RequestError, match="holds a `latents` stage; a `slices` stage was asked for"):
        make(tmp_path, {"slices": runs["latents"]}, "slices")
    with pytest.raises(RequestError, match=r"nowhere is no run folder of `ct2mri train`"):
        make(tmp_path, {"slices": tmp_path / "nowhere"}, "slices")
    (runs["slices"] / "run.json").unlink()
    with pytest.raises(RequestError, match=r"holds no run.json"):
        make(tmp_path, runs, "slices")
    assert not (tmp_path / "model").exists()


def test_facts_of_the_run_are_kept(tmp_path, runs):
    make(tmp_path, runs, "slices")
    facts = json.loads((tmp_path / "model" / "pipeline.json").read_text())
    assert facts["card"]["training"] == {"slices": {"steps": 70, "seed": 3}}


def test_half_precision_takes_half_the_size_and_means_what_was_rounded(tmp_path, runs):
    whole = make(tmp_path, runs, "slices", "latents")
    sizes = {p.parent.name: p.stat().st_size for p in (tmp_path / "model").glob("*/model.safetensors")}
    expected = whole(tiny.ct()).array
    half = make(tmp_path, runs, "slices", "latents", half=True)
    for path in (tmp_path / "model").glob("*/model.safetensors"):
        assert path.stat().st_size < 0.65 * sizes[path.parent.name]
    assert {p.dtype for stage in half.stages for p in stage.network.parameters()} == {torch.float32}
    result = half(tiny.ct()).array
    assert not np.array_equal(result, expected)
    np.testing.assert_allclose(result, expected, atol=0.02 * expected.max())
    # Written again, it is the same model.
    half.save_pretrained(tmp_path / "again")
    again = TranslationPipeline.from_pretrained(tmp_path / "again", "cpu")
    assert again.hash == half.hash
    weights = [folder / "slices" / "model.safetensors" for folder in (tmp_path / "model", tmp_path / "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_weights_beyond_half_precision_are_refused(tmp_path, runs):
    stage = tiny.slices_stage()
    with torch.no_grad():
        next(iter(stage.network.parameters())).fill_(1e6)
    stage.save_stage(runs["slices"] / "best")
    with pytest.raises(RequestError, match="beyond 65504; leave out --half"):
        make(tmp_path, runs, "slices", half=True)
