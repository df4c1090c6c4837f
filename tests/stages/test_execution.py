"""Precision, compilation, and what is left out because nobody looks at it."""

import numpy as np
import pytest
import torch

import tiny
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.replay import prepare_source
from ct2mri.diffusion import SeededNoise
from ct2mri.errors import RequestError
from ct2mri.memory import resident_memory
from ct2mri.models import compiling
from ct2mri.pipeline import TranslationPipeline, starter_folder
from ct2mri.stages import Execution


def volume(shape=(9, 8, 12), seed=0):
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9


def psnr(one, other, inside):
    """In dB, for values in [−1, 1]."""
    return float(10 * np.log10(4 / np.mean((one[inside] - other[inside]) ** 2)))


def test_bf16_stays_near_float32():
    pipeline = TranslationPipeline.from_pretrained(starter_folder(), "cpu")
    head = prepare_source(draw_phantom("head", 1_000_000, 4.0).ct, pipeline.plan)
    here = tuple(slice(n // 2 - 32, n // 2 + 32) for n in head.mask.shape[:2])
    middle = (*here, slice(60, 76))
    source, mask = head.array[(slice(None), *middle)], head.mask[middle]
    exact = pipeline.sample(source, mask=mask)
    rounded = pipeline.compute_with(precision="bf16").sample(source, mask=mask)
    assert exact.draft is not None and rounded.draft is not None
    assert not np.array_equal(exact.mean, rounded.mean)
    # What rounding does to the draft moves some latents to other codes, so that the result errs more.
    assert psnr(rounded.draft, exact.draft, mask) > 50
    assert psnr(rounded.mean, exact.mean, mask) > 45


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_bf16_stays_near_float32_and_is_what_auto_means():
    pipeline = TranslationPipeline.from_pretrained(starter_folder(), "cuda")
    assert pipeline.execution.computes_in(pipeline.device) == torch.bfloat16
    source = volume((64, 64, 16)).repeat(2, 1, 1, 1).numpy()
    inside = np.ones(source.shape[1:], dtype=bool)
    rounded = pipeline.sample(source)
    exact = pipeline.compute_with(precision="32").sample(source)
    assert psnr(rounded.mean, exact.mean, inside) > 45


def test_auto_is_float32_on_a_cpu():
    assert Execution.of(None, "auto").computes_in(torch.device("cpu")) == torch.float32
    assert Execution.of(None, "bf16").computes_in(torch.device("cpu")) == torch.bfloat16
    with pytest.raises(RequestError, match="--precision is one of auto, 32, bf16, got '16'"):
        Execution.of(None, "16")


def test_auto_takes_no_bf16_that_a_card_only_emulates(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert Execution.of(None, "auto").computes_in(torch.device("cuda")) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert Execution.of(None, "auto").computes_in(torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("orientations", [("axial",), ("axial", "coronal")])
def test_slices_of_which_nothing_is_wanted_are_not_drawn(orientations):
    stage = tiny.slices_stage(orientations=orientations, batch_size=100)
    seen = []
    stage.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    source = volume()
    wanted = torch.zeros(1, 9, 8, 12, dtype=torch.bool)
    wanted[:, 2:6, 3:5, 4:9] = True
    everything = stage.sample({"source": source}, SeededNoise(0))
    drawn_of_all = sum(seen)
    seen.clear()
    drawn = stage.sample({"source": source, "wanted": wanted}, SeededNoise(0))
    torch.testing.assert_close(drawn[wanted], everything[wanted], atol=1e-5, rtol=0)
    assert (drawn_of_all, sum(seen)) == {
        1: (2 * 12, 2 * 5),
        2: (2 * (12 + 8), 2 * (5 + 2)),
    }[len(orientations)]


def test_only_the_last_stage_leaves_out_what_is_not_wanted():
    pipeline = tiny.pipeline(plan=tiny.plan(spacing=None))
    mask = np.zeros((9, 8, 12), dtype=bool)
    mask[2:6, 3:5, 4:9] = True
    drawn = pipeline.sample(volume().numpy(), mask=mask)
    assert drawn.draft is not None
    assert (drawn.draft[:, :, 0] != -1).any()
    alone = tiny.pipeline(latents=None).sample(volume().numpy(), mask=mask)
    assert (alone.mean[:, :, 0] == -1).all()


@pytest.fixture
def graphs(monkeypatch):
    """A compiler that runs graphs as they are: the list of those that it was given."""
    given = []

    def compiler(graph, inputs):
        given.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: compiler)
    yield given
    torch.compiler.reset()


def test_compiled_stages_draw_what_the_others_draw(graphs):
    plain, compiled = (tiny.slices_stage(num_inference_steps=1) for _ in range(2))
    compiled.compile(True)
    source = {"source": volume((9, 8, 6))}
    drawn = compiled.sample(source, SeededNoise(0))
    torch.testing.assert_close(drawn, plain.sample(source, SeededNoise(0)), atol=1e-5, rtol=0)
    before = len(graphs)
    assert compiled.compiled and before > 0 and compiled.execution.remarks == []
    compiled.sample({"source": volume((13, 12, 11))}, SeededNoise(0))
    assert len(graphs) == before  # a new size costs nothing
    compiled.compile(False)
    torch.compiler.reset()
    compiled.sample(source, SeededNoise(0))
    assert len(graphs) == before


def test_what_cannot_be_compiled_is_told_with_the_result(monkeypatch):
    def compiler(graph, inputs):
        raise OSError("no compiler here\nand more of it")

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: compiler)
    monkeypatch.setattr(compiling, "_failures", [])
    torch.compiler.reset()
    source = volume((9, 8, 6)).numpy()
    alone = tiny.pipeline(latents=None)
    expected = alone.sample(source)
    assert expected.remarks == []
    drawn = alone.compute_with(compile=True).sample(source)
    np.testing.assert_allclose(drawn.mean, expected.mean, atol=1e-5)
    (remark,) = drawn.remarks
    assert "could not be compiled here" in remark and "(no compiler here)" in remark


@pytest.mark.slow
def test_a_stage_compiles_with_the_real_compiler():
    stage = tiny.slices_stage(num_inference_steps=1, batch_size=4)
    expected = stage.sample({"source": volume((9, 8, 6))}, SeededNoise(0))
    stage.compile(True)
    drawn = stage.sample({"source": volume((9, 8, 6))}, SeededNoise(0))
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=0)


def test_how_a_pipeline_computes_is_shared_by_its_stages_and_kept_with_another_plan():
    pipeline = tiny.pipeline().compute_with(max_memory="3GiB", batch_size=2)
    assert {stage.execution.max_memory for stage in pipeline.stages} == {3 * 2**30}
    other = pipeline.with_plan(tiny.plan(spacing=None))
    assert other.execution is pipeline.execution
    assert [stage.batch_size for stage in other.stages] == [2, 2]
    with pytest.raises(RequestError, match="batch_size is at least 1"):
        pipeline.compute_with(batch_size=0)


def test_too_little_memory_for_a_volume_is_told_before_the_work():
    pipeline = tiny.pipeline().compute_with(max_memory=resident_memory() + 100_000)
    with pytest.raises(RequestError, match=r"needs about 1MiB for [\d,]+ voxels, and .* may be taken"):
        pipeline(tiny.ct())


def test_too_little_memory_for_a_slice_names_what_would_do():
    pipeline = tiny.pipeline().compute_with(max_memory=resident_memory() + 30 * 2**20)
    with pytest.raises(RequestError, match=r"the slices stage: 1 slice of .* give --max_memory .*iB or more"):
        pipeline(tiny.ct())
