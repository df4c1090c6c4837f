"""What the viewer's API speaks of: the fields of its answers and requests."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ct2mri.options.choices import Sampler
from ct2mri.viewer.stored import VolumeRole

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
UploadState = Literal["open", "reading", "done", "failed"]
UploadKind = Literal["file", "dicom"]
DownloadFormat = Literal["nifti", "nrrd", "dicom", "sidecar"]

MOST_STEPS = 1000
MOST_SAMPLES = 64
LARGEST_SEED = 2**32 - 1
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9-]{0,79}$"


class Request(BaseModel):
    """What a request may hold; other fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Failure(BaseModel):
    """Why a request was not carried out."""

    detail: str = Field(description="one sentence: what was got, what is allowed, what to do")


class Made(BaseModel):
    """How a synthetic volume was made."""

    model: str
    hash: str
    seed: int
    steps: int
    samples: int
    sampler: str | None
    safety: str
    warnings: list[str]


class VolumeRecord(BaseModel):
    """A volume that can be looked at."""

    id: str
    name: str = Field(description="what to call it; never the name of a patient that a header tells")
    group: str = Field(description="volumes of one case share it")
    role: VolumeRole
    modality: str | None = Field(description="CT, MR, …; null where neither header nor values tell")
    units: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] = Field(description="voxel edges in mm")
    orientation: str = Field(description="nearest anatomical directions of the axes, e.g. RAS")
    warnings: list[str]
    bytes: int = Field(description="of data.nii")
    job: str | None = Field(description="the job that made it")
    made: Made | None = Field(description="of a synthetic volume: how it was made")
    downloads: list[DownloadFormat]


class ModelRecord(BaseModel):
    """A model that jobs can use."""

    id: str
    name: str
    hash: str
    source_modality: str
    target_modality: str
    units: str
    steps: int = Field(description="sampling steps of the last stage unless others are asked for")
    max_steps: int
    stages: list[str]
    samplers: list[Sampler] = Field(description="of the last stage; empty where there is no choice")
    warnings: list[str]
    safety: str


class Limits(BaseModel):
    """What uploads may be."""

    upload_bytes: int = Field(description="of all files of one upload together")
    files: int = Field(description="files of one upload")
    voxels: int = Field(description="of one volume")
    unpacked_bytes: int = Field(description="what an archive may unpack to")
    reading_seconds: float
    suffixes: list[str]


class UnreadFile(BaseModel):
    """A file named on the command line that could not be read."""

    name: str
    detail: str


class Initial(BaseModel):
    """What the viewer was started with."""

    volumes: list[str] = Field(description="those read so far, in order")
    pending: int = Field(description="those still to be read")
    failed: list[UnreadFile]
    run: str | None
    report: str | None


class Status(BaseModel):
    """How the viewer stands."""

    version: str
    safety: str
    device: str
    models: int
    busy: bool
    queue_length: int
    results_folder: str
    limits: Limits
    initial: Initial


class UploadRequest(Request):
    """The beginning of an upload."""

    name: str = Field(max_length=255, description="what to call the volume")
    kind: UploadKind = Field(description="one volume file (or zip), or the many files of a DICOM series")


class UploadRecord(BaseModel):
    """An upload, or the demo's phantom, on its way to become a volume."""

    id: str
    state: UploadState
    received: int = Field(description="bytes so far")
    files: int = Field(description="files so far")
    volume: str | None = Field(description="once done: the volume (of several, the source)")
    volumes: list[str]
    detail: str | None = Field(description="once failed: why")


class JobRequest(Request):
    """A translation to do."""

    volume: str = Field(max_length=80, description="the volume to translate")
    model: str = Field(max_length=80)
    steps: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    samples: int = Field(default=1, ge=1, le=MOST_SAMPLES)
    sampler: Sampler | None = None
    mask: str | None = Field(default=None, max_length=80, description="a volume that is the body above 0.5")


class ErrorRequest(Request):
    """An error to make: of a result against the truth."""

    target: str = Field(max_length=80, description="the volume that shows the truth, on the same grid")


class JobResults(BaseModel):
    """The volumes that a job made."""

    result: str
    draft: str | None
    spread: str | None
    error: str | None = Field(description="result − truth, where the case has a truth on the same grid")


class JobRecord(BaseModel):
    """A translation, waiting, at work or ended."""

    id: str
    state: JobState
    volume: str
    model: str
    model_name: str
    steps: int | None
    seed: int
    samples: int
    sampler: Sampler | None
    mask: str | None
    stage: str | None
    step: int
    total: int
    fraction: float
    seconds_left: float | None
    created: str
    started: str | None
    ended: str | None
    detail: str | None = Field(description="why it failed")
    warnings: list[str]
    results: JobResults | None


class Table(BaseModel):
    """Numbers over the steps of a training."""

    columns: list[str]
    rows: list[list[float | None]]
    every: int = Field(description="rows of the file in each of these, which hold their means")


class RunSummary(BaseModel):
    """A training run."""

    id: str
    name: str
    stage: str
    finished: bool
    step: int
    max_steps: int | None


class Picture(BaseModel):
    """A validation picture."""

    step: int
    name: str
    url: str


class RunRecord(RunSummary):
    """A training run with its curves and pictures."""

    train: Table
    validation: Table
    pictures: list[Picture]
    run: dict[str, Any] = Field(description="facts of run.json")


class ReportRecord(BaseModel):
    """A page that `evaluate`, `compare` or `check` wrote."""

    id: str
    name: str
    kind: Literal["evaluation", "comparison", "check"]
    url: str
