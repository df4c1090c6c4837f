"""The one exception that means: the request was wrong, not the program."""


class RequestError(ValueError):
    """A request that cannot be carried out as it was made.

    The message is one sentence that says what was got, what is allowed and what to do; the command line
    prints it on one line and exits with 2.
    """
