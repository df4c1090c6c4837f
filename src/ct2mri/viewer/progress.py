"""How far a translation is, and how long it will take: from the times that its steps took."""

import time
from collections.abc import Callable, Mapping, Sequence

_TELLING = 0.02
"""Share of the work after which its times are worth telling."""


class Progress:
    """The progress of one job over all its stages.

    Args:
        stages: their names, in running order.
        expected: seconds that stages are expected to take, from an earlier job; may be empty.
        clock: gives seconds.
    """

    def __init__(
        self,
        stages: Sequence[str],
        expected: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stages = list(stages)
        self.expected = dict(expected)
        self._clock = clock
        self._last = clock()
        self._spent = dict.fromkeys(stages, 0.0)
        self._share = dict.fromkeys(stages, 0.0)
        self._fraction = 0.0

    def begin(self) -> None:
        """The stages begin now: what was before (loading, preparing) is none of their time."""
        self._last = self._clock()

    def step(self, stage: str, step: int, total: int) -> None:
        """A step of a stage was done; stages may alternate, where several samples are drawn."""
        now = self._clock()
        self._spent[stage] = self._spent.get(stage, 0.0) + now - self._last
        self._share[stage] = min(step / max(total, 1), 1.0)
        self._last = now
        whole = self._whole()
        if whole > 0:
            self._fraction = max(self._fraction, min(sum(self._spent.values()) / whole, 1.0))

    @property
    def fraction(self) -> float:
        """The share of the work that is done, 0 to 1; it never goes back."""
        return self._fraction

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end; None as long as they cannot be told."""
        if self._fraction < _TELLING:
            return None
        return max(self._whole() - sum(self._spent.values()), 0.0)

    def seconds(self) -> dict[str, float]:
        """Seconds that each finished stage took."""
        return {stage: self._spent[stage] for stage in self.stages if self._share[stage] >= 1}

    def _whole(self) -> float:
        """Seconds that all stages take: measured where they have begun, else expected or like the others."""
        begun = {s: self._spent[s] / self._share[s] for s in self._share if self._share[s] > 0}
        usual = sum(begun.values()) / len(begun) if begun else 0.0
        return sum(begun.get(s, self.expected.get(s, usual)) for s in self._share)
