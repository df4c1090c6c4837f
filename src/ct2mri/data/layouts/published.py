"""The prepared data of the published system, as far as its layout is known."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.layouts.cases import RawCase, RawData, visible_folders
from ct2mri.data.layouts.flat import patient_of
from ct2mri.data.layouts.naming import choose, named_after, named_exactly
from ct2mri.data.published_files import PUBLISHED_SHAPES, read_raw_volume, slice_shape, slice_stacks
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.options.choices import Layout
from ct2mri.options.data import RawDataOptions

# What is not documented and so assumed; mm along right, anterior, superior.
_SPACING = {"brain": (1.0, 1.0, 1.0), "pelvis": (1.0, 1.0, 2.5)}
_RAW_SUFFIXES = (".raw", ".bin", ".dat", ".img")
_HDF5_SUFFIXES = (".h5", ".hdf5")
_ASSUMPTIONS = (
    "How the published data lie is not documented. Assumed: arrays are (slice, row, column), slices from the "
    "feet up, rows from front to back, columns from right to left; brain voxels are 1 mm cubes, "
    "pelvis slices 2.5 mm apart; values from -1 to 1, or 0 to 1, are the whole range from black to white; "
    "where slices are stacked, as many neighbours as a volume has slices are one patient."
)


@dataclass(frozen=True)
class RawVolume:
    """A volume of float32 numbers without a header, whose size tells the anatomy."""

    path: Path
    raw: Path
    anatomy: str

    @property
    def name(self) -> str:
        """The file's name, with the folder of its modality."""
        return self.path.relative_to(self.raw).as_posix()

    def load(self) -> Volume:
        """Read it, placed and scaled as assumed."""
        array = read_raw_volume(self.path, PUBLISHED_SHAPES[self.anatomy])
        return _volume(array, self.anatomy, self.name)

    def files(self) -> list[Path]:
        """The file."""
        return [self.path]


@dataclass(frozen=True)
class StackedVolume:
    """All axial slices of one volume, neighbours in a stack of many volumes' slices."""

    path: Path
    stack: str
    number: int
    anatomy: str

    @property
    def name(self) -> str:
        """The file's name, and which of its volumes it is."""
        return f"{self.path.name} volume {self.number + 1}"

    def load(self) -> Volume:
        """Read it, placed and scaled as assumed."""
        depth = PUBLISHED_SHAPES[self.anatomy][0]
        with slice_stacks(self.path) as stacks:
            slices = stacks[self.stack][self.number * depth : (self.number + 1) * depth]
        array = np.asarray(slices, dtype=np.float32).reshape(PUBLISHED_SHAPES[self.anatomy])
        return _volume(array, self.anatomy, self.name)

    def files(self) -> list[Path]:
        """The file."""
        return [self.path]


