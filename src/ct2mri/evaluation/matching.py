"""Which prediction belongs to which target: case identifiers in the names of files."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ct2mri.data.io import find_volumes, is_volume_path, volume_stem
from ct2mri.errors import RequestError
from ct2mri.sidecars import read_sidecar

# Words that say what an image is, not whose: they are no part of a case identifier.
_MR_WORDS = {"mr", "mri", "smr"}
_CT_WORDS = {"ct", "cbct", "sct"}
_SPREAD_WORDS = {"uncertainty", "spread"}
_OTHER_WORDS = {"draft"}
_FILLERS = {"synthetic", "prediction", "predicted"}

Role = Literal["image", "ct", "mask", "source", "labels", "spread"]
_ROLE_WORDS: dict[Role, set[str]] = {
    "image": _MR_WORDS | {"target"},
    "ct": _CT_WORDS | {"target"},
    "source": _CT_WORDS | {"source"},
    "mask": {"mask", "body"},
    "labels": {"labels", "label", "seg", "segmentation"},
    "spread": _SPREAD_WORDS,
}


@dataclass(frozen=True)
class Matches:
    """Which prediction belongs to which target.

    Attributes:
        case_ids: in both, sorted.
        without_prediction: targets that nothing was predicted for.
        without_target: predictions that have no target.
    """

    case_ids: list[str]
    without_prediction: list[str]
    without_target: list[str]

    @classmethod
    def of(cls, predictions: Sequence[str], targets: Sequence[str]) -> "Matches":
        """Match by case identifier.

        Raises:
            RequestError: nothing matches.
        """
        predicted, wanted = set(predictions), set(targets)
        if not predicted & wanted:
            raise RequestError(
                f"No prediction matches a target: predictions are named {_some(predicted)}, targets "
                f"{_some(wanted)}; files match by name, without words such as mr_ or _mask."
            )
        return cls(sorted(predicted & wanted), sorted(wanted - predicted), sorted(predicted - wanted))


def case_and_role(path: Path) -> tuple[str, set[str]]:
    """The case identifier in a file's name, and the words in it that say what the image is.

    Such words are dropped at the start and the end (`mr_001`, `001_synthetic_mr` → `001`); a file that is
    called by such a word alone is named by its folder (`001/mr.nii.gz` → `001`).
    """
    known = set().union(*_ROLE_WORDS.values()) | _OTHER_WORDS | _FILLERS
    words, roles = re.split(r"([-_.])", volume_stem(path)), set()
    while words and words[-1].lower() in known:
        roles.add(words[-1].lower())
        words = words[:-2]
    while words and words[0].lower() in known:
        roles.add(words[0].lower())
        words = words[2:]
    return "".join(words) or path.absolute().parent.name, roles


def find_cases(
    path: Path, role: Role, known: Collection[str] = (), *, drawn: bool = False
) -> dict[str, Path]:
    """Volumes by case identifier: those in a folder, and `CASE/mr.*` (or `CASE/mask.*`) in its subfolders.

    Args:
        path: a volume or a folder.
        role: what its volumes are; those whose names say that they are something else are passed over.
        known: case identifiers that go first: what is called like one of them as a whole is that case, be
            there a word such as ct in it or not.
        drawn: what is looked for are results and spreads of `translate`, which are called after their
            sources: those with a sidecar are not passed over for a ct or mr in their names.

    Raises:
        RequestError: nothing is there, or two files have the same case identifier.
    """
    wanted = _ROLE_WORDS[role]
    unwanted = set().union(*_ROLE_WORDS.values(), _OTHER_WORDS) - wanted
    content = "standard deviation" if role == "spread" else "synthetic"  # as sidecars say
    found: dict[str, Path] = {}

    def case_of(file: Path) -> tuple[str, set[str]]:
        """As `case_and_role`, but for what is known."""
        name = volume_stem(file)
        return (name, set()) if name in known else case_and_role(file)

    if not path.exists():
        raise RequestError(f"There is no file or folder {path}; give a volume or a folder of volumes.")
    if is_volume_path(path):
        return {case_of(path)[0]: path}
    if not path.is_dir():
        raise RequestError(f"{path} is neither a volume nor a folder of volumes.")
    candidates: list[tuple[str, Path]] = []
    nested, others = set(), set()
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        inside = [file for file in find_volumes(folder) if volume_stem(file).lower() in wanted]
        candidates += [(case_of(folder)[0], file) for file in inside]
        nested |= {folder} if inside else set()
    for file in find_volumes(path):
        case_id, roles = case_of(file)
        if file in nested:
            continue
        if drawn and _content_beside(file).startswith(content):
            roles -= _MR_WORDS | _CT_WORDS
        if roles & unwanted:
            others |= roles & unwanted
        else:
            candidates.append((case_id, file))
    for case_id, file in candidates:
        if case_id in found:
            raise RequestError(
                f"{found[case_id].name} and {file.name} in {path} both belong to case {case_id}; "
                "leave one file for each case."
            )
        found[case_id] = file
    if not found:
        what = "CT volume" if role == "ct" else "volume"
        called = f" but those called {', '.join(sorted(others))}" if others else ""
        if (path / "plan.json").is_file():
            raise RequestError(f"{path} is a prepared data set, not a folder of volumes; give it as --data.")
        raise RequestError(
            f"{path} holds no {what}{called}; give a volume or a folder of volumes named by case, with or "
            f"without one of the words {', '.join(sorted(wanted))}."
        )
    return found


def counterparts(path: Path | None, role: Role, case_ids: list[str]) -> dict[str, Path]:
    """A file of each case; a single file belongs to a single case whatever its name.

    Raises:
        RequestError: a case has none.
    """
    if path is None:
        return {}
    found = find_cases(path, role, case_ids, drawn=role == "spread")
    if is_volume_path(path) and len(case_ids) == 1:
        return dict(zip(case_ids, found.values(), strict=True))
    if lacking := [case_id for case_id in case_ids if case_id not in found]:
        raise RequestError(f"{path} holds no {role} for {', '.join(lacking)}; add one for every case.")
    return found


def _content_beside(path: Path) -> str:
    """What the sidecar of a result or a spread says that it is; empty where there is none."""
    return str(read_sidecar(path.with_name(f"{volume_stem(path)}.json")).get("content", ""))


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
