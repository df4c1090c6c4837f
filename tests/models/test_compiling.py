"""Compiled networks: what they compute, what a new size costs, and what happens where that fails."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from ct2mri.models import compiling
from ct2mri.models.compiling import compile_blocks, compile_whole, why_not_compiled


@pytest.fixture(autouse=True)
def nothing_compiled_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.compiler.reset()
    monkeypatch.setattr(compiling, "_failures", [])
    yield
    assert not torch._dynamo.utils.counters["graph_break"]
    torch.compiler.reset()


class Counting:
    """Stands for the compiler: runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def inputs(*spatial: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample, condition = torch.randn(2, batch, 1, *spatial, generator=generator)
    return sample, torch.randint(1000, (batch,), generator=generator), condition


@pytest.mark.parametrize(
    ("first", "others"),
    [
        ([(8, 8), (9, 7), (8, 7), (9, 8)], [(12, 10), (15, 33), (6, 11)]),
        ([(8, 8, 6), (7, 9, 5)], [(5, 4, 9)]),
    ],
)
@torch.inference_mode()
def test_blocks_are_compiled_for_all_sizes_at_once(
    first: list[tuple[int, ...]], others: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting()
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: counting)
    plain, compiled = tiny.unet(len(first[0])), tiny.unet(len(first[0]))
    compile_blocks(compiled)
    for size in first:
        torch.testing.assert_close(compiled(*inputs(*size)), plain(*inputs(*size)), atol=1e-5, rtol=0)
    compiled_for_these = counting.graphs
    assert compiled_for_these > 0
    for size in others:
        for batch in (2, 3, 5):
            given = inputs(*size, batch=batch)
            torch.testing.assert_close(compiled(*given), plain(*given), atol=1e-5, rtol=0)
    assert counting.graphs == compiled_for_these
    assert why_not_compiled() is None
    compile_blocks(compiled, wanted=False)
    torch.compiler.reset()
    compiled(*inputs(*others[0]))
    assert counting.graphs == compiled_for_these


def test_a_network_is_one_graph_with_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting()
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: counting)
    plain, compiled = tiny.unet(2), tiny.unet(2)
    compile_whole(compiled)
    for size in ((9, 6), (12, 11)):
        for each in (plain, compiled):
            each.zero_grad()
            each(*inputs(*size)).square().mean().backward()
        for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)
    assert counting.graphs == 2


@pytest.mark.slow
@pytest.mark.parametrize(("size", "other"), [((9, 6), (12, 11)), ((5, 3, 6), (4, 5, 7))])
def test_the_real_compiler(size: tuple[int, ...], other: tuple[int, ...]) -> None:
    plain, blocks, whole = (tiny.unet(len(size)) for _ in range(3))
    compile_blocks(blocks)
    compile_whole(whole)
    for each in (size, other):
        with torch.inference_mode():
            torch.testing.assert_close(blocks(*inputs(*each)), plain(*inputs(*each)), atol=1e-4, rtol=0)
    for trained in (plain, whole):
        trained.train()(*inputs(*size)).square().mean().backward()
    for one, wanted in zip(whole.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, wanted.grad, rtol=1e-3, atol=1e-5)
    assert why_not_compiled() is None


def test_a_network_that_cannot_be_compiled_computes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real compiler, without the C++ compiler that it needs."""
    plain, compiled = tiny.unet(2), tiny.unet(2)
    compile_blocks(compiled)
    none = {"cpp.cxx": (None, "/no/such/compiler"), "force_disable_caches": True}
    with torch._inductor.config.patch(none), torch.inference_mode():
        drawn = compiled(*inputs(9, 6))
        sentence = why_not_compiled()
        again = compiled(*inputs(12, 11))
    torch.testing.assert_close(drawn, plain(*inputs(9, 6)), atol=1e-5, rtol=0)
    torch.testing.assert_close(again, plain(*inputs(12, 11)), atol=1e-5, rtol=0)
    assert sentence is not None
    assert "/no/such/compiler" in sentence and "\n" not in sentence
    assert len(compiling._failures) == 1  # it was tried once
