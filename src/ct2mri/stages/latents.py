"""The 3D stage: a volume refined in the latent space of a VQ-VAE."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from ct2mri.diffusion import NoiseSettings, SeededNoise, sample
from ct2mri.errors import RequestError
from ct2mri.models import VQVAE, ScalableUNet
from ct2mri.models.footprint import network_bytes
from ct2mri.models.layers import space_to_depth
from ct2mri.models.pretrained import PretrainedModel
from ct2mri.options.choices import ConditionPart, Decoding, Sampler
from ct2mri.stage_files import Kind, facts_of, load_network, read_stage, save_network, weights_hash
from ct2mri.stages.coding import Place, decode, encode
from ct2mri.stages.common import (
    AIR,
    Condition,
    DiffusionStage,
    OnStep,
    check_names,
    check_sampling,
    prepare_network,
)
from ct2mri.stages.execution import Portion
from ct2mri.stages.tiling import Tiling
from ct2mri.stages.windows import Windowed, windowings


class LatentsStage(DiffusionStage):
    """The 3D model: refines a volume in the latent space of a VQ-VAE.

    Latents are the encoder's output before quantisation, standardised per channel. Where they are decoded
    plainly, they are quantised first, as published; where residually, not: the codes of refined latents and
    of the draft's differ by their rounding as well, and that is noise.

    Args:
        network: 3D, its sample channels the latent channels, its condition channels as many per part.
        vqvae: whose latent space it works in.
        noise: the process it was trained for.
        sampler: used unless another is asked for.
        num_inference_steps: used unless others are asked for.
        latents_mean: per latent channel.
        latents_std: per latent channel.
        condition: what is refined from: `draft` and `source` (its first window) encoded by the VQ-VAE, and
            `windows`, the source's windows themselves, voxels as channels; one or more.
        draft: facts on the drafts it was trained on, as the data set's `draft.json` tells them; may be empty.
        decoding: `plain` decodes the refined latents; `residual` adds to the draft what refining changed of
            it, decoded: so the VQ-VAE costs the result none of the detail that the draft has.
        residual_gain: share of that change that is added, 0 to 1. Training fits it to unseen patients: draft
            and refined volume err apart, so that a mean of both errs least.
        change_std: per latent channel, where the network draws how the standardised latents differ from the
            draft's, in units of this; None: it draws the latents themselves.

    Raises:
        RequestError: a setting is not allowed, or the networks do not fit together.
    """

    kind: Kind = "latents"
    network: ScalableUNet

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
        decoding: Decoding = "plain",
        residual_gain: float = 1.0,
        change_std: Sequence[float] | None = None,
    ) -> None:
        check_names("condition of a latents stage", condition, get_args(ConditionPart))
        channels = vqvae.embedding_dim
        if len(latents_mean) != channels or len(latents_std) != channels or min(latents_std) <= 0:
            raise RequestError(
                f"latents_mean and latents_std need {channels} numbers each, one a latent channel, and "
                f"deviations are positive; got {list(latents_mean)} and {list(latents_std)}."
            )
        encoded = [part for part in condition if part != "windows"]
        of_windows = network.condition_channels - channels * len(encoded)
        windows, rest = divmod(of_windows, vqvae.factor**3)
        fits = windows > 0 and rest == 0 if "windows" in condition else of_windows == 0
        if network.sample_channels != channels or not fits:
            raise RequestError(
                f"The latents network takes {network.sample_channels} sample and "
                f"{network.condition_channels} condition channels, but this VQ-VAE with the "
                f"condition {' + '.join(condition)} gives {channels} and {channels * len(encoded)}"
                + (f" + {vqvae.factor**3} a window" if "windows" in condition else "")
                + "; take the one that it was trained with."
            )
        check_sampling(sampler, num_inference_steps, noise)
        check_names("decoding of a latents stage", [decoding], get_args(Decoding))
        if decoding == "residual" and "draft" not in condition:
            raise RequestError(
                "Residual decoding adds to the draft, and the latents stage is not conditioned on one; "
                "give it the draft as condition, or decode plainly."
            )
        if not 0 <= residual_gain <= 1:
            raise RequestError(f"The residual_gain of a latents stage is 0 to 1, got {residual_gain}.")
        if change_std is not None and (len(change_std) != channels or min(change_std) <= 0):
            raise RequestError(
                f"change_std needs {channels} positive numbers, one a latent channel; got {list(change_std)}."
            )
        if change_std is not None and "draft" not in condition:
            raise RequestError(
                "The network draws a change from the draft (change_std), and the latents stage is not "
                "conditioned on one; give it the draft as condition."
            )
        self.network = network
        self.vqvae = vqvae
        self.noise = noise
        self.sampler = sampler
        self.num_inference_steps = num_inference_steps
        self.latents_mean = [float(n) for n in latents_mean]
        self.latents_std = [float(n) for n in latents_std]
        self.condition = list(condition)
        self.encoded = encoded
        self.windows = windows
        self.draft = dict(draft)
        self.decoding = decoding
        self.residual_gain = residual_gain
        self.change_std = None if change_std is None else [float(n) for n in change_std]

    @property
    def networks(self) -> list[PretrainedModel]:
        """The U-Net and the VQ-VAE."""
        return [self.network, self.vqvae]

    @property
    def worth_compiling(self) -> list[nn.Module]:
        """The U-Net; the VQ-VAE's convolutions are as fast without."""
        return [self.network]

    def check_plan(self, channels: int, drafted: bool) -> None:
        """Raise RequestError if the stage refines drafts and no stage draws them, or knows other windows."""
        if "draft" in self.condition and not drafted:
            raise RequestError(
                "The latents stage refines drafts, and the stage that draws them is missing; "
                "put one before it."
            )
        if "windows" in self.condition and self.windows != channels:
            raise RequestError(
                f"The plan has {channels} source windows, the latents stage was trained with {self.windows}; "
                "use the plan that it was trained with."
            )

    @torch.inference_mode()
    def encode_standardised(self, volume: Tensor) -> Tensor:
        """Standardised latents of a volume, encoded in tiles where it does not fit into memory whole.

        Args:
            volume: (1, i, j, k) in [−1, 1].

        Returns:
            (latent channels, *latent), on the networks' device.
        """
        latents = encode(self.vqvae, volume, self.execution)
        return (latents - _per_channel(self.latents_mean, latents)) / _per_channel(self.latents_std, latents)

    @torch.inference_mode()
    def encode_condition(self, condition: Condition) -> Tensor:
        """What the network is shown of the condition: encoded parts one after the other, then the windows.

        Returns:
            (condition channels, *latent), on the networks' device.
        """
        shown = [self.encode_standardised(condition[part][:1]) for part in self.encoded]
        if "windows" in self.condition:
            source = condition["source"].to(prepare_network(self.network))
            shown.append(space_to_depth(source[None], self.vqvae.factor, AIR)[0])
        return torch.cat(shown)

    @torch.inference_mode()
    def decode_standardised(self, latents: Tensor, spatial_shape: Sequence[int]) -> Tensor:
        """The volume (1, *spatial_shape) in [−1, 1] of standardised latents, which are quantised first."""
        return decode(self.vqvae, [self._scaled(latents)], spatial_shape, self.execution)

    @torch.inference_mode()
    def residual(self, latents: Tensor, encoded: Tensor, spatial_shape: Sequence[int]) -> Tensor:
        """What refining changed of the draft: D(z) − D(E(draft)), E encoding, D decoding without codebook.

        Args:
            latents: z, standardised, (latent channels, *latent).
            encoded: the condition as `encode_condition` gives it.
            spatial_shape: of the volume.

        Returns:
            (1, *spatial_shape), on the CPU.
        """
        both = [self._scaled(latents), self._scaled(self._encoded_draft(encoded))]
        return decode(
            self.vqvae,
            both,
            spatial_shape,
            self.execution,
            lambda images, _: images[0] - images[1],
            quantise=False,
        )

    @torch.inference_mode()
    def finish(self, latents: Tensor, encoded: Tensor, condition: Condition) -> Tensor:
        """The volume that refined latents stand for: D(z), or draft + gain · residual.

        Args:
            latents: z, standardised, (latent channels, *latent).
            encoded: the condition as `encode_condition` gives it.
            condition: the volumes that were encoded; the shape is the source's.

        Returns:
            (1, i, j, k) in [−1, 1] on the CPU.
        """
        spatial_shape = condition["source"].shape[1:]
        wanted = condition.get("wanted")
        ours = self._scaled(latents)
        if self.decoding == "plain":
            return decode(self.vqvae, [ours], spatial_shape, self.execution, wanted=wanted).clamp_(-1, 1)

        def refined(images: list[Tensor], place: Place) -> Tensor:
            change = images[0] - images[1]
            return condition["draft"][place].to(change) + self.residual_gain * change

        both = [ours, self._scaled(self._encoded_draft(encoded))]
        volume = decode(self.vqvae, both, spatial_shape, self.execution, refined, wanted, quantise=False)
        return volume.clamp_(-1, 1)

    def standardised(self, drawn: Tensor, encoded: Tensor) -> Tensor:
        """The standardised latents that the network has drawn, or whose change from the draft's it has.

        Args:
            drawn: (latent channels, *latent).
            encoded: the condition as `encode_condition` gives it.
        """
        if self.change_std is None:
            return drawn
        return self._encoded_draft(encoded) + drawn * _per_channel(self.change_std, drawn)

    def _encoded_draft(self, encoded: Tensor) -> Tensor:
        channels = self.vqvae.embedding_dim
        first = channels * self.encoded.index("draft")
        return encoded[first : first + channels]

    def _scaled(self, latents: Tensor) -> Tensor:
        """The latents that the VQ-VAE knows, of standardised ones."""
        return latents * _per_channel(self.latents_std, latents) + _per_channel(self.latents_mean, latents)

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
        if "draft" in self.condition and "draft" not in condition:
            raise RequestError(
                "The latents stage is conditioned on a draft, and there is none; "
                "put the stage that draws it before this one."
            )
        sampler, steps = self.chosen(sampler, num_inference_steps)
        device = prepare_network(self.network)
        encoded = self.encode_condition(condition)
        shape = (1, self.vqvae.embedding_dim, *encoded.shape[1:])
        start = noise(shape, stage=self.kind).to(device)

        def denoise(windows: Tiling) -> Tensor:
            network = self.network if windows.is_whole else Windowed(self.network, windows)
            with self.execution.autocast(device):
                return sample(
                    network,
                    encoded[None],
                    start,
                    self.noise,
                    sampler=sampler,
                    num_inference_steps=steps,
                    step_noise=lambda step: noise(shape, stage="latents", step=step),
                    on_step=None if on_step is None else lambda step, of: on_step(self.kind, step, of),
                )

        latents, windows = self.execution.within(
            device,
            f"the {self.kind} stage",
            self._windowings(encoded.shape[1:]),
            lambda windows: (denoise(windows), windows),
        )
        self.tell_how_it_computed()
        if not windows.is_whole:
            self.execution.remark(
                f"The {self.kind} stage did not fit into memory whole and looked at the volume through "
                f"{' × '.join(map(str, windows.parts))} overlapping windows, blended at every step: its "
                "result differs a little from that of the whole; give it more memory (--max_memory) for that."
            )
        return self.finish(self.standardised(latents[0], encoded), encoded, condition)

    def _windowings(self, shape: Sequence[int]) -> list[Portion[Tiling]]:
        """Ways to run the network on latents of a shape."""
        channels = self.network.sample_channels, self.network.condition_channels
        each = network_bytes(self.network, *channels, len(shape))
        return [
            Portion(
                tiling,
                tiling.largest * each,
                "the whole volume" if tiling.is_whole else f"{' × '.join(map(str, tiling.parts))} windows",
            )
            for tiling in windowings(shape)
        ]

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
            "decoding": self.decoding,
            "residual_gain": self.residual_gain,
            "change_std": self.change_std,
            "vqvae": weights_hash(self.vqvae),
        }
        save_network(self.network, self.kind, facts, folder)

    def save_into(self, pipeline: Path) -> None:
        """Write the stage and its VQ-VAE into a pipeline's folder."""
        super().save_into(pipeline)
        save_vqvae(self.vqvae, pipeline / "vqvae")

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
                # Stages written before there was a choice decode plainly.
                decoding=facts.get("decoding", "plain"),
                residual_gain=facts.get("residual_gain", 1.0),
                change_std=facts.get("change_std"),
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


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, 1, 1, 1)
