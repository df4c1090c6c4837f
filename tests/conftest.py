"""Fixtures that several test modules share."""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from hub_stand_in import HubStandIn

if TYPE_CHECKING:
    from torch import Tensor

# Several tests run side by side on few cores; libraries that each take all cores slow one another down.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data for tests is not there ({folder.name} folder beside the checkout)")
    return folder


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference vectors of the published networks."""
    return Path(__file__).parent / "reference"


@pytest.fixture(scope="session")
def published_network(reference: Path) -> "Callable[[str, int], tuple[dict[str, Any], dict[str, Tensor]]]":
    """Configuration and published-layout weights of the reference vectors: `(layout name, seed) -> both`."""
    import torch

    spec = importlib.util.spec_from_file_location("reference_weights", reference / "weights.py")
    assert spec is not None and spec.loader is not None
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)

    def build(name: str, seed: int) -> "tuple[dict[str, Any], dict[str, Tensor]]":
        facts = json.loads((reference / f"{name}.json").read_text())
        arrays = weights.state_dict(facts["state_dict"], seed)
        return facts["config"], {key: torch.from_numpy(array) for key, array in arrays.items()}

    return build


@pytest.fixture(scope="session")
def write_dicom_slice() -> Callable[..., None]:
    """A function that writes one DICOM CT slice: stored values (rows, columns), position, any other tags."""
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    def write(path: Path, stored: np.ndarray, position: Any = (0, 0, 0), **tags: Any) -> None:
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header = pydicom.dataset.FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
        header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        header.PatientName, header.Modality, header.SeriesInstanceUID = "Secret^Name", "CT", "1.2.3"
        header.Rows, header.Columns = stored.shape
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.PixelRepresentation = 15, int(stored.dtype.kind == "i")
        header.PixelSpacing, header.SliceThickness = [1, 1], 2
        header.ImagePositionPatient, header.ImageOrientationPatient = list(position), [1, 0, 0, 0, 1, 0]
        header.RescaleSlope, header.RescaleIntercept = 1, -1024
        header.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
        for keyword, value in tags.items():
            if value is None:
                delattr(header, keyword)
            else:
                setattr(header, keyword, value)
        path.parent.mkdir(parents=True, exist_ok=True)
        header.save_as(path)

    return write


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A stand-in for the Hugging Face Hub with no repositories and an empty local cache."""
    from huggingface_hub import constants

    root = tmp_path / "hub"
    root.mkdir()
    stand_in = HubStandIn(root)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, stand_in.endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    yield stand_in
    stand_in.close()
