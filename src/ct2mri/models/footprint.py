"""How much memory a network needs for an input, found without computing anything."""

import copy
import math
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ct2mri.models.vqvae import VQVAE

_Network = TypeVar("_Network", bound=nn.Module)

# What was found of each network.
_of_networks: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_of_vqvaes: weakref.WeakKeyDictionary[VQVAE, tuple[int, int]] = weakref.WeakKeyDictionary()

_EDGE = 64
_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten._convolution.default)


def meta_twin(network: _Network) -> _Network:
    """A copy of a network whose weights have shapes and no values, on the device "meta"."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    twin = copy.deepcopy(network, memo).eval()
    for module in twin.modules():  # those who look on are interested in values
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes of tensors that are there at any one time while `run` works on meta tensors.

    Counted are tensors that operations make, not those that `run` was given, and while a convolution works
    its input and output once more, which libraries bring into an order of their own. Attention counts as
    computed without the full map of places by places. Under autocast to 16 bits the need is smaller than what
    is counted here.
    """
    live = _LiveBytes()
    with torch.no_grad(), _Attention(), live:
        run()
    live.close()
    return live.peak


class _Attention(TorchFunctionMode):
    """Attention makes its output alone; on "meta" it would be spelled out with the full map."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are alive.

    Attributes:
        peak: the most bytes at any one time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live = 0
        self._known: dict[int, weakref.finalize[Any, Any]] = {}

    def close(self) -> None:
        """Count no longer what goes away."""
        for forget in self._known.values():
            forget.detach()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in _tensors([args, kwargs])}
        output = func(*args, **(kwargs or {}))
        made = _tensors(output)
        for tensor in made:
            storage = tensor.untyped_storage()
            if id(storage) not in given and storage._cdata not in self._known:
                self._count(storage)
        scratch = 0
        if func in _CONVOLUTIONS:
            scratch = sum(tensor.nbytes for tensor in [args[0], *made])
        self.peak = max(self.peak, self._live + scratch)
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._live += size
        self._known[key] = weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._live -= size
        self._known.pop(key, None)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def network_bytes(
    network: nn.Module, sample_channels: int, condition_channels: int, spatial_dims: int
) -> int:
    """Peak bytes a place of the input while network(sample, timestep, condition) runs; see `peak_bytes`.

    Found once for each network, by an input that is large enough for what does not grow to count little.
    """
    if network not in _of_networks:
        twin = meta_twin(network)
        edges = (_EDGE,) * spatial_dims
        sample = torch.empty(1, sample_channels, *edges, device="meta")
        condition = torch.empty(1, condition_channels, *edges, device="meta")
        timestep = torch.zeros(1, dtype=torch.long, device="meta")
        inputs = 2 * sample.nbytes + condition.nbytes  # the state of the sampler is there as well
        total = inputs + peak_bytes(lambda: twin(sample, timestep, condition))
        _of_networks[network] = -(-total // math.prod(edges))
    return _of_networks[network]


def encoding_bytes(vqvae: VQVAE) -> int:
    """Peak bytes a latent while a large image is encoded; see `peak_bytes`."""
    return _coding_bytes(vqvae)[0]


def decoding_bytes(vqvae: VQVAE) -> int:
    """Peak bytes a latent while many latents are quantised and decoded; see `peak_bytes`."""
    return _coding_bytes(vqvae)[1]


def _coding_bytes(vqvae: VQVAE) -> tuple[int, int]:
    if vqvae not in _of_vqvaes:
        twin = meta_twin(vqvae)
        edges = (_EDGE,) * vqvae.spatial_dims
        latents = torch.empty(1, vqvae.embedding_dim, *edges, device="meta")
        image = torch.empty(1, vqvae.in_channels, *(vqvae.factor * edge for edge in edges), device="meta")
        encoding = image.nbytes + peak_bytes(lambda: twin.encode(image))
        decoding = latents.nbytes + peak_bytes(lambda: twin.decode(twin.quantize(latents)))
        places = math.prod(edges)
        _of_vqvaes[vqvae] = (-(-encoding // places), -(-decoding // places))
    return _of_vqvaes[vqvae]
