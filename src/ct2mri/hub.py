"""Model folders and files by the name they have on the Hugging Face Hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from ct2mri.errors import RequestError

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def resolve_pretrained(name_or_folder: str | Path) -> Path:
    """The local folder of a pipeline, fetched from the Hub where `name_or_folder` is not a folder.

    A folder on disk goes before a repository of the same name. Without a network, what an earlier fetch left
    in the local cache is taken.

    Args:
        name_or_folder: a folder, or a repository as "owner/name".

    Raises:
        RequestError: it is neither, or the repository can be neither reached nor found in the cache.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    name = str(name_or_folder)
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"There is no model folder {name}; give an existing folder or a Hub repository (owner/name)."
        )
    return fetch(
        name,
        ["*.json", "*.safetensors", "*.md"],
        by_hand=f"download https://huggingface.co/{name} on another machine and give its folder as the model",
    )


def fetch(repository: str, patterns: Sequence[str], *, ignore: Sequence[str] = (), by_hand: str) -> Path:
    """A local folder with the files of a Hub repository that match `patterns`.

    Args:
        repository: "owner/name".
        patterns: which files, as `fnmatch` reads them.
        ignore: which of those not.
        by_hand: what a person can do where the repository cannot be reached, the end of a sentence.

    Raises:
        RequestError: the repository does not exist, or can be neither reached nor found in the local cache.
    """
    from huggingface_hub import snapshot_download  # 0.2 s, for those who use the Hub
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    if not _NAME.fullmatch(repository):
        raise RequestError(f"A Hugging Face repository is named owner/name, got {repository!r}.")
    try:
        return Path(
            snapshot_download(repository, allow_patterns=list(patterns), ignore_patterns=list(ignore))
        )
    except GatedRepoError as error:
        raise RequestError(
            f"The repository {repository} wants its terms accepted on huggingface.co first; then log in with "
            "`hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise RequestError(
            f"There is no repository {repository} on the Hugging Face Hub, nor a folder of that name; "
            "a private one needs `hf auth login`."
        ) from error
    except LocalEntryNotFoundError as error:
        raise RequestError(
            f"The Hugging Face Hub cannot be reached and {repository} is not in the local cache; {by_hand}."
        ) from error
    except Exception as error:  # which HTTP library's errors come through depends on the hub's version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RequestError(f"{repository} could not be fetched ({reason}); {by_hand}.") from error
