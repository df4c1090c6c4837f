"""Networks on disk: config.json and model.safetensors, never a pickle."""

from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ct2mri.errors import RequestError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

_CARD = """---
{{ card_data }}
---

Weights of one network of a ct2mri pipeline. Research use only.
"""


class PretrainedModel(nn.Module, PyTorchModelHubMixin, library_name="ct2mri", model_card_template=_CARD):
    """A network with `save_pretrained` and `from_pretrained`; what is loaded must fit exactly."""

    stored_in = torch.float32
    """Type of the weights on disk; in memory they are float32 throughout."""

    def halve(self) -> None:
        """Round the weights to float16 and store them so from now on: half the size on disk.

        Raises:
            RequestError: a weight is too large for float16.
        """
        for key, tensor in self.state_dict().items():
            if tensor.is_floating_point():
                rounded = tensor.half()
                if not rounded.isfinite().all():
                    raise RequestError(
                        f"{type(self).__name__} cannot be stored in half precision, since {key} reaches "
                        f"{tensor.abs().max():.3g}, beyond 65504; leave out --half."
                    )
                tensor.copy_(rounded)
        self.stored_in = torch.float16

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {
            key: (tensor.to(self.stored_in) if tensor.is_floating_point() else tensor).cpu().contiguous()
            for key, tensor in self.state_dict().items()
        }
        save_file(weights, save_directory / WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        map_location: str = "cpu",
        **model_kwargs: Any,
    ) -> Self:
        """Build the network of a configuration and load its weights, strictly and from safetensors alone.

        Replaces the library's method, which loads what fits, leaves the rest random, falls back to a pickle
        and prints to standard output.

        Raises:
            RequestError: a file is missing or damaged, or holds another network.
        """
        folder = Path(model_id)
        if folder.is_dir():
            for name in (CONFIG, WEIGHTS):
                if not (folder / name).is_file():
                    raise RequestError(f"The model folder {folder} lacks {name}; copy or export it again.")
            path = folder / WEIGHTS
        else:
            try:
                path = Path(
                    hf_hub_download(
                        model_id,
                        WEIGHTS,
                        revision=revision,
                        cache_dir=cache_dir,
                        force_download=force_download,
                        local_files_only=local_files_only,
                        token=token,
                    )
                )
            except EntryNotFoundError as error:
                raise RequestError(f"The repository {model_id} holds no {WEIGHTS}.") from error
        model = cls(**model_kwargs)
        try:
            weights = load_file(path, device=map_location)
        except SafetensorError as error:
            raise RequestError(f"{path} is damaged ({error}); copy or export it again.") from error
        model.to(map_location)
        load_exactly(model, weights, str(path))
        if torch.float16 in {tensor.dtype for tensor in weights.values()}:
            model.stored_in = torch.float16
        model.eval()
        return model


def load_exactly(model: nn.Module, weights: dict[str, torch.Tensor], origin: str) -> None:
    """Load `weights`, which must have the model's very keys and shapes.

    Raises:
        RequestError: they have not; the first key that differs is named.
    """
    expected = model.state_dict()
    for key in sorted(expected.keys() | weights.keys()):
        got = tuple(weights[key].shape) if key in weights else "nothing"
        wanted = tuple(expected[key].shape) if key in expected else "nothing"
        if got != wanted:
            raise RequestError(
                f"{origin} holds another network than {type(model).__name__} with this configuration: "
                f"at {key} it has {got} where {wanted} is expected."
            )
    model.load_state_dict(weights)
