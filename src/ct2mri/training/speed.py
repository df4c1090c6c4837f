"""How fast a training goes, and how long it waits for data."""

import statistics
import time
from dataclasses import dataclass, field


@dataclass
class Speed:
    """Measures steps by the clock; validations and checkpoints between them are not counted.

    Attributes:
        images: of each step, over all processes: slices, volumes or crops.
        seconds: of each step.
        waiting: seconds of each step in which this process waited for its data.
    """

    images: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    _step_began: float = 0.0
    _wait_began: float = 0.0
    _images: int = 0
    _waiting: float = 0.0

    def begin(self) -> None:
        """A step begins, with waiting for its first batch."""
        self._step_began = self._wait_began = time.perf_counter()
        self._images, self._waiting = 0, 0.0

    def batch(self, images: int) -> None:
        """A batch of so many images has come."""
        self._waiting += time.perf_counter() - self._wait_began
        self._images += images

    def pause(self) -> None:
        """A batch is done, and the step goes on with the next one."""
        self._wait_began = time.perf_counter()

    def step(self) -> dict[str, float]:
        """The step is done; its `seconds` and, among them, those of `waiting`."""
        self.images.append(self._images)
        self.seconds.append(time.perf_counter() - self._step_began)
        self.waiting.append(self._waiting)
        return {"seconds": self.seconds[-1], "waiting": self.waiting[-1]}

    def _last(self, steps: int) -> tuple[float, float, float]:
        """Images, seconds and waiting of the last steps, without the very first, in which things start."""
        begin = max(len(self.seconds) - steps, min(1, len(self.seconds) - 1))
        return sum(self.images[begin:]), sum(self.seconds[begin:]), sum(self.waiting[begin:])

    def sentence(self) -> str:
        """The speed of the last fifty steps."""
        images, seconds, waiting = self._last(50)
        return f"{images / seconds:.3g} images/s, {waiting / seconds:.0%} waiting for data"

    def facts(self) -> dict[str, float]:
        """The speed of all steps since the start or the resumption, for `run.json`; of none, nothing."""
        if not self.seconds:
            return {}
        images, seconds, waiting = self._last(len(self.seconds))
        return {
            "images_per_second": round(images / seconds, 3),
            "seconds_per_step": round(statistics.median(self.seconds), 5),
            "waiting_share": round(waiting / seconds, 4),
        }
