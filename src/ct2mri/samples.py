"""What the stages of a pipeline drew, over one sample or several."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Samples:
    """What the stages drew, in the networks' units: float32 (i, j, k) on the working grid.

    Attributes:
        mean: over the samples, in [−1, 1].
        draft: mean of what the last stage refined; None with a single stage.
        spread: standard deviation over the samples; None with a single sample.
        remarks: what the user should know of how they were computed, a sentence each.
    """

    mean: NDArray[np.float32]
    draft: NDArray[np.float32] | None
    spread: NDArray[np.float32] | None
    remarks: list[str]


class RunningMean:
    """Mean and deviation over samples, Welford's; a single sample is kept as it is, with no float64 copy."""

    def __init__(self) -> None:
        self.number = 0
        self._only: NDArray[np.float32] | None = None
        self._mean: NDArray[np.float64] | None = None
        self._squares: NDArray[np.float64] | None = None

    def add(self, array: NDArray[np.float32], spread: bool) -> None:
        """Add a sample; `spread` says whether the deviation will be asked for."""
        self.number += 1
        if self.number == 1:
            self._only = array
            if spread:
                self._squares = np.zeros(array.shape)
            return
        if self._mean is None:
            assert self._only is not None
            self._mean, self._only = self._only.astype(np.float64), None
        before = array - self._mean
        self._mean += before / self.number
        if self._squares is not None:
            self._squares += before * (array - self._mean)

    def mean(self) -> NDArray[np.float32]:
        """Over the samples."""
        if self._only is not None:
            return self._only
        assert self._mean is not None
        return self._mean.astype(np.float32)

    def spread(self) -> NDArray[np.float32]:
        """The standard deviation over two samples or more."""
        assert self._squares is not None
        return np.sqrt(self._squares / (self.number - 1)).astype(np.float32)
