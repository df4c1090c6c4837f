"""The codebook of the VQ-VAE: nearest codes, the loss that trains them, and two ways to learn them."""

from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from ct2mri.models.layers import full_precision, require

_CHUNK = 2**24  # distances held at a time: 64 MB of float32
_EMA_DECAY = 0.95  # of the codebook, per step: at 0.99 it falls behind the encoder's first thousand steps
_DEAD_SHARE = 0.03  # a code used less than this share of the average use is dead; air makes the average high


class VectorQuantizer(nn.Module):
    """Replaces each latent vector by the nearest of `num_embeddings` codes.

    With `codebook_update="gradient"` the codebook is a parameter trained by the loss, as published. With
    `"ema"` it follows the latents as a moving average (van den Oord et al., Neural Discrete Representation
    Learning, 2017, appendix A.1): every count starts at 1, and codes that nothing uses any more are moved
    to latents of the batch. In both, the first training batch gives the codes their start, so that no code
    begins where no latents are. What is drawn at random is a function of the number of updates, so a resumed
    training repeats it.

    Args:
        num_embeddings: codes in the codebook.
        embedding_dim: numbers in a code, the channels of the latents.
        commitment_cost: weight of the term that pulls latents to their codes.
        codebook_update: "gradient" or "ema".

    Raises:
        RequestError: no codebook can have this configuration.
    """

    codebook: Tensor
    initialised: Tensor
    ema_counts: Tensor
    ema_sums: Tensor
    ema_updates: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float,
        codebook_update: Literal["gradient", "ema"],
    ) -> None:
        super().__init__()
        require(num_embeddings >= 1, f"num_embeddings is at least 1, got {num_embeddings}.")
        require(embedding_dim >= 1, f"embedding_dim is at least 1, got {embedding_dim}.")
        require(commitment_cost >= 0, f"commitment_cost is at least 0, got {commitment_cost}.")
        require(
            codebook_update in ("gradient", "ema"),
            f'codebook_update is "gradient" or "ema", got {codebook_update!r}.',
        )
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.codebook_update = codebook_update
        codebook = torch.empty(num_embeddings, embedding_dim).uniform_(
            -1 / num_embeddings, 1 / num_embeddings
        )
        self.register_buffer("initialised", torch.tensor(False))
        if codebook_update == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("ema_counts", torch.ones(num_embeddings))
            self.register_buffer("ema_sums", codebook.clone())
            self.register_buffer("ema_updates", torch.tensor(0))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise with straight-through gradients; in training mode with "ema" also update the codebook.

        Args:
            latents: (B, embedding_dim, *spatial).

        Returns:
            The quantised latents (B, embedding_dim, *spatial), the loss `vq_loss`, and the codes' numbers
            (B, *spatial), int64.
        """
        with full_precision(latents):
            latents = latents.to(self.codebook.dtype)
            flat = latents.detach().movedim(1, -1).reshape(-1, self.embedding_dim)  # (n, D)
            if self.training:
                self._initialise(flat)
            codes = self._nearest(flat)
            quantized = functional.embedding(codes, self.codebook)  # (n, D), before an update
            quantized = self._unflatten(quantized, latents)
            loss = self.commitment_cost * functional.mse_loss(latents, quantized.detach())
            if self.codebook_update == "gradient":
                loss = loss + functional.mse_loss(quantized, latents.detach())
            elif self.training:
                self._update(flat, codes)
            quantized = latents + (quantized - latents).detach()
        return quantized, loss, codes.reshape(latents.shape[0], *latents.shape[2:])

    def quantize(self, latents: Tensor) -> Tensor:
        """The code nearest to each latent (B, embedding_dim, *spatial), in the same shape; learns nothing."""
        with full_precision(latents):
            latents = latents.to(self.codebook.dtype)
            flat = latents.detach().movedim(1, -1).reshape(-1, self.embedding_dim)
            return self._unflatten(functional.embedding(self._nearest(flat), self.codebook), latents)

    @staticmethod
    def _unflatten(flat: Tensor, like: Tensor) -> Tensor:
        return flat.reshape(like.shape[0], *like.shape[2:], -1).movedim(-1, 1)

    @torch.no_grad()
    def _nearest(self, flat: Tensor) -> Tensor:
        """Number of the nearest code of each latent, (n, D) → (n,)."""
        # Differences, not |x|² − 2xc + |c|², which rounds away what tells close codes apart.
        mode = "donot_use_mm_for_euclid_dist"
        rows = max(_CHUNK // self.num_embeddings, 1)
        parts = [
            torch.cdist(part, self.codebook, compute_mode=mode).argmin(dim=1)
            for part in torch.split(flat, rows)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def _initialise(self, flat: Tensor) -> None:
        """Put the codes on latents of the first training batch."""
        if bool(self.initialised):
            return
        codebook = self._draw(flat, seed=0)
        if flat.shape[0] < self.num_embeddings:  # several codes on one latent: move them apart a little
            generator = torch.Generator().manual_seed(1)
            jitter = torch.randn(self.codebook.shape, generator=generator).to(flat)
            codebook = codebook + 1e-2 * flat.std(dim=0, correction=0) * jitter
            codebook = self._from_first_rank(codebook)
        self.codebook.data.copy_(codebook)
        if self.codebook_update == "ema":
            self.ema_sums.copy_(codebook)
        self.initialised.fill_(True)

    @torch.no_grad()
    def _update(self, flat: Tensor, codes: Tensor) -> None:
        """One step of the moving averages, over the latents of all processes."""
        counts = torch.zeros_like(self.ema_counts).index_add_(0, codes, torch.ones_like(flat[:, 0]))
        sums = torch.zeros_like(self.ema_sums).index_add_(0, codes, flat)
        if _processes() > 1:
            distributed.all_reduce(counts)
            distributed.all_reduce(sums)
        self.ema_counts.mul_(_EMA_DECAY).add_(counts, alpha=1 - _EMA_DECAY)
        self.ema_sums.mul_(_EMA_DECAY).add_(sums, alpha=1 - _EMA_DECAY)
        self.ema_updates += 1

        dead = self.ema_counts < _DEAD_SHARE * self.ema_counts.mean()
        revived = self._draw(flat, seed=int(self.ema_updates))
        self.ema_counts.copy_(torch.where(dead, torch.ones_like(self.ema_counts), self.ema_counts))
        self.ema_sums.copy_(torch.where(dead[:, None], revived, self.ema_sums))
        self.codebook.copy_(self.ema_sums / self.ema_counts[:, None])

    def _draw(self, flat: Tensor, seed: int) -> Tensor:
        """Latents drawn at random, the same on all processes, one a code: (num_embeddings, D)."""
        generator = torch.Generator().manual_seed(seed)
        if flat.shape[0] >= self.num_embeddings:
            rows = torch.randperm(flat.shape[0], generator=generator)[: self.num_embeddings]
        else:
            rows = torch.randint(flat.shape[0], (self.num_embeddings,), generator=generator)
        return self._from_first_rank(flat[rows.to(flat.device)])

    @staticmethod
    def _from_first_rank(tensor: Tensor) -> Tensor:
        if _processes() > 1:
            tensor = tensor.contiguous()
            distributed.broadcast(tensor, src=0)
        return tensor


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def codes_in_use(codes: Tensor) -> int:
    """How many different codes there are among `codes` (any shape, integers)."""
    return int(torch.unique(codes).numel())


def perplexity(codes: Tensor) -> float:
    """The number of codes that, used equally often, would be as varied as `codes` (any shape, integers)."""
    _, counts = torch.unique(codes, return_counts=True)
    share = counts.double() / counts.sum()
    return float(torch.exp(-(share * share.log()).sum()))
