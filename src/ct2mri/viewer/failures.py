"""Why the API says no; a `RequestError` is answered with 422."""


class ApiError(Exception):
    """A request that is not carried out. The message is the sentence for the user."""

    status = 400


class NotThereError(ApiError):
    """There is no such thing."""

    status = 404


class ConflictError(ApiError):
    """Not as things stand."""

    status = 409


class TooLargeError(ApiError):
    """More than is allowed."""

    status = 413


class BusyError(ApiError):
    """Too many at once."""

    status = 429


class NoSpaceError(ApiError):
    """The disk is too full."""

    status = 507
