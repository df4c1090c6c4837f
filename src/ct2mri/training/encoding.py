"""Latents of whole volumes, encoded once before the 3D stage is trained on them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ct2mri.data.cases import PreparedCase
from ct2mri.data.datasets import AIR
from ct2mri.errors import RequestError
from ct2mri.files import atomic_folder
from ct2mri.models import VQVAE
from ct2mri.models.layers import space_to_depth
from ct2mri.processes import join, place
from ct2mri.stage_files import weights_hash
from ct2mri.stages import Execution
from ct2mri.stages.coding import encode

SMALLEST_STD = 1e-3
"""A latent channel that varies less is not blown up further."""


class Latents:
    """Encoded cases on disk.

    Whole volumes are encoded, as in use, and once, which is much faster than anew in each step. They lie
    under RUN/latents/IDENTITY, which stands for all they depend on, so what is there already can be kept.
    Several processes share the work.

    Args:
        run: the run folder.
        vqvae: in evaluation mode, on its device.
        training: cases to train on; `mean` and `std` are those of their targets.
        validating: further cases.
        condition: names of the condition's parts; `windows` need no encoding and are joined when loaded.
        flips: whether to encode training cases mirrored left-right as well.
        draft: facts on the drafts.
        change: whether what is learned is how the targets differ from the drafts.

    Attributes:
        mean: of each latent channel over the training targets, where they are valid.
        std: likewise, the deviation.
        change_std: likewise, how far the standardised targets lie from the drafts (root mean square); None
            where the targets themselves are learned.
    """

    def __init__(
        self,
        run: Path,
        vqvae: VQVAE,
        training: Sequence[PreparedCase],
        validating: Sequence[PreparedCase],
        *,
        condition: Sequence[str],
        flips: bool,
        draft: Mapping[str, object],
        change: bool = False,
    ) -> None:
        self.vqvae = vqvae
        self.execution = Execution(sharers=place().local_world_size)
        self.encoded = [part for part in condition if part != "windows"]
        self.windows = "windows" in condition
        made_of = [[case.case_id, case.spatial_shape, case.inputs] for case in (*training, *validating)]
        identity = json.dumps([self.encoded, flips, dict(draft), made_of], sort_keys=True)
        digest = hashlib.sha256(f"{identity} {weights_hash(vqvae)}".encode())
        self.root = run / "latents" / digest.hexdigest()[:16]
        wanted = [(case, flips) for case in training] + [(case, False) for case in validating]
        rank, world_size = place().rank, place().world_size
        mine = [(case, both) for case, both in wanted[rank::world_size] if not self.folder(case).exists()]
        for case, both in tqdm(mine, desc="encoding", unit="case", disable=len(mine) == 0 or rank > 0):
            self._encode(case, both)
        join().gather(None)  # the other processes may still be encoding their share
        self.mean, self.std = self._statistics(training)
        self.change_std = self._change_std(training) if change else None

    def folder(self, case: PreparedCase) -> Path:
        """Where a case's latents lie."""
        return self.root / case.case_id

    def load(self, case: PreparedCase) -> tuple[Tensor, Tensor, Tensor]:
        """Standardised target or change, condition, (1, channels, *latent), and weight, (1, 1, *latent)."""
        folder = self.folder(case)
        parts = [self._standardised(np.load(folder / f"{name}.npy")) for name in ["target", *self.encoded]]
        if self.change_std is not None:
            draft = parts[1 + self.encoded.index("draft")]
            parts[0] = (parts[0] - draft) / torch.tensor(self.change_std)[:, None, None, None]
        if self.windows:
            source = torch.from_numpy(np.array(case.source, dtype=np.float32))[None]
            parts.append(space_to_depth(source, self.vqvae.factor, AIR))
        weight = torch.from_numpy(np.load(folder / "weight.npy"))[None, None]
        return parts[0], torch.cat(parts[1:], dim=1), weight

    def _standardised(self, latents: NDArray[np.float32]) -> Tensor:
        mean, std = (
            np.asarray(numbers, np.float32)[:, None, None, None] for numbers in (self.mean, self.std)
        )
        return torch.from_numpy((latents - mean) / std)[None]

    def _encode(self, case: PreparedCase, both: bool) -> None:
        images: dict[str, NDArray[np.float32]] = {"target": case.target}
        if "draft" in self.encoded:
            assert case.draft is not None
            images["draft"] = case.draft
        if "source" in self.encoded:
            images["source"] = case.source[0]
        with atomic_folder(self.folder(case)) as temporary:
            for place, mirrored in [(temporary, False), (temporary / "flipped", True)][: 2 if both else 1]:
                place.mkdir(exist_ok=True)
                for name, image in images.items():
                    np.save(place / f"{name}.npy", self._encoded(image[::-1] if mirrored else image))
                for name, voxels in (("weight", case.valid), ("mask", case.mask)):
                    np.save(
                        place / f"{name}.npy",
                        _pooled(voxels[::-1] if mirrored else voxels, self.vqvae.factor),
                    )

    def _encoded(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """(i, j, k) → latents (channels, *latent)."""
        volume = torch.from_numpy(np.array(image, dtype=np.float32).clip(-1, 1))[None]
        latents: NDArray[np.float32] = encode(self.vqvae, volume, self.execution).cpu().numpy()
        return latents

    def _statistics(self, cases: Sequence[PreparedCase]) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel over the valid latents of the cases' targets."""
        count, total, square = 0, 0.0, 0.0
        for case in cases:
            latents = np.load(self.folder(case) / "target.npy").astype(np.float64)
            chosen = latents[:, np.load(self.folder(case) / "weight.npy") > 0.5]  # (channels, n)
            count += chosen.shape[1]
            total = total + chosen.sum(axis=1)
            square = square + (chosen**2).sum(axis=1)
        if count == 0:
            raise RequestError("No training target has a valid voxel; look at the data set's prepare.json.")
        mean = np.asarray(total) / count
        variance = np.asarray(square) / count - mean**2
        return mean.tolist(), np.sqrt(np.maximum(variance, SMALLEST_STD**2)).tolist()

    def _change_std(self, cases: Sequence[PreparedCase]) -> list[float]:
        """Root mean square of each standardised channel's difference between target and draft."""
        count, square = 0, 0.0
        for case in cases:
            folder = self.folder(case)
            change = np.load(folder / "target.npy").astype(np.float64) - np.load(folder / "draft.npy")
            chosen = change[:, np.load(folder / "weight.npy") > 0.5]
            count += chosen.shape[1]
            square = square + (chosen**2).sum(axis=1)
        deviation = np.sqrt(np.asarray(square) / count) / np.asarray(self.std)
        return [float(n) for n in np.maximum(deviation, SMALLEST_STD)]


def _pooled(mask: NDArray[np.bool_], factor: int) -> NDArray[np.float32]:
    """Share of each latent's voxels that are set, (i, j, k) → (*latent); beyond the edge none is."""
    tensor = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]
    padding = [pad for size in reversed(mask.shape) for pad in (0, -size % factor)]
    pooled: NDArray[np.float32] = functional.avg_pool3d(functional.pad(tensor, padding), factor)[0, 0].numpy()
    return pooled
