"""Training of the VQ-VAE, whose latent space the 3D stage works in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ct2mri.data.cases import PreparedCase, PreparedDataset
from ct2mri.data.datasets import VolumeDataset
from ct2mri.errors import RequestError
from ct2mri.models import VQVAE, codes_in_use, perplexity
from ct2mri.options.training import TrainVqvaeOptions
from ct2mri.stages import Execution, save_vqvae
from ct2mri.stages.coding import decode, encode
from ct2mri.training.loop import check_options, fit
from ct2mri.training.module import Batch, StageModule, load_initial_weights
from ct2mri.training.pictures import strip
from ct2mri.training.run import RunFolder
from ct2mri.training.supervisor import Validation

SHOWN_CASES = 4


class VqvaeModule(StageModule):
    """Has a 3D VQ-VAE, trained to reconstruct target volumes and drafts of them."""

    model: VQVAE

    def __init__(self, options: TrainVqvaeOptions) -> None:
        model = VQVAE(
            spatial_dims=3,
            hidden_channels=options.hidden_channels,
            num_res_blocks=options.num_res_blocks,
            embedding_dim=options.embedding_dim,
            num_embeddings=options.num_embeddings,
            commitment_cost=options.commitment_cost,
            latent_activation=options.latent_activation,
            codebook_update=options.codebook_update,
            gradient_checkpointing=options.gradient_checkpointing,
        )
        super().__init__(options, model)

    def loss(self, batch: Batch) -> Tensor:
        """Squared error of a batch of crops (B, 1, i, j, k) over valid voxels, and the codebook's loss."""
        image, weight = batch["image"], batch["weight"]
        reconstruction, vq_loss, _ = self.model(image)
        axes = tuple(range(1, image.ndim))
        error = (weight * (reconstruction - image) ** 2).sum(axes) / weight.sum(axes).clamp(min=1)
        loss: Tensor = error.mean() + vq_loss
        return loss


class VqvaeValidation:
    """Reconstructs unseen patients' targets, whole, as in use: the middle of a head is its easiest part.

    The best weights are those with the lowest mean absolute error (`l1`) in the body.

    Args:
        cases: validation cases.
        target_name: of the target in the pictures.
    """

    def __init__(self, cases: Sequence[PreparedCase], target_name: str) -> None:
        self.target_name = target_name
        self.execution = Execution()
        self.cases = [case for case in cases if bool((case.mask & case.valid).any())]

    def __call__(self, module: VqvaeModule) -> Validation:
        """Reconstruct, compare, and show."""
        errors, squares, codes = list[float](), list[float](), list[Tensor]()
        rows: list[list[NDArray[np.float32]]] = []
        for case in self.cases:
            target, inside = np.array(case.target).clip(-1, 1), np.array(case.mask & case.valid)
            # In tiles where a volume does not fit into memory whole.
            latents = encode(module.model, torch.from_numpy(target)[None], self.execution)
            codes.append(module.model.quantizer(latents[None])[2].flatten())
            result = decode(module.model, [latents], target.shape, self.execution)[0].numpy()
            difference = (result - target)[inside] / 2  # in units of the target's range
            errors.append(float(np.abs(difference).mean()))
            squares.append(float(np.square(difference).mean()))
            if len(rows) < SHOWN_CASES:
                middle = result.shape[2] // 2
                rows.append([target[:, :, middle], result[:, :, middle]])
        numbers = {
            "l1": float(np.mean(errors)),
            "psnr": float(np.mean(-10 * np.log10(np.maximum(squares, 1e-12)))),
            "codes_in_use": float(codes_in_use(torch.cat(codes))),
            "perplexity": perplexity(torch.cat(codes)),
        }
        columns = (f"real {self.target_name}", "reconstructed")
        return Validation(
            score=numbers["l1"], numbers=numbers, pictures={"reconstruction": strip(columns, rows)}
        )


def _write_best(module: VqvaeModule, folder: Path) -> None:
    save_vqvae(module.model, folder)


def train_vqvae(options: TrainVqvaeOptions) -> None:
    """Train on the targets of a prepared data set, and on their drafts where they are drawn already.

    Everything is computed in float32, and the weights are not averaged: neither agrees with a codebook.

    Raises:
        RequestError: the options contradict one another, the machine, the data set or the run folder.
    """
    check_options(options)
    if options.precision == "bf16":
        raise RequestError(
            "The VQ-VAE is trained in float32, since bfloat16 moves latents to other codes; got "
            "--precision bf16, give auto or 32."
        )
    options = replace(options, precision="32")
    factor = 2 ** len(options.hidden_channels)
    if len(options.crop_size) != 3 or any(edge < factor or edge % factor for edge in options.crop_size):
        raise RequestError(
            f"--crop_size is three multiples of {factor}, got {options.crop_size}; the VQ-VAE halves "
            f"each axis {len(options.hidden_channels)} times."
        )
    dataset = PreparedDataset(options.data)
    training = [dataset.case(case_id) for case_id in dataset.case_ids("train")]
    validating = [dataset.case(case_id) for case_id in dataset.case_ids("validation")]
    if not training:
        raise RequestError(f"{options.data} has no training case; prepare it with smaller other fractions.")
    for case in training:
        if min(case.spatial_shape) == 1:
            shape = "×".join(map(str, case.spatial_shape))
            raise RequestError(
                f"The VQ-VAE and the 3D stage learn from volumes, and {case.case_id} is a single slice "
                f"({shape} voxels); give a data set of volumes, or train the 2D stage alone "
                "(`ct2mri train slices`)."
            )
    items = VolumeDataset(training, crop_size=options.crop_size, flips=options.flips, seed=options.seed)
    validation = VqvaeValidation(validating[: options.validation_cases], dataset.plan.target_modality.upper())
    if not validation.cases:
        raise RequestError(
            f"{options.data} has no validation case; prepare it with a larger --validation_fraction."
        )

    def make_module() -> VqvaeModule:
        module = VqvaeModule(options)
        if options.init is not None:
            load_initial_weights(module.model, options.init, "vqvae")
        return module

    folder = RunFolder(options.output_dir, "vqvae", options, dataset.plan)
    fit(folder, make_module, items, validation, _write_best, codebook=True)
