"""CT volumes to MR volumes with scalable diffusion models (MD-DGA).

The public names are loaded when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ct2mri.data.io import load_volume, save_volume
    from ct2mri.data.volume import Volume
    from ct2mri.errors import RequestError
    from ct2mri.pipeline import TranslationPipeline

__version__ = version("ct2mri")
__all__ = ["RequestError", "TranslationPipeline", "Volume", "__version__", "load_volume", "save_volume"]

_HOMES = {
    "RequestError": "ct2mri.errors",
    "TranslationPipeline": "ct2mri.pipeline",
    "Volume": "ct2mri.data.volume",
    "load_volume": "ct2mri.data.io",
    "save_volume": "ct2mri.data.io",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ct2mri' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