class Published:
    """Two parallel folders of raw volumes, or a file of slices for each modality: ct.h5, mr.h5.

    Raw volumes are float32 numbers without a header, 160×224×168 (brain) or 96×240×384 (pelvis), told apart
    by size; their names tell the patient as in the layout `flat`. Of slices, the axial ones are taken: as
    many of them as a volume has are one, and volumes of the same number are a pair.
    """

    name: Layout = "published"

    needs = "ct/ID.raw and mr/ID.raw of the published size, or the files of slices ct.h5 and mr.h5"

    def recognises(self, raw: Path, options: RawDataOptions) -> bool:
        """Whether there are raw volumes of a published size, or files of slices, of both modalities."""
        words = (options.source, options.target)
        return all(_raw_volumes(raw, word) for word in words) or all(_slice_files(raw, w) for w in words)

    def find(self, raw: Path, options: RawDataOptions) -> RawData:
        """The pairs: of raw volumes, or where there are none of slices."""
        found = RawData(self.name, [], notes=[_ASSUMPTIONS], pictures=True)
        sources, targets = _raw_volumes(raw, options.source), _raw_volumes(raw, options.target)
        if not sources and not targets:
            self._find_slices(found, raw, options)
            return found
        for patient in sorted({*sources, *targets}):
            try:
                source = _only(sources.get(patient, []), options.source, options.source_series, "source")
                target = _only(targets.get(patient, []), options.target, options.target_series, "target")
                if source.anatomy != target.anatomy:
                    raise RequestError(
                        f"{source.name} is a {source.anatomy}, {target.name} a {target.anatomy}"
                    )
            except RequestError as error:
                found.left_out[patient] = str(error)
                continue
            facts = {"anatomy": source.anatomy}
            found.cases.append(RawCase(patient, patient, source, target, facts=facts))
        return found

    def _find_slices(self, found: RawData, raw: Path, options: RawDataOptions) -> None:
        source = choose(
            _slice_files(raw, options.source), _name, options.source, options.source_series, "--source_series"
        )
        target = choose(
            _slice_files(raw, options.target), _name, options.target, options.target_series, "--target_series"
        )
        stacks = {path: _axial_stacks(path) for path in (source, target)}
        for anatomy, depth in ((name, shape[0]) for name, shape in PUBLISHED_SHAPES.items()):
            (source_stack, slices), (target_stack, others) = stacks[source][anatomy], stacks[target][anatomy]
            if not slices and not others:
                continue
            if slices != others or slices % depth:
                found.left_out[anatomy] = (
                    f"{source.name} has {slices} axial slices and {target.name} {others}, where both should "
                    f"have the same multiple of {depth}: whose slice is whose cannot be told"
                )
                continue
            for number in range(slices // depth):
                case_id = f"{anatomy}_{number + 1:03d}"
                images = (
                    StackedVolume(source, source_stack, number, anatomy),
                    StackedVolume(target, target_stack, number, anatomy),
                )
                found.cases.append(RawCase(case_id, case_id, *images, facts={"anatomy": anatomy}))


def _raw_volumes(raw: Path, word: str) -> dict[str, list[RawVolume]]:
    """Raw volumes of a modality by patient, told by their own names or by their folder's."""
    volumes: dict[str, list[RawVolume]] = {}
    for folder in (raw, *visible_folders(raw)):
        is_modality = folder != raw and (named_exactly(folder.name, word) or named_after(folder.name, word))
        for path in sorted(folder.iterdir()):
            anatomy = _anatomy(path)
            if anatomy is None or not (folder == raw or is_modality):
                continue
            stem = path.stem if path.suffix.lower() in _RAW_SUFFIXES else path.name
            patient = patient_of(stem, word) or (stem if is_modality else None)
            if patient is not None:
                volumes.setdefault(patient, []).append(RawVolume(path, raw, anatomy))
    return volumes


def _anatomy(path: Path) -> str | None:
    """What a raw volume shows, by its number of bytes; None for any other file."""
    if not path.is_file() or path.suffix.lower() not in (*_RAW_SUFFIXES, ""):
        return None
    size = path.stat().st_size
    return next((name for name, shape in PUBLISHED_SHAPES.items() if 4 * math.prod(shape) == size), None)


def _only(volumes: list[RawVolume], word: str, series: str | None, role: str) -> RawVolume:
    return choose(volumes, lambda volume: volume.name, word, series, f"--{role}_series")


def _slice_files(raw: Path, word: str) -> list[Path]:
    """Files of slices that are named by a modality, also with words before it: train_ct.h5."""
    return [
        path
        for path in sorted(raw.iterdir())
        if path.suffix.lower() in _HDF5_SUFFIXES
        and (named_after(path.stem, word) or patient_of(path.stem, word) is not None)
    ]


def _axial_stacks(path: Path) -> dict[str, tuple[str, int]]:
    """For each anatomy, the dataset of a file that has its axial slices, and how many."""
    found = dict.fromkeys(PUBLISHED_SHAPES, ("", 0))
    with slice_stacks(path) as stacks:
        for name, stack in stacks.items():
            for anatomy, (_, rows, columns) in PUBLISHED_SHAPES.items():
                if slice_shape(stack) == (rows, columns):
                    if found[anatomy][1]:
                        raise RequestError(f"{path.name} holds several datasets of {rows}×{columns} slices.")
                    found[anatomy] = (name, int(stack.shape[0]))
    return found


def _volume(array: NDArray[np.float32], anatomy: str, name: str) -> Volume:
    """An array (slice, row, column) as a volume in grey levels from 0 to 255.

    Raises:
        RequestError: its values are neither normalised nor grey levels.
    """
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < -1 or high > 255:
        raise RequestError(
            f"{name} has values from {low:.4g} to {high:.4g}, not normalised ones (-1 to 1, 0 to 1) or grey "
            "levels (0 to 255); save it as NIfTI with its true voxel size and take the layout flat."
        )
    grey = (array + 1) * 127.5 if low < 0 else array * (255.0 if high <= 1 else 1.0)
    i, j, k = _SPACING[anatomy]
    # (k, j, i) in LPS order, as most readers give arrays.
    return Volume(grey.transpose(2, 1, 0), np.diag([-i, -j, k, 1.0]), {"path": name, "warnings": []})


def _name(path: Path) -> str:
    return path.name
