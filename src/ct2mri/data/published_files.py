"""Files of the authors' prepared data: volumes without a header, and stacks of slices in HDF5."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ct2mri.errors import RequestError

PUBLISHED_SHAPES = {"brain": (160, 224, 168), "pelvis": (96, 240, 384)}
"""Voxels of the authors' volumes: (slice, row, column), as their sizes suggest."""


def read_raw_volume(path: str | Path, shape: Sequence[int]) -> NDArray[np.float32]:
    """A volume of the authors' prepared data: float32 numbers without a header, the last axis fastest.

    Args:
        path: the file.
        shape: its three axes; brains are 160×224×168, pelvises 96×240×384.

    Raises:
        RequestError: there is no such file, or it has not the size of that shape.
    """
    path = Path(path)
    if len(shape) != 3 or min(shape) < 1:
        raise RequestError(f"The shape of a volume is three positive numbers, got {list(shape)}.")
    if not path.is_file():
        raise RequestError(f"There is no volume at {path}.")
    expected = 4 * math.prod(shape)
    got = path.stat().st_size
    if got != expected:
        fitting = [s for s in PUBLISHED_SHAPES.values() if 4 * math.prod(s) == got]
        hint = f"; {'×'.join(map(str, fitting[0]))} would fit" if fitting else ""
        raise RequestError(
            f"{path} has {got} bytes, but a volume of {'×'.join(map(str, shape))} float32 numbers has "
            f"{expected}{hint}."
        )
    return np.fromfile(path, dtype="<f4").reshape(tuple(shape)).astype(np.float32, copy=False)


@contextmanager
def slice_stacks(path: str | Path) -> Iterator[dict[str, h5py.Dataset]]:
    """Stacks of slices in an HDF5 file of the authors' prepared data, read only where they are indexed.

    The authors keep the slices of the three orientations apart by size, one dataset a size. How the datasets
    are named is not documented: every dataset of the file counts, also in groups, that holds numbers on three
    axes (slice, row, column), with or without an axis of one channel.

    Yields:
        Name of the dataset (with its groups) → the dataset, (N, H, W), (N, 1, H, W) or (N, H, W, 1).

    Raises:
        RequestError: there is no such file, it is not HDF5, or holds no stack of slices.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"There is no file of slices at {path}.")
    if not h5py.is_hdf5(path):
        raise RequestError(f"{path} is not an HDF5 file.")
    with h5py.File(path, "r") as file:
        stacks: dict[str, h5py.Dataset] = {}

        def collect(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu" and slice_shape(item) is not None:
                stacks[name] = item

        file.visititems(collect)
        if not stacks:
            raise RequestError(f"{path} holds no dataset of numbers on three axes (slice, row, column).")
        yield stacks


def slice_shape(dataset: h5py.Dataset) -> tuple[int, int] | None:
    """Rows and columns of a dataset's slices, its axis of one channel left out; None if it is no stack."""
    shape = list(dataset.shape or ())
    if len(shape) == 4 and 1 in (shape[1], shape[3]):
        del shape[1 if shape[1] == 1 else 3]
    return (int(shape[1]), int(shape[2])) if len(shape) == 3 else None
