"""Stages of a pipeline: a network, the diffusion process it was trained for, and its condition.

On disk a stage is a folder: `config.json` and `model.safetensors` are the network, `stage.json` the rest.
Every stage samples one volume in the networks' units, [−1, 1], on the working grid, axes in RAS+ order.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from ct2mri.data.cases import SLICE_AXIS, Orientation
from ct2mri.diffusion import NoiseSettings, SeededNoise, check_steps, sample
from ct2mri.errors import RequestError
from ct2mri.models import VQVAE, ScalableUNet
from ct2mri.options import Sampler
from ct2mri.stage_files import Kind, facts_of, load_network, read_stage, save_network, weights_hash

AIR = -1.0

ConditionPart = Literal["draft", "source"]
Condition = Mapping[ConditionPart, Tensor]
"""Volumes to draw from: `source` (windows, i, j, k) and, after the first stage, `draft` (1, i, j, k)."""
OnStep = Callable[[str, int, int], None]
"""Told (stage, steps done, steps in all) after each step; raising in it stops the sampling."""


class SlicesStage:
    """The 2D model: draws a volume slice by slice from the source's slices, many slices at a time.

    Args:
        network: 2D, one sample channel, one condition channel a source window.
        noise: the process it was trained for.
        sampler: used unless another is asked for.
        num_inference_steps: used unless others are asked for.
        orientations: of the slices; the volumes drawn in several are averaged.
        batch_size: slices that go through the network together.

    Raises:
        RequestError: a setting is not allowed.
    """

    kind: Kind = "slices"

    def __init__(
        self,
        network: ScalableUNet,
        noise: NoiseSettings,
        *,
        sampler: Sampler,
        num_inference_steps: int,
        orientations: Sequence[Orientation] = ("axial",),
        batch_size: int = 16,
    ) -> None:
        _check_names("orientations of a slices stage", orientations, SLICE_AXIS)
        check_batch_size(batch_size)
        check_sampling(sampler, num_inference_steps, noise)
        self.network = network
        self.noise = noise
        self.sampler = sampler
        self.num_inference_steps = num_inference_steps
        self.orientations = tuple(orientations)
        self.batch_size = batch_size

    def to(self, device: torch.device | str) -> Self:
        """Move the network."""
        self.network.to(device)
        return self

    @torch.inference_mode()
    def sample(
        self,
        condition: Condition,
        noise: SeededNoise,
        on_step: OnStep | None = None,
        *,
        sampler: Sampler | None = None,
        num_inference_steps: int | None = None,
    ) -> Tensor:
        """Draw a volume.

        Args:
            condition: of its volumes, the source.
            noise: one volume of it is drawn and sliced, so that a result does not depend on the batches.
            on_step: told of progress.
            sampler: instead of the stage's own.
            num_inference_steps: instead of the stage's own.

        Returns:
            (1, i, j, k) in [−1, 1] on the CPU; −1 in slices whose condition is empty.
        """
        sampler = sampler or self.sampler
        steps = self.num_inference_steps if num_inference_steps is None else num_inference_steps
        check_sampling(sampler, steps, self.noise)
        source = condition["source"]
        if len(source) != self.network.condition_channels:
            raise RequestError(
                f"The slices stage takes {self.network.condition_channels} source windows, "
                f"got {len(source)}; use the plan that it was trained with."
            )
        shape = (int(source.shape[1]), int(source.shape[2]), int(source.shape[3]))
        start = noise((1, *shape), stage=self.kind)
        orientations = self._orientations_for(shape)

        batches: list[tuple[Orientation, Tensor]] = []
        for orientation in orientations:
            # A slice that holds only the lowest value of every window shows nothing to draw from.
            shown = _slices_first(source, orientation).flatten(1).amax(dim=1) > AIR
            batches += [
                (orientation, indices) for indices in torch.split(shown.nonzero().flatten(), self.batch_size)
            ]
        batches = [(orientation, indices) for orientation, indices in batches if len(indices)]

        drawn = {orientation: torch.full((1, *shape), AIR) for orientation in orientations}
        for number, (orientation, indices) in enumerate(batches):
            _slices_first(drawn[orientation], orientation)[indices] = self._draw(
                _slices_first(source, orientation)[indices],
                _slices_first(start, orientation)[indices],
                [f"slices/{orientation}/{index}" for index in indices.tolist()],
                noise,
                sampler,
                steps,
                (number, len(batches), on_step),
            )
        return (sum(drawn.values(), torch.zeros(1, *shape)) / len(drawn)).clamp(-1, 1)

    def _draw(
        self,
        source: Tensor,
        start: Tensor,
        names: list[str],
        noise: SeededNoise,
        sampler: Sampler,
        steps: int,
        progress: tuple[int, int, OnStep | None],
    ) -> Tensor:
        """Draw one batch of slices.

        Args:
            source: (n, C, H, W).
            start: (n, 1, H, W), noise.
            names: one a slice, to draw fresh noise by: a whole volume of it at every step would have to be
                kept from batch to batch.
            noise: fresh noise.
            sampler: how to step.
            steps: how often.
            progress: this batch's number, how many there are, and who is told.

        Returns:
            (n, 1, H, W) on the CPU.
        """
        device = _prepare(self.network)
        number, batches, on_step = progress
        shape = tuple(start.shape[1:])
        return sample(
            self.network,
            source.to(device),
            start.to(device),
            self.noise,
            sampler=sampler,
            num_inference_steps=steps,
            step_noise=lambda step: torch.stack([noise(shape, stage=name, step=step) for name in names]),
            on_step=None
            if on_step is None
            else lambda step, of: on_step(self.kind, number * of + step, batches * of),
        ).cpu()

    def _orientations_for(self, shape: tuple[int, int, int]) -> list[Orientation]:
        """The stage's orientations whose slices are more than a line in a volume of this shape.

        A volume that is one slice itself is drawn as that slice, whatever the stage's orientations.
        """

        def is_plane(orientation: Orientation) -> bool:
            return min(n for axis, n in enumerate(shape) if axis != SLICE_AXIS[orientation]) > 1

        own = [orientation for orientation in self.orientations if is_plane(orientation)]
        return own or [name for name in SLICE_AXIS if is_plane(name)] or list(self.orientations)

    def save_stage(self, folder: str | Path) -> None:
        """Write the stage into a folder of its own."""
        facts = {
            "noise": self.noise.to_dict(),
            "sampler": self.sampler,
            "num_inference_steps": self.num_inference_steps,
            "orientations": list(self.orientations),
        }
        save_network(self.network, self.kind, facts, folder)

    @classmethod
    def load_stage(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """Read what `save_stage` wrote.

        Raises:
            RequestError: a part is missing or damaged, or the folder holds another stage.
        """
        folder = Path(folder)
        facts = read_stage(folder, cls.kind)
        network = load_network(ScalableUNet, folder, device)
        with facts_of(folder):
            return cls(
                network,
                NoiseSettings.from_dict(facts["noise"]),
                sampler=facts["sampler"],
                num_inference_steps=facts["num_inference_steps"],
                orientations=tuple(facts["orientations"]),
            )


class LatentsStage:
    """The 3D model: refines a volume in the latent space of a VQ-VAE.

    Latents are the encoder's output before quantisation, standardised per channel; they are quantised only
    before decoding.

    Args:
        network: 3D, its sample channels the latent channels, its condition channels as many per part.
        vqvae: whose latent space it works in.
        noise: the process it was trained for.
        sampler: used unless another is asked for.
        num_inference_steps: used unless others are asked for.
        latents_mean: per latent channel.
        latents_std: per latent channel.
        condition: the volumes that are encoded as condition: `draft`, `source` (its first window) or both.
        draft: facts on the drafts it was trained on, as the data set's `draft.json` tells them; may be empty.

    Raises:
        RequestError: a setting is not allowed, or the networks do not fit together.
    """

    kind: Kind = "latents"

    def __init__(
        self,
        network: ScalableUNet,
        vqvae: VQVAE,
        noise: NoiseSettings,
        *,
        sampler: Sampler,
        num_inference_steps: int,
        latents_mean: Sequence[float],
        latents_std: Sequence[float],
        condition: Sequence[ConditionPart],
        draft: dict[str, Any],
    ) -> None:
        _check_names("condition of a latents stage", condition, get_args(ConditionPart))
        channels = vqvae.embedding_dim
        if len(latents_mean) != channels or len(latents_std) != channels or min(latents_std) <= 0:
            raise RequestError(
                f"latents_mean and latents_std need {channels} numbers each, one a latent channel, and "
                f"deviations are positive; got {list(latents_mean)} and {list(latents_std)}."
            )
        expected = (channels, channels * len(condition))
        if (network.sample_channels, network.condition_channels) != expected:
            raise RequestError(
                f"The latents network takes {network.sample_channels} sample and "
                f"{network.condition_channels} condition channels, but this VQ-VAE with the "
                f"condition {' + '.join(condition)} gives {expected[0]} and {expected[1]}; "
                "take the one that it was trained with."
            )
        check_sampling(sampler, num_inference_steps, noise)
        self.network = network
        self.vqvae = vqvae
        self.noise = noise
        self.sampler = sampler
        self.num_inference_steps = num_inference_steps
        self.latents_mean = [float(n) for n in latents_mean]
        self.latents_std = [float(n) for n in latents_std]
        self.condition = list(condition)
        self.draft = dict(draft)

    def to(self, device: torch.device | str) -> Self:
        """Move both networks."""
        self.network.to(device)
        self.vqvae.to(device)
        return self

    @torch.inference_mode()
    def encode_standardised(self, volume: Tensor) -> Tensor:
        """Standardised latents of a volume.

        Args:
            volume: (1, i, j, k) in [−1, 1].

        Returns:
            (latent channels, ⌈i/4⌉, ⌈j/4⌉, ⌈k/4⌉), on the networks' device.
        """
        latents = self.vqvae.encode(volume[None].to(_prepare(self.vqvae)))[0]
        return (latents - _per_channel(self.latents_mean, latents)) / _per_channel(self.latents_std, latents)

    @torch.inference_mode()
    def decode_standardised(self, latents: Tensor, spatial_shape: Sequence[int]) -> Tensor:
        """The volume (1, *spatial_shape) in [−1, 1] of standardised latents, which are quantised first."""
        _prepare(self.vqvae)
        latents = latents * _per_channel(self.latents_std, latents) + _per_channel(self.latents_mean, latents)
        return self.vqvae.decode(self.vqvae.quantize(latents[None]), spatial_shape)[0]

    @torch.inference_mode()
    def sample(
        self,
        condition: Condition,
        noise: SeededNoise,
        on_step: OnStep | None = None,
        *,
        sampler: Sampler | None = None,
        num_inference_steps: int | None = None,
    ) -> Tensor:
        """Refine a volume.

        Args:
            condition: the volumes that the stage is conditioned on, among others.
            noise: of the latents.
            on_step: told of progress.
            sampler: instead of the stage's own.
            num_inference_steps: instead of the stage's own.

        Returns:
            (1, i, j, k) in [−1, 1] on the CPU.

        Raises:
            RequestError: the stage needs a draft and there is none.
        """
        if missing := [part for part in self.condition if part not in condition]:
            raise RequestError(
                f"The latents stage is conditioned on a {missing[0]}, and there is none; "
                "put the stage that draws it before this one."
            )
        sampler = sampler or self.sampler
        steps = self.num_inference_steps if num_inference_steps is None else num_inference_steps
        check_sampling(sampler, steps, self.noise)
        device = _prepare(self.network)
        # (latent channels · parts, i/4, j/4, k/4); of the source's windows the first.
        encoded = torch.cat([self.encode_standardised(condition[part][:1]) for part in self.condition])
        shape = (1, self.vqvae.embedding_dim, *encoded.shape[1:])
        latents = sample(
            self.network,
            encoded[None],
            noise(shape, stage=self.kind).to(device),
            self.noise,
            sampler=sampler,
            num_inference_steps=steps,
            step_noise=lambda step: noise(shape, stage="latents", step=step),
            on_step=None if on_step is None else lambda step, of: on_step(self.kind, step, of),
        )
        return self.decode_standardised(latents[0], condition["source"].shape[1:]).clamp(-1, 1).cpu()

    def save_stage(self, folder: str | Path) -> None:
        """Write the stage into a folder of its own; the VQ-VAE goes beside it, with `save_vqvae`."""
        facts = {
            "noise": self.noise.to_dict(),
            "sampler": self.sampler,
            "num_inference_steps": self.num_inference_steps,
            "latents_mean": self.latents_mean,
            "latents_std": self.latents_std,
            "condition": self.condition,
            "draft": self.draft,
            "vqvae": weights_hash(self.vqvae),
        }
        save_network(self.network, self.kind, facts, folder)

    @classmethod
    def load_stage(
        cls, folder: str | Path, device: torch.device | str = "cpu", *, vqvae: str | Path | None = None
    ) -> Self:
        """Read what `save_stage` wrote.

        Args:
            folder: the stage.
            device: to load to.
            vqvae: the VQ-VAE's folder; by default `vqvae` beside the stage's folder.

        Raises:
            RequestError: a part is missing or damaged, the folder holds another stage, or the VQ-VAE is not
                the one that the stage was trained with.
        """
        folder = Path(folder)
        facts = read_stage(folder, cls.kind)
        vqvae_folder = folder.parent / "vqvae" if vqvae is None else Path(vqvae)
        autoencoder = load_vqvae(vqvae_folder, device)
        network = load_network(ScalableUNet, folder, device)
        with facts_of(folder):
            if facts["vqvae"] != weights_hash(autoencoder):
                raise RequestError(
                    f"The VQ-VAE in {vqvae_folder} is not the one that {folder} was trained with; "
                    "put that one there, or export the pipeline again."
                )
            return cls(
                network,
                autoencoder,
                NoiseSettings.from_dict(facts["noise"]),
                sampler=facts["sampler"],
                num_inference_steps=facts["num_inference_steps"],
                latents_mean=facts["latents_mean"],
                latents_std=facts["latents_std"],
                condition=facts["condition"],
                draft=facts["draft"],
            )


def save_vqvae(vqvae: VQVAE, folder: str | Path) -> None:
    """Write a VQ-VAE into a folder of its own."""
    save_network(vqvae, "vqvae", {}, folder)


def load_vqvae(folder: str | Path, device: torch.device | str = "cpu") -> VQVAE:
    """Read what `save_vqvae` wrote.

    Raises:
        RequestError: a part is missing or damaged, or the folder holds another stage.
    """
    folder = Path(folder)
    read_stage(folder, "vqvae")
    return load_network(VQVAE, folder, device)


def check_batch_size(batch_size: int) -> None:
    """Raise RequestError unless a batch holds at least one item."""
    if batch_size < 1:
        raise RequestError(f"--batch_size is at least 1, got {batch_size}.")


def check_sampling(sampler: str, num_inference_steps: int, noise: NoiseSettings) -> None:
    """Raise RequestError unless there is such a sampler and it can take so many steps."""
    if sampler not in get_args(Sampler):
        raise RequestError(f"The sampler is one of {', '.join(get_args(Sampler))}, got {sampler!r}.")
    check_steps(num_inference_steps, noise)


def _check_names(what: str, names: Sequence[str], allowed: Iterable[str]) -> None:
    allowed = list(allowed)
    if not names or len(set(names)) < len(names) or not set(names) <= set(allowed):
        raise RequestError(
            f"The {what}: one or more of {', '.join(allowed)}, each once; got {', '.join(names) or 'none'}."
        )


def _slices_first(volume: Tensor, orientation: Orientation) -> Tensor:
    """A view (n, C, H, W) of a volume (C, i, j, k): its slices along the axis that they leave out."""
    return volume.movedim(SLICE_AXIS[orientation] + 1, 0)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, 1, 1, 1)


def _prepare(network: nn.Module) -> torch.device:
    """Set a network to inference and say where it is."""
    network.eval()
    return next(network.parameters()).device
