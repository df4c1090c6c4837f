"""How stages compute: within how much memory, in which precision, and what happens where memory runs out."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Generic, TypeVar, get_args

import torch

from ct2mri.errors import RequestError
from ct2mri.memory import format_size, free_memory, is_out_of_memory, parse_size, release, used_memory
from ct2mri.options.choices import InferencePrecision

_Value = TypeVar("_Value")
_Result = TypeVar("_Result")

# Libraries take some memory beside the tensors that are counted, and allocators leave gaps.
_MARGIN = 1.4
_FLOOR = 64 * 2**20


@dataclass(frozen=True)
class Portion(Generic[_Value]):
    """One way to cut work into parts.

    Attributes:
        value: what the work needs to know of it.
        tensors: bytes of the largest part.
        words: names it, e.g. `4 slices at a time`.
    """

    value: _Value
    tensors: int
    words: str

    @property
    def need(self) -> int:
        """Bytes that must be free for it."""
        return int(self.tensors * _MARGIN) + _FLOOR


@dataclass
class Execution:
    """How stages compute; those of one pipeline share it.

    Attributes:
        max_memory: bytes that may be taken on the device that computes; None: what is free.
        precision: `32`, `bf16`, or `auto`: bf16 on CUDA devices that have it, else 32.
        sharers: processes like this one that share the machine's main memory and its cards; each takes its
            part of what is free.
        remarks: what the user should know of the result, a sentence each.
    """

    max_memory: int | None = None
    precision: InferencePrecision = "32"
    sharers: int = 1
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, max_memory: str | int | None, precision: InferencePrecision) -> "Execution":
        """The execution that is asked for in words.

        Raises:
            RequestError: the size or the precision is none.
        """
        if precision not in get_args(InferencePrecision):
            raise RequestError(
                f"--precision is one of {', '.join(get_args(InferencePrecision))}, got {precision!r}."
            )
        return cls(parse_size(max_memory) if isinstance(max_memory, str) else max_memory, precision)

    def remark(self, sentence: str) -> None:
        """Say something of the result, once."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)

    def room(self, device: torch.device) -> int:
        """Bytes that may still be taken on a device."""
        cards = torch.cuda.device_count() if device.type == "cuda" else 1
        free = free_memory(device) // math.ceil(self.sharers / cards)
        if self.max_memory is None:
            return free
        return min(free, self.max_memory - used_memory(device))

    def computes_in(self, device: torch.device) -> torch.dtype:
        """The type that convolutions and attention compute in on a device."""
        half = self.precision == "bf16" or (
            self.precision == "auto"
            and device.type == "cuda"
            and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        return torch.bfloat16 if half else torch.float32

    def facts(self, device: torch.device) -> dict[str, str]:
        """What a result's sidecar tells of how it was computed."""
        half = self.computes_in(device) == torch.bfloat16
        return {"device": device.type, "precision": "bf16" if half else "32"}

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context that networks run in."""
        half = self.computes_in(device) == torch.bfloat16
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)

    def within(
        self,
        device: torch.device,
        what: str,
        portions: Sequence[Portion[_Value]],
        work: Callable[[_Value], _Result],
    ) -> _Result:
        """Do work in the first portions that fit; where memory runs out none the less, once in smaller ones.

        Args:
            device: that computes.
            what: names the work, e.g. `the slices stage`.
            portions: from the most wanted to those that need least.
            work: does it, from the start or from where it stopped.

        Raises:
            RequestError: the smallest portions do not fit, or memory ran out twice.
        """
        room = self.room(device)
        chosen = next((portion for portion in portions if portion.need <= room), None)
        if chosen is None:
            raise self._too_large(device, what, portions[-1])
        try:
            return work(chosen.value)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        release(device)
        # Not before here, where the error and with it all that the work held are gone.
        smaller = self._smaller(device, portions, chosen)
        if smaller is None:
            raise self._too_large(device, what, portions[-1])
        self.remark(
            f"Memory ran out in {what} with {chosen.words}, which was expected to need "
            f"{format_size(chosen.need)}: it went on with {smaller.words}."
        )
        try:
            return work(smaller.value)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        release(device)
        raise self._too_large(device, what, self._smaller(device, portions, smaller) or portions[-1])

    def _smaller(
        self, device: torch.device, portions: Sequence[Portion[_Value]], than: Portion[_Value]
    ) -> Portion[_Value] | None:
        """The first that fit and need at most half as much, else the smallest; None where there are none."""
        room = self.room(device)
        for portion in portions:
            if portion.need <= room and 2 * portion.tensors <= than.tensors:
                return portion
        return portions[-1] if portions[-1].tensors < than.tensors else None

    def _too_large(self, device: torch.device, what: str, portion: Portion[_Value]) -> RequestError:
        need, room = portion.need, max(0, self.room(device))
        if self.max_memory is not None and self.max_memory - used_memory(device) <= room:
            enough = format_size(used_memory(device) + need)
            return RequestError(
                f"Memory does not suffice for {what}: {portion.words} would fit into {enough}, and "
                f"--max_memory is {format_size(self.max_memory)}; give --max_memory {enough} or more, or a "
                "smaller volume."
            )
        return RequestError(
            f"Memory does not suffice for {what}: {portion.words} would fit into {format_size(need)}, and "
            f"{format_size(room)} of the {device.type}'s memory are free; free that much, or give a smaller "
            "volume."
        )
