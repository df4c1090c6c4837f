"""The file that makes a folder a pipeline: `pipeline.json`."""

import json
from pathlib import Path
from typing import Any

from ct2mri.errors import RequestError

FORMAT_VERSION = 1
FACTS = "pipeline.json"


def read_facts(folder: Path) -> dict[str, Any]:
    """What a pipeline folder's own file tells: name, stages, card.

    Raises:
        RequestError: there is none, or it is damaged or of a newer version.
    """
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = int(facts["format_version"])
        if version > FORMAT_VERSION:
            raise RequestError(
                f"{path} has format_version {version}, this program reads up to {FORMAT_VERSION}; "
                "update ct2mri."
            )
        if not isinstance(facts["stages"], list) or not isinstance(facts["card"], dict):
            raise TypeError("stages is a list, card an object")
        if not all(isinstance(kind, str) and kind.isidentifier() for kind in facts["stages"]):
            raise TypeError("stages are names")
        facts["name"] = str(facts["name"])
    except FileNotFoundError as error:
        hint = (
            "this is the run of one stage, and `ct2mri export` makes a model of it"
            if (folder / "run.json").is_file()
            else "give a folder that `ct2mri export` wrote, or copy it again"
        )
        raise RequestError(f"{folder} is no model folder, since it holds no {FACTS}; {hint}.") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{path} is damaged ({error!r}); copy or export the model again.") from error
    result: dict[str, Any] = facts
    return result
