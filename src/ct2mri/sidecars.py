"""Reading the JSON that lies beside a result."""

from pathlib import Path
from typing import Any

from ct2mri.files import read_json


def read_sidecar(path: Path) -> dict[str, Any]:
    """What was written beside a result; empty where there is no such file, or it is something else."""
    try:
        facts = read_json(path)
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) and "safety" in facts else {}
