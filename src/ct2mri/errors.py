"""Exceptions whose message is all that a user needs to see."""


class RequestError(ValueError):
    """A request that cannot be carried out as it was made.

    The message is one sentence that says what was got, what is allowed and what to do; the command line
    prints it on one line and exits with 2.
    """


class TrainingDivergedError(RuntimeError):
    """The loss of a training, or its gradient, is no longer a finite number.

    The command line prints the message and exits with 1.
    """


class CasesLeftOutError(Exception):
    """With `--strict`: the work was done, but not for every case. One sentence; exit code 1."""


class ProcessDiedError(RuntimeError):
    """Of several processes that work together, another one ended early. One sentence; exit code 1."""


def require_seed(seed: int) -> None:
    """Refuse a seed that generators of random numbers do not take.

    Raises:
        RequestError: it is negative.
    """
    if seed < 0:
        raise RequestError(f"--seed is a number from 0 upward, got {seed}.")
