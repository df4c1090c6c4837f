"""Shares and times of a job, out of the times of its steps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ct2mri.viewer.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_steady_steps_of_one_stage():
    clock = Clock()
    progress = Progress(["slices"], {}, clock)
    assert (progress.fraction, progress.seconds_left) == (0, None)
    clock.now = 100  # loading is none of the stage's time
    progress.begin()
    for step in range(1, 11):
        clock.now += 2
        progress.step("slices", step, 10)
        assert progress.fraction == pytest.approx(step / 10)
        assert progress.seconds_left == pytest.approx(20 - 2 * step)
    assert progress.seconds() == {"slices": pytest.approx(20)}


def test_an_earlier_job_tells_how_long_the_next_stage_takes():
    clock = Clock()
    progress = Progress(["slices", "latents"], {"slices": 5, "latents": 30}, clock)
    clock.now = 10
    progress.step("slices", 1, 1)  # took 10 s, not 5
    assert progress.fraction == pytest.approx(10 / 40)
    assert progress.seconds_left == pytest.approx(30)
    clock.now = 25
    progress.step("latents", 1, 2)
    assert progress.seconds_left == pytest.approx(15)


def test_without_one_the_next_stage_is_taken_to_be_like_the_first():
    clock = Clock()
    progress = Progress(["slices", "latents"], {}, clock)
    clock.now = 10
    progress.step("slices", 1, 1)
    assert progress.seconds_left == pytest.approx(10)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.001, 100), st.sampled_from([0, 1])), min_size=1, max_size=40),
    st.dictionaries(st.sampled_from(["a", "b"]), st.floats(0, 1000)),
)
def test_it_never_goes_back_and_ends_whole(steps, expected):
    clock = Clock()
    progress = Progress(["a", "b"], expected, clock)
    done, total = [0, 0], [sum(stage == n for _, stage in steps) for n in (0, 1)]
    before = 0.0
    for seconds, stage in steps:
        clock.now += seconds
        done[stage] += 1
        progress.step("ab"[stage], done[stage], total[stage])
        assert before <= progress.fraction <= 1
        assert progress.seconds_left is None or progress.seconds_left >= 0
        before = progress.fraction
    if all(total) and clock.now > 0:
        assert progress.fraction == pytest.approx(1)
