"""The fields of `plan.json` as a file holds them: missing and unknown ones, and older versions."""

from dataclasses import fields
from typing import Any

from ct2mri.errors import RequestError

FORMAT_VERSION = 2

# What version 1, which knew CT sources and MR targets scaled by percentile alone, meant without saying it.
_MEANT_BY_VERSION_1: dict[str, Any] = {
    "source_percentile": None,
    "remove_table": False,
    "target_units": "relative",
    "target_scaling": "percentile",
    "target_window": None,
    "enhance_contrast": False,
    "bias_correction": False,
    "registration": "none",
}


def checked_fields(cls: Any, content: Any, name: str) -> dict[str, Any]:
    """A copy of `content` if it holds exactly the fields of a dataclass.

    Raises:
        RequestError: it is no object, or fields are missing or unknown.
    """
    known = [f.name for f in fields(cls)]
    _require_fields(content, known, name)
    return dict(content)


def of_this_version(content: Any, known: list[str]) -> Any:
    """A plan of any version that is still read, with the fields of this one.

    Args:
        content: what a file holds.
        known: the fields of this version.

    Raises:
        RequestError: a version that is not read, or fields of version 1 are missing, unknown or wrong.
    """
    if not isinstance(content, dict) or "format_version" not in content:
        return content
    version = content["format_version"]
    if version == FORMAT_VERSION:
        return content
    if version != 1:
        raise RequestError(
            f"The plan has format_version {version}, this program reads 1 to {FORMAT_VERSION}; "
            "prepare the data again or use the version that wrote it."
        )
    kept = [name for name in known if name not in _MEANT_BY_VERSION_1 and name != "target_range"]
    _require_fields(content, [*kept, "target_scale"], "The plan (format_version 1)")
    scale = content["target_scale"]
    if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise RequestError(f"The plan's target_scale is {scale!r}; give a positive number.")
    return {
        **{name: value for name, value in content.items() if name != "target_scale"},
        **_MEANT_BY_VERSION_1,
        "format_version": FORMAT_VERSION,
        "target_range": [0.0, scale],
    }


def _require_fields(content: Any, known: list[str], name: str) -> None:
    if not isinstance(content, dict):
        raise RequestError(f"{name} must be an object with named fields, got {type(content).__name__}.")
    if unknown := [key for key in content if key not in known]:
        raise RequestError(f"{name} has an unknown field {unknown[0]!r}; known are {', '.join(known)}.")
    if missing := [key for key in known if key not in content]:
        raise RequestError(f"{name} lacks the field {missing[0]!r}; prepare writes {', '.join(known)}.")
