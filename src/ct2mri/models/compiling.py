"""Networks compiled by torch.compile; where that fails, they compute as they are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ct2mri.models.layers import AttentionResidualBlock, CrossAttentionBlock, ScalableResidual

# All blocks of a kind share their code, of which PyTorch compiles no more variants than this in one process:
# one for each pair of widths, more for features in other orders in memory or with an axis of size 1; and of
# a whole network one for each size.
_MOST_VARIANTS = 1000

_failures: list[str] = []


def compile_blocks(network: nn.Module, wanted: bool = True) -> None:
    """Have the blocks of a network compiled when they are first used, each as one graph; or no more.

    Sizes stay open, so that what was compiled serves all of them. As a whole, a scalable network is another
    graph for each pattern of odd and even sizes over its levels, and each takes a minute or more to compile;
    what depends on that pattern (pad, crop, upsampling) lies between the blocks. For use alone: with
    gradients and open sizes Inductor (torch 2.13) fails.

    Args:
        network: made of the blocks of `ct2mri.models.layers`.
        wanted: compile; else its blocks are used as they are again.
    """
    for module in network.modules():
        if isinstance(module, (AttentionResidualBlock, CrossAttentionBlock, ScalableResidual)):
            if wanted:
                _compile(module, dynamic=True)
            else:
                module._compiled_call_impl = None


def compile_whole(network: nn.Module) -> None:
    """Have a network compiled as one graph when it is first used, anew for each size; with gradients too."""
    _compile(network, dynamic=False)


def why_not_compiled() -> str | None:
    """Why something was not compiled in this process, in a sentence; None where nothing failed."""
    if not _failures:
        return None
    return (
        f"The networks could not be compiled here and computed as they are, with the same result "
        f"({_failures[0]}); install what is missing (a C++ compiler, for one), or leave out --compile."
    )


def _compile(module: nn.Module, dynamic: bool) -> None:
    # Each is one graph (tested); a version of PyTorch that breaks it in several goes on all the same.
    module.compile(dynamic=dynamic, backend=_inductor_or_as_it_is)
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, _MOST_VARIANTS)
    # Else a size that is by chance that of another axis, or a number of channels, is taken for the same one.
    torch.fx.experimental._config.use_duck_shape = False


def _inductor_or_as_it_is(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """A backend of torch.compile; after a first failure it does not try again, as trying takes seconds."""
    if not _failures:
        try:
            compiled: Callable[..., Any] = torch._dynamo.lookup_backend("inductor")(graph, inputs)
            return compiled
        except torch._dynamo.exc.RestartAnalysis:  # no failure: PyTorch looks at the module once more
            raise
        except Exception as error:  # whatever fails in a compiler, here or in one that is called
            _failures.append(str(error).strip().partition("\n")[0] or type(error).__name__)
    return graph.forward
