"""Model folders by the name they have on the Hugging Face Hub."""

import re
from pathlib import Path

from ct2mri.errors import RequestError


def resolve_pretrained(name_or_folder: str | Path) -> Path:
    """The local folder of a pipeline, fetched from the Hub where `name_or_folder` is not a folder.

    A folder on disk goes before a repository of the same name. Without a network, what an earlier fetch left
    in the local cache is taken.

    Args:
        name_or_folder: a folder, or a repository as "owner/name".

    Raises:
        RequestError: it is neither, or the repository can be neither reached nor found in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    name = str(name_or_folder)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise RequestError(
            f"There is no model folder {name}; give an existing folder or a Hub repository (owner/name)."
        )
    by_hand = f"download the repository on another machine and give its folder instead of {name}"
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.md"]))
    except GatedRepoError as error:
        raise RequestError(
            f"The repository {name} wants its terms accepted on huggingface.co first; then log in with "
            "`hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise RequestError(
            f"There is neither a folder {name} nor such a repository on the Hugging Face Hub (a private one "
            "needs `hf auth login`)."
        ) from error
    except LocalEntryNotFoundError as error:
        raise RequestError(
            f"There is no folder {name}, the Hugging Face Hub cannot be reached and the repository is not in "
            f"the local cache; {by_hand}."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise RequestError(f"The repository {name} could not be fetched ({error}); {by_hand}.") from error
