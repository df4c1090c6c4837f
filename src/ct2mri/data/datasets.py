"""Training items of a prepared data set: crops of slices, volumes and latents, flipped alike.

Every item is a pure function of its `Request` and the seed. What is padded to its batch's size holds −1 (air;
0 in latents) there, and weight 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ct2mri.data.batching import Request, Shape
from ct2mri.data.cases import SLICE_AXIS, Orientation, PreparedCase, neighbour_offsets
from ct2mri.data.intensity import shift_windows

Item = dict[str, Tensor]

AIR = -1.0
TRIES = 64
"""Random places tried for a voxel worth looking at before all are searched."""


@lru_cache(maxsize=4096)
def _mapped(path: Path) -> NDArray[Any]:
    """An array mapped from disk, once per process."""
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _array(case: PreparedCase, name: str) -> NDArray[Any]:
    return _mapped(case.folder / f"{name}.npy")


def item_seed(seed: int, request: Request) -> np.random.SeedSequence:
    """Where an item's augmentation is drawn from."""
    return np.random.SeedSequence((seed, request.batch, request.place))


def place_crop(
    mask: NDArray[Any], valid: NDArray[Any], shape: Shape, generator: np.random.Generator
) -> tuple[slice, ...]:
    """Place a crop at random so that it holds a voxel of the body whose target is valid.

    Args:
        mask: the body; false where it is 0.
        valid: where the target was seen, of the same size. Where nothing is both, the crop lies anywhere.
        shape: of the crop; axes on which it is larger than the image are taken whole.
        generator: of the place.
    """
    for _ in range(TRIES):
        centre = tuple(int(generator.integers(n)) for n in mask.shape)
        if mask[centre] and valid[centre]:
            break
    else:
        places = np.flatnonzero((mask != 0) & (valid != 0))
        if len(places):
            chosen = places[generator.integers(len(places))]
            centre = tuple(int(n) for n in np.unravel_index(chosen, mask.shape))
    crop = []
    for size, length, at in zip(mask.shape, shape, centre, strict=True):
        low, high = max(0, at - length + 1), max(0, min(at, size - length))
        start = int(generator.integers(low, high + 1))
        crop.append(slice(start, min(start + length, size)))
    return tuple(crop)


def padded(array: NDArray[Any], shape: Shape, fill: float) -> Tensor:
    """`array` (C, *spatial) as float32, grown at the end of each axis to (C, *shape)."""
    out = torch.full((array.shape[0], *shape), fill, dtype=torch.float32)
    inner = (slice(None), *(slice(n) for n in array.shape[1:]))
    out[inner] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    return out


def _cropped_size(size: Shape, crop_size: Sequence[int] | None) -> Shape:
    return size if crop_size is None else tuple(map(min, size, crop_size))


