"""How raw data sets are laid out on disk: one small adapter a layout, all yielding the same list of pairs."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from ct2mri.data.layouts.bids import Bids
from ct2mri.data.layouts.cases import Adapter, Picture, RawCase, RawData, RawImage, VolumeFile, load_picture
from ct2mri.data.layouts.dicom import Dicom, GoldAtlas
from ct2mri.data.layouts.flat import Flat
from ct2mri.data.layouts.naming import same_modality
from ct2mri.data.layouts.pairs import Pairs, stems_seen
from ct2mri.data.layouts.published import Published
from ct2mri.data.layouts.slices import Slices
from ct2mri.data.layouts.synthrad import SynthRAD2023, SynthRAD2025
from ct2mri.errors import RequestError
from ct2mri.options.data import RawDataOptions

__all__ = ["Picture", "RawCase", "RawData", "RawImage", "VolumeFile", "find_cases", "load_picture"]

# From the most particular to the most general: the first rank that recognises a folder counts.
_RANKS: Sequence[Sequence[Adapter]] = (
    (SynthRAD2023(), SynthRAD2025(), GoldAtlas(), Bids()),
    (Slices(), Pairs(), Flat(), Published()),
    (Dicom(),),
)


def find_cases(raw: Path, options: RawDataOptions) -> RawData:
    """Find the pairs of a raw folder, laid out as `options.layout` says; `auto` tells by looking.

    Two cases under one name are both left out, as are cases that the layout finds fault with.

    Raises:
        RequestError: there is no such folder, no pair in it, several layouts fit, or the target's MR
            contrast differs between cases.
    """
    if not raw.is_dir():
        raise RequestError(f"There is no folder {raw}; give a folder of raw data.")
    if (raw / "plan.json").is_file() and (raw / "cases").is_dir():
        raise RequestError(f"{raw} is a prepared data set already; give the folder of raw pairs.")
    if same_modality(options.source, options.target) and options.source_series == options.target_series:
        raise RequestError(
            f"Source and target are both {options.source}; name two modalities with --source and --target, "
            "or two images with --source_series and --target_series."
        )
    found = _adapter(raw, options).find(raw, options)
    _leave_out_doubles(found)
    found.cases.sort(key=lambda case: case.case_id)
    if not found.cases:
        _refuse_empty(raw, found)
    _look_at_contrasts(found, options)
    _look_for_cbct(found)
    return found


def _adapter(raw: Path, options: RawDataOptions) -> Adapter:
    """The adapter asked for, or the one that recognises the folder."""
    if options.layout != "auto":
        return next(adapter for rank in _RANKS for adapter in rank if adapter.name == options.layout)
    for rank in _RANKS:
        fitting = [adapter for adapter in rank if adapter.recognises(raw, options)]
        if len(fitting) > 1:
            names = " or ".join(f"--layout {adapter.name}" for adapter in fitting)
            raise RequestError(f"{raw} looks like several layouts; say which to take with {names}.")
        if fitting:
            return fitting[0]
    folders = sum(path.is_dir() for path in raw.iterdir())
    seen = ", ".join(stems_seen(raw))
    raise RequestError(
        f"No pair was found in {raw} ({folders} subfolders{seen and f', images named {seen}'}): no layout "
        f"with {options.source} and {options.target} is recognised; name the modalities with --source and "
        "--target, or the layout with --layout."
    )


def _leave_out_doubles(found: RawData) -> None:
    """Leave out all cases that share a name with another, also where names differ in upper case alone."""
    named = defaultdict(list)
    for case in found.cases:
        named[case.case_id.lower()].append(case)
    for doubles in named.values():
        if len(doubles) == 1:
            continue
        places = sorted({str(_folder_of(case)) for case in doubles})
        for number, case in enumerate(doubles):
            name = case.case_id if case.case_id not in found.left_out else f"{case.case_id} ({number + 1})"
            found.left_out[name] = (
                f"{len(doubles)} patients go by the identifier {case.case_id} (in {' and '.join(places)}); "
                "give each a name of its own, or remove the copy"
            )
            found.cases.remove(case)


def _folder_of(case: RawCase) -> Path:
    return case.source.files()[0].parent


def _refuse_empty(raw: Path, found: RawData) -> None:
    reasons = [f"{name}: {reason}" for name, reason in list(found.left_out.items())[:3]]
    told = f" ({'; '.join(reasons)})" if reasons else ""
    adapter = next(adapter for rank in _RANKS for adapter in rank if adapter.name == found.layout)
    raise RequestError(
        f"No pair was found in {raw} as layout {found.layout}{told}; each patient needs {adapter.needs}."
    )


def _look_at_contrasts(found: RawData, options: RawDataOptions) -> None:
    """Never let targets of several MR contrasts be learnt as one, unless each image was asked for by name.

    Of sources the network sees the contrast, so there it is said.
    """
    for role, series in (("source", options.source_series), ("target", options.target_series)):
        contrasts = Counter(case.facts.get(f"{role}_contrast") for case in found.cases)
        if len(contrasts) < 2:
            continue
        told = ", ".join(f"{contrast or 'not told'} in {n} cases" for contrast, n in contrasts.most_common())
        if role == "source" or series is not None:
            found.notes.append(f"The {role} images are of several MR contrasts: {told}.")
            continue
        known = [contrast for contrast in contrasts if contrast is not None]
        if len(known) > 1:
            raise RequestError(
                f"The target images are of several MR contrasts ({told}), of which a model would learn a "
                "mixture; take one with --target (t1, t1c, t2, …), or name those that belong together with "
                f"--target_series and {found.chosen_by}."
            )
        for case in [case for case in found.cases if case.facts.get("target_contrast") is None]:
            found.left_out[case.case_id] = (
                f"the MR contrast of {case.target_name} is not told, that of the others is {known[0]}; say "
                f"that it belongs to them with --target_series and {found.chosen_by}"
            )
            found.cases.remove(case)


def _look_for_cbct(found: RawData) -> None:
    """Warn where images are cone-beam CTs."""
    for role in ("source", "target"):
        count = sum(bool(case.facts.get(f"{role}_cbct")) for case in found.cases)
        if count:
            found.notes.append(
                f"The {role} of {count} of {len(found.cases)} cases is a cone-beam CT (CBCT): its values are "
                "not reliable HU and differ from machine to machine, so a model of it does not fit CTs."
            )
