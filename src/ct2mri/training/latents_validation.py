"""What the training of the 3D stage is judged by: refined volumes of patients it has not seen."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ct2mri.data.cases import PreparedCase
from ct2mri.diffusion import SeededNoise, noisy_sample, sample
from ct2mri.losses import diffusion_loss
from ct2mri.options.training import TrainLatentsOptions
from ct2mri.stages import LatentsStage
from ct2mri.training.encoding import Latents
from ct2mri.training.latents_module import LatentsModule
from ct2mri.training.module import begin_at_estimate
from ct2mri.training.pictures import strip
from ct2mri.training.supervisor import Validation

SHOWN_CASES = 3


class LatentsValidation:
    """Compares refined volumes of unseen patients with the real ones, always the same with the same noise.

    The best weights are those whose volumes, sampled as they will be in use and decoded, have the lowest mean
    absolute error (`l1`) in the body; `loss` is the training loss at two fixed timesteps, `draft_l1` the
    error of what is refined. Where decoding is residual, each validation first fits the `residual_gain` whose
    volumes have the least squared error in the body, and goes on with it.

    Args:
        cases: validation cases.
        latents: their encodings.
        stage_of: makes the stage around a module's network.
        options: how the network is trained.
        names: of source and target in the pictures.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        latents: Latents,
        stage_of: Callable[[LatentsModule], LatentsStage],
        options: TrainLatentsOptions,
        names: tuple[str, str],
    ) -> None:
        self.cases = [case for case in cases if bool((case.mask & case.valid).any())]
        self.latents = latents
        self.stage_of = stage_of
        self.options = options
        self.names = names
        self.residual_gain = 1.0

    def __call__(self, module: LatentsModule) -> Validation:
        """Sample, decode, compare, and show."""
        found: dict[str, list[float]] = {}
        rows: dict[str, list[list[NDArray[np.float32]]]] = {"axial": [], "coronal": []}
        decoded: list[NDArray[np.float32]] = []
        for number, case in enumerate(self.cases):
            loss, volume = self._sample(module, case, SeededNoise(number))
            found.setdefault("loss", []).append(loss)
            decoded.append(volume)
        if self.stage_of(module).decoding == "residual":
            self.residual_gain = fitted_gain(self.cases, decoded)
            found["residual_gain"] = [self.residual_gain]
            decoded = [
                (case.draft + np.float32(self.residual_gain) * change).clip(-1, 1)
                for case, change in zip(self.cases, decoded, strict=True)
                if case.draft is not None
            ]
        for number, (case, volume) in enumerate(zip(self.cases, decoded, strict=True)):
            images = self._images(case, volume)
            inside = np.array(case.mask & case.valid)
            difference = (images["refined"] - images["real"])[inside] / 2  # in units of the target's range
            square = max(float(np.square(difference).mean()), 1e-12)
            found.setdefault("l1", []).append(float(np.abs(difference).mean()))
            found.setdefault("psnr", []).append(-10 * float(np.log10(square)))
            if "draft" in images:
                draft_error = np.abs(images["draft"] - images["real"])[inside] / 2
                found.setdefault("draft_l1", []).append(float(draft_error.mean()))
            if number < SHOWN_CASES:
                _, j, k = (n // 2 for n in case.spatial_shape)
                rows["axial"].append([image[:, :, k] for image in images.values()])
                rows["coronal"].append([image[:, j, :] for image in images.values()])
        numbers = {name: float(np.mean(values)) for name, values in found.items()}
        source_name, target_name = self.names
        named = {"source": source_name, "real": f"real {target_name}"}
        columns = [named.get(name, name) for name in images]
        return Validation(
            score=numbers["l1"],
            numbers=numbers,
            pictures={name: strip(columns, shown) for name, shown in rows.items()},
        )

    def _sample(
        self, module: LatentsModule, case: PreparedCase, noise: SeededNoise
    ) -> tuple[float, NDArray[np.float32]]:
        """A case's training loss, and its refined volume; with residual decoding the change alone."""
        target, condition, weight = (part.to(module.device) for part in self.latents.load(case))

        def step_noise(step: int) -> Tensor:
            return noise(tuple(target.shape), stage="latents", step=step)

        start = step_noise(-1).to(target)
        loss = self._loss(module, target, condition, weight, start)
        refined = sample(
            module.model,
            condition,
            start,
            module.settings,
            sampler=self.options.sampler,
            num_inference_steps=self.options.num_inference_steps,
            step_noise=step_noise,
        )[0]
        stage = self.stage_of(module)
        refined = stage.standardised(refined, condition[0])
        with torch.autocast(module.device.type, enabled=False):
            if stage.decoding == "residual":
                volume = stage.residual(refined.float(), condition[0], case.spatial_shape)
            else:
                volume = stage.decode_standardised(refined.float(), case.spatial_shape).clamp(-1, 1)
        array: NDArray[np.float32] = volume[0].cpu().numpy()
        return loss, array

    def _loss(
        self, module: LatentsModule, target: Tensor, condition: Tensor, weight: Tensor, noise: Tensor
    ) -> float:
        """The training loss at the last timestep and in the middle of the others that are trained."""
        settings, options = module.settings, self.options
        losses = []
        for step in (settings.last_timestep, (settings.restart_timestep or settings.last_timestep) // 2):
            timestep = torch.tensor([step], device=target.device)
            drawn = noise
            if options.restart_from_estimate:
                drawn = begin_at_estimate(module.model, condition, noise, target, timestep, settings)
            network_input, training_target = noisy_sample(target, drawn, timestep, settings)
            output = module.model(network_input, timestep, condition)
            losses.append(
                diffusion_loss(
                    output,
                    training_target,
                    timestep,
                    settings,
                    loss=options.loss,
                    weight=weight,
                    min_snr_gamma=options.min_snr_gamma,
                )
            )
        return float(torch.stack(losses).mean())

    @staticmethod
    def _images(case: PreparedCase, refined: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """What a row shows, in this order, each (i, j, k) in [−1, 1]."""
        images = {"source": np.array(case.source[0])}
        if case.draft is not None:
            images["draft"] = np.array(case.draft)
        return images | {"refined": refined, "real": np.array(case.target).clip(-1, 1)}


def fitted_gain(cases: Sequence[PreparedCase], changes: Sequence[NDArray[np.float32]]) -> float:
    """The share of the changes to drafts that leaves the least squared error in the body, 0 to 1."""
    along = square = 0.0
    for case, change in zip(cases, changes, strict=True):
        assert case.draft is not None
        inside = np.array(case.mask & case.valid)
        wanted = (np.array(case.target).clip(-1, 1) - case.draft)[inside].astype(np.float64)
        given = change[inside].astype(np.float64)
        along += float(given @ wanted)
        square += float(given @ given)
    return min(max(along / square, 0.0), 1.0) if square > 0 else 1.0
