"""Modalities as file names say them: which image is meant by `ct` or `mr`, and which MR contrast it shows."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ct2mri.errors import RequestError

Image = TypeVar("Image")

_MR = {"mr", "mri"}
_WITH_AGENT = " with contrast agent"
_ALIASES = [
    _MR,
    {"pet", "pt"},
    {"t1", "t1w"},
    {"t2", "t2w"},
    {"pd", "pdw"},
    {"flair", "t2flair"},
    {"t1c", "t1ce", "t1gd"},
    {"t2s", "t2star", "t2starw"},
]
_CONTRASTS = {
    **dict.fromkeys(("t1", "t1w", "mprage"), "T1w"),
    **dict.fromkeys(("t2", "t2w"), "T2w"),
    **dict.fromkeys(("pd", "pdw"), "PDw"),
    **dict.fromkeys(("flair", "t2flair"), "FLAIR"),
    **dict.fromkeys(("t1c", "t1ce", "t1gd"), f"T1w{_WITH_AGENT}"),
    **dict.fromkeys(("t2s", "t2star", "t2starw"), "T2starw"),
    **{word: word.upper() for word in ("swi", "dwi", "adc")},
}
# Files that lie beside an image and are named after it, but show something else.
_COMPANIONS = {"mask", "seg", "segmentation", "label", "labels", "landmarks", "overlay", "overview", "body"}


def tokens(name: str) -> list[str]:
    """The lower-case parts of a name between `_`, `-`, `.`, `/` and blanks: `Mr_T1-gd` → mr, t1, gd."""
    return [part for part in re.split(r"[_\-.\s/\\]+", name.lower()) if part]


def same_modality(word: str, other: str) -> bool:
    """Whether two words mean one modality: `mr` and `MRI`, `t1` and `T1w`."""
    word, other = word.lower(), other.lower()
    return word == other or any(word in group and other in group for group in _ALIASES)


def is_mr_word(word: str) -> bool:
    """Whether a modality word means MR: `mr` itself or one of its contrasts."""
    return word.lower() in _MR or word.lower() in _CONTRASTS


def contrast_of(name: str) -> str | None:
    """The MR contrast that a name tells, e.g. `T1w`; None where it tells none."""
    found = [_CONTRASTS[part] for part in tokens(name) if part in _CONTRASTS]
    return found[0] if found else None


def with_agent(contrast: str, agent: bool) -> str:
    """The name of a contrast where a contrast agent was given, or not."""
    return f"{contrast}{_WITH_AGENT}" if agent else contrast


def says_cbct(name: str) -> bool:
    """Whether a name says that an image is a cone-beam CT."""
    return "cbct" in tokens(name) or "conebeam" in name.lower().replace("-", "").replace("_", "")


def named_exactly(stem: str, word: str) -> bool:
    """Whether a name is just a modality's: `MR` for `mr`, `mr_t1` or `T1w` for `t1`."""
    parts = tokens(stem)
    if len(parts) == 2 and parts[0] in _MR and word.lower() not in _MR:
        parts = parts[1:]
    return len(parts) == 1 and same_modality(parts[0], word)


def named_after(stem: str, word: str) -> bool:
    """Whether a name begins with a modality and goes on to say which: `mr_t1` for `mr`, `ct_2mm` for `ct`."""
    parts = tokens(stem)
    if len(parts) > 1 and parts[0] in _MR and word.lower() not in _MR:
        parts = parts[1:]
    beside = _COMPANIONS | ({"cbct"} if word.lower() == "ct" else set())
    return bool(parts) and same_modality(parts[0], word) and not beside & set(parts[1:])


def choose(
    images: Sequence[Image],
    name: Callable[[Image], str],
    word: str,
    series: str | None,
    option: str,
) -> Image:
    """The one image that is meant among those of a modality.

    Args:
        images: the candidates.
        name: how a candidate is called or described.
        word: the modality asked for.
        series: part of the name of the one that is meant, or None where there is but one.
        option: the option that names it, `--target_series`.

    Raises:
        RequestError: none is left, or several.
    """
    if not images:
        raise RequestError(f"it has no {word} image")
    meant = [image for image in images if series is None or series.lower() in name(image).lower()]
    if len(meant) == 1:
        return meant[0]
    names = ", ".join(sorted(name(image) for image in meant or images))
    if not meant:
        raise RequestError(f"none of its {word} images ({names}) is named as {option} says ({series})")
    raise RequestError(
        f"it has several {word} images ({names}); keep one, or say which to take with {option} and a part "
        "of its name"
    )


def only_mask(paths: Sequence[Path]) -> Path | None:
    """The one mask among files, or None where there is none.

    Raises:
        RequestError: there are several.
    """
    if len(paths) > 1:
        raise RequestError(f"it has several masks ({', '.join(path.name for path in paths)}); keep one")
    return paths[0] if paths else None
