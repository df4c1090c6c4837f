"""Measure the viewer's server: memory at rest, reading an upload, and a volume's way to the page.

    python benchmarks/viewer.py
    python benchmarks/viewer.py --shape 512 512 300 --repeats 5

A volume goes to the page as plain NIfTI. Whether it would be there sooner compressed is measured beside it:
the same server sends the same bytes as .nii.gz, compressed beforehand, and the client unpacks them. All is
the way between two processes of one machine (loopback); the page draws afterwards.
"""

import argparse
import gzip
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np

from ct2mri import __version__, save_volume
from ct2mri.data.volume import Volume
from ct2mri.viewer.client import ViewerClient


def seconds(work: Callable[[], object], repeats: int) -> str:
    """Median and range of some repeats."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return f"{statistics.median(found):6.2f} s ({min(found):.2f} to {max(found):.2f})"


def head(shape: tuple[int, int, int]) -> Volume:
    """A ball of soft tissue with the noise of a CT, in air: whole HU, as badly compressible as a patient."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    radius = np.sqrt(sum(axis**2 for axis in axes))
    noise = np.random.default_rng(0).normal(0, 12, shape)
    array = np.rint(np.where(radius < 0.8, 40, -1000) + noise).astype(np.float32)
    return Volume(array, np.diag([0.9, 0.9, 1.0, 1.0]))


def memory(process: int) -> str:
    """What a process holds in memory."""
    words = Path(f"/proc/{process}/status").read_text().splitlines()
    (resident,) = (line.split()[1] for line in words if line.startswith("VmRSS"))
    return f"{int(resident) / 1024:6.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 160))
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    shape = (chosen.shape[0], chosen.shape[1], chosen.shape[2])
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        save_volume(head(shape), root / "ct.nii.gz", dtype="int16")
        (root / "run").mkdir()
        (root / "run" / "run.json").write_text("{}")  # something to show, so that no phantom is drawn
        command = [sys.executable, "-m", "ct2mri", "view", str(root / "run"), "--no-browser"]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--results", str(root / "results")], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        started = time.perf_counter() - start
        try:
            client = ViewerClient(address)
            client.models()
            rows = [
                ("started, until it listens", f"{started:6.2f} s"),
                ("memory at rest", memory(process.pid)),
            ]
            uploaded: list[str] = []
            rows.append(
                ("upload of .nii.gz, until it can be shown",
                 seconds(lambda: uploaded.append(client.upload(root / "ct.nii.gz")), chosen.repeats))
            )  # fmt: skip
            rows.append(("memory after it", memory(process.pid)))
            base, token = address.split("/?token=")
            volumes = root / "results" / "volumes"
            plain = volumes / uploaded[0].removesuffix("-source") / "source.nii"
            for level in (1, 6):
                packed = gzip.compress(plain.read_bytes(), level)
                size = f"{len(packed) / 2**20:.0f} MiB"
                # Put in the place of another volume, so that the same code sends it.
                (volumes / uploaded[-1].removesuffix("-source") / "source.nii").write_bytes(packed)
                rows.append(
                    (f"to the client as .nii.gz, level {level} ({size}), unpacked",
                     seconds(lambda: gzip.decompress(fetched(base, token, uploaded[-1])), chosen.repeats))
                )  # fmt: skip
            size = f"{plain.stat().st_size / 2**20:.0f} MiB"
            rows.append(
                (f"to the client as plain NIfTI ({size})",
                 seconds(lambda: fetched(base, token, uploaded[0]), chosen.repeats))
            )  # fmt: skip
        finally:
            process.terminate()
            process.wait()
    print(f"{' × '.join(map(str, shape))} voxels, ct2mri {__version__}, {platform.machine()}, {date.today()}")
    for words, figure in rows:
        print(f"{words:58} {figure}")


def fetched(base: str, token: str, volume: str) -> bytes:
    """The bytes of a volume, as the page gets them."""
    request = Request(f"{base}/api/volumes/{volume}/data.nii", headers={"Authorization": f"Bearer {token}"})
    with urlopen(request, timeout=600) as answer:
        content: bytes = answer.read()
    return content


if __name__ == "__main__":
    main()