@dataclass(frozen=True)
class SourceShift:
    """Moves all values of a source by the same random amount: another scanner, another calibration.

    Attributes:
        windows: of the source, [low, high] each, as the plan has them.
        largest: shifts are uniform from minus this to this, in the source's units.
    """

    windows: Sequence[Sequence[float]]
    largest: float

    def __call__(self, source: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """The shifted windows (C, *spatial)."""
        return shift_windows(source, self.windows, float(generator.uniform(-self.largest, self.largest)))


class RequestDataset(Dataset[Item], ABC):
    """Items that are asked for by `Request`.

    Attributes:
        sizes: of each item, after cropping.
        shrink: see `BatchStream`.
        factor: voxels along each edge of what sizes count.
    """

    sizes: list[Shape]
    shrink: int = 0
    factor: int = 1

    def __len__(self) -> int:
        return len(self.sizes)

    @abstractmethod
    def __getitem__(self, request: Request) -> Item: ...


class SliceDataset(RequestDataset):
    """All slices of some cases that show the body, in one or more orientations.

    Items: `source` (C, H, W), with neighbours the windows of one slice after those of another in the order of
    `neighbour_offsets`, `target` (1, H, W) clipped to [−1, 1], `weight` (1, H, W) 1 where the target is
    valid, and `key` (2,), the item's batch and place.

    Args:
        cases: to take slices from.
        orientations: of the slices; a case gives those in which its slices are more than one pixel wide.
        crop_size: longest edge of a crop; None: whole slices.
        shrink: how much shorter the crops of a batch may be, see `BatchStream`; whole slices stay whole.
        flips: whether to mirror left-right at random.
        seed: of the augmentation.
        shift: moves the source's values; None: they stay.
        neighbours: slices on either side whose source is shown as well.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        *,
        orientations: Sequence[Orientation],
        crop_size: int | None,
        shrink: int,
        flips: bool,
        seed: int,
        shift: SourceShift | None = None,
        neighbours: int = 0,
    ) -> None:
        self.cases = list(cases)
        self.offsets = neighbour_offsets(neighbours)
        self.shrink = 0 if crop_size is None else shrink
        self.flips = flips
        self.seed = seed
        self.shift = shift
        self.slices: list[tuple[int, Orientation, int]] = []
        self.sizes: list[Shape] = []
        crop = None if crop_size is None else (crop_size, crop_size)
        for number, case in enumerate(self.cases):
            wanted = case.mask & case.valid
            for orientation in case.planes():
                if orientation not in orientations:
                    continue
                axis = SLICE_AXIS[orientation]
                size = tuple(n for a, n in enumerate(case.spatial_shape) if a != axis)
                for index in np.flatnonzero(wanted.any(axis=tuple(a for a in range(3) if a != axis))):
                    self.slices.append((number, orientation, int(index)))
                    self.sizes.append(_cropped_size(size, crop))

    def __getitem__(self, request: Request) -> Item:
        number, orientation, index = self.slices[request.index]
        case, axis = self.cases[number], SLICE_AXIS[orientation]
        generator = np.random.default_rng(item_seed(self.seed, request))
        plane = (slice(None),) * axis + (index,)
        valid = _array(case, "valid")[plane]
        crop = place_crop(_array(case, "mask")[plane], valid, request.shape, generator)
        whole = _array(case, "source")
        shown = np.clip(index + np.array(self.offsets), 0, whole.shape[axis + 1] - 1)
        before = (slice(None),) * (axis + 1)
        source = np.stack([whole[(*before, number)][(slice(None), *crop)] for number in shown], axis=1)
        target = _array(case, "target")[plane][crop][None].clip(-1, 1)
        weight = valid[crop][None]
        # Left-right is the first axis of axial and coronal slices, and out of plane in sagittal ones.
        if self.flips and orientation != "sagittal" and generator.random() < 0.5:
            source, target, weight = source[:, :, ::-1], target[:, ::-1], weight[:, ::-1]
        if self.shift is not None:
            source = self.shift(source, generator)
        source = np.moveaxis(source, 1, 0).reshape(-1, *source.shape[2:])  # (slices · windows, H, W)
        return {
            "source": padded(source, request.shape, AIR),
            "target": padded(target, request.shape, AIR),
            "weight": padded(weight, request.shape, 0),
            "key": torch.tensor([request.batch, request.place]),
        }


class VolumeDataset(RequestDataset):
    """Crops of targets, and of drafts where there are any: what the VQ-VAE learns.

    Items: `image` (1, i, j, k) clipped to [−1, 1], `weight` (1, i, j, k), and `key` (2,). A target weighs
    where it is valid, a draft everywhere.

    Args:
        cases: to take crops from.
        crop_size: voxels of a crop along i, j, k.
        flips: whether to mirror left-right at random.
        seed: of the augmentation.
    """

    def __init__(
        self, cases: Sequence[PreparedCase], *, crop_size: Sequence[int], flips: bool, seed: int
    ) -> None:
        self.flips = flips
        self.seed = seed
        self.images = [(case, "target") for case in cases]
        self.images += [(case, "draft") for case in cases if case.draft is not None]
        self.sizes = [_cropped_size(case.spatial_shape, crop_size) for case, _ in self.images]

    def __getitem__(self, request: Request) -> Item:
        case, name = self.images[request.index]
        generator = np.random.default_rng(item_seed(self.seed, request))
        mask, valid = _array(case, "mask"), _array(case, "valid")
        crop = place_crop(mask, valid, request.shape, generator)
        image = _array(case, name)[crop][None].clip(-1, 1)
        weight = valid[crop][None] if name == "target" else np.ones_like(image)
        if self.flips and generator.random() < 0.5:
            image, weight = image[:, ::-1], weight[:, ::-1]
        return {
            "image": padded(image, request.shape, AIR),
            "weight": padded(weight, request.shape, 0),
            "key": torch.tensor([request.batch, request.place]),
        }


class LatentDataset(RequestDataset):
    """Crops of latents that were encoded beforehand, standardised per channel.

    A case's folder holds `target.npy` and the condition's parts, float32 (channels, *latent), and
    `weight.npy` and `mask.npy`, float32 (*latent), the share of valid and of body voxels; with flips
    the same again under `flipped/`, encoded from the mirrored volume: encoding and mirroring do not commute.

    Items: `target` (channels, *crop), `condition` (parts · channels, *crop), `weight` (1, *crop), `key` (2,),
    and, where they are asked for, voxels of that place: `windows` (windows, *factor · crop) of the source,
    and `draft_image`, `target_image` and `valid` (1, *factor · crop).

    Args:
        folders: one a case.
        condition: names of the condition's encoded parts, joined along the channels in this order.
        mean: per latent channel, of the training targets.
        std: likewise, the deviation.
        change_std: per channel, of the standardised targets' difference from the drafts: `target` is then
            that difference, divided by this; None: the target itself.
        crop_size: edges of a crop in latent voxels; None: whole volumes.
        shrink: how much shorter the crops of a batch may be, see `BatchStream`; whole volumes stay whole.
        flips: whether to take the mirrored encodings at random.
        seed: of the augmentation.
        cases: the cases of the folders, to take voxels from.
        windows: whether items show the source's windows.
        shift: moves the source's values in them; None: they stay.
        images: whether items show the images of draft and target.
        factor: voxels per latent along each axis.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        condition: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        crop_size: Sequence[int] | None,
        shrink: int,
        flips: bool,
        seed: int,
        change_std: Sequence[float] | None = None,
        cases: Sequence[PreparedCase] = (),
        windows: bool = False,
        shift: SourceShift | None = None,
        images: bool = False,
        factor: int = 1,
    ) -> None:
        self.shrink = 0 if crop_size is None else shrink
        self.cases = list(cases)
        self.windows = windows
        self.shift = shift
        self.images = images
        self.factor = factor
        self.folders = list(folders)
        self.condition = list(condition)
        self.mean = np.asarray(mean, np.float32)[:, None, None, None]
        self.std = np.asarray(std, np.float32)[:, None, None, None]
        self.change_std = (
            None if change_std is None else np.asarray(change_std, np.float32)[:, None, None, None]
        )
        self.flips = flips
        self.seed = seed
        self.sizes = [_cropped_size(_mapped(f / "weight.npy").shape, crop_size) for f in self.folders]

    def __getitem__(self, request: Request) -> Item:
        folder = self.folders[request.index]
        generator = np.random.default_rng(item_seed(self.seed, request))
        flipped = self.flips and generator.random() < 0.5
        if flipped:
            folder = folder / "flipped"
        mask, valid = _mapped(folder / "mask.npy"), _mapped(folder / "weight.npy")
        crop = place_crop(mask, valid, request.shape, generator)

        def standardised(name: str) -> NDArray[np.float32]:
            latents = _mapped(folder / f"{name}.npy")[(slice(None), *crop)]
            return (latents - self.mean) / self.std

        target = standardised("target")
        if self.change_std is not None:
            target = (target - standardised("draft")) / self.change_std
        item = {
            "target": padded(target, request.shape, 0),
            "condition": torch.cat([padded(standardised(name), request.shape, 0) for name in self.condition])
            if self.condition
            else torch.empty(0, *request.shape),
            "weight": padded(valid[crop][None], request.shape, 0),
            "key": torch.tensor([request.batch, request.place]),
        }
        voxels = tuple(slice(self.factor * part.start, self.factor * part.stop) for part in crop)
        shape = tuple(self.factor * edge for edge in request.shape)

        def cropped(name: str) -> NDArray[Any]:
            array = _array(self.cases[request.index], name)
            array = array if array.ndim == 4 else array[None]
            return (array[:, ::-1] if flipped else array)[(slice(None), *voxels)]

        if self.windows:
            source = cropped("source")
            if self.shift is not None:
                source = self.shift(source, generator)
            item["windows"] = padded(source, shape, AIR)
        if self.images:
            item["draft_image"] = padded(cropped("draft"), shape, AIR)
            item["target_image"] = padded(cropped("target").clip(-1, 1), shape, AIR)
            item["valid"] = padded(cropped("valid"), shape, 0)
        return item
