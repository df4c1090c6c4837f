"""Register phantoms from known random motions, and tell how far off the results are.

    python benchmarks/registration.py                          # 20 heads and 20 pelvises: about 10 minutes
    python benchmarks/registration.py --cases 3 --spacing 4    # coarse voxels: half a minute

Each patient's MR is moved by up to 15 mm and 10° and registered to the CT, in every second case the CT to the
MR. The error of a case is the mean distance over the body's surface between where its points came to lie and
where they belong; a case counts as lost above 5 mm.
"""

import argparse
import platform
import time
from datetime import date

import numpy as np
import SimpleITK
from scipy.spatial.transform import Rotation

from ct2mri import Volume, __version__
from ct2mri.data.alignment import surface_points, view, working_grid
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.registration import register_rigid


def random_motion(rng: np.random.Generator, centre: np.ndarray) -> np.ndarray:
    """A rotation about `centre` by up to 10° and a shift by up to 15 mm, along random directions: 4×4."""
    axis, direction = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 3)))
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(np.radians(rng.uniform(0, 10)) * axis).as_matrix()
    motion[:3, 3] = centre - motion[:3, :3] @ centre + rng.uniform(0, 15) * direction
    return motion


def distances(motion: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How far a motion moves points (n, 3), in mm."""
    return np.linalg.norm(points @ motion[:3, :3].T + motion[:3, 3] - points, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cases", type=int, default=20, help="phantoms of each anatomy (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--spacing", type=float, help="voxel edge in mm (default: random as in clinical scans)"
    )
    arguments = parser.parse_args()

    rows = []
    shapes = []
    for anatomy in ("head", "pelvis"):
        start, error, largest, agreement, edges, seconds, warned = ([] for _ in range(7))
        for case in range(arguments.cases):
            rng = np.random.default_rng((arguments.seed, case))
            phantom = draw_phantom(anatomy, (arguments.seed, case), arguments.spacing)
            fixed, moving = (phantom.ct, phantom.mr) if case % 2 == 0 else (phantom.mr, phantom.ct)
            shapes.append(fixed.array.size)
            points = surface_points(view(phantom.ct, working_grid(phantom.ct, 4.0)))
            motion = random_motion(rng, points.mean(axis=0))
            moved = Volume(moving.array, motion @ moving.affine, moving.metadata)
            begin = time.perf_counter()
            result = register_rigid(fixed, moved, seed=case)
            seconds.append(time.perf_counter() - begin)
            left = distances(result.matrix @ motion, points)
            start.append(distances(motion, points).mean())
            error.append(left.mean())
            largest.append(left.max())
            agreement.append(result.quality.start_agreement_mm)
            edges.append(result.quality.edge_distance_mm)
            warned.append(bool(result.quality.warnings))
            print(
                f"# {anatomy} {case}: {start[-1]:.2f} mm to {error[-1]:.2f} mm in {seconds[-1]:.1f} s",
                flush=True,
            )
        rows.append(
            f"| {anatomy} | {np.mean(start):.1f} | {np.median(error):.2f} | {np.max(error):.2f} | "
            f"{np.max(largest):.2f} | {np.sum(np.array(error) > 5)} | {np.median(agreement):.2f} | "
            f"{np.median(edges):.2f} | {np.sum(warned)} | {np.median(seconds):.1f} |"
        )
    spacing = "random spacing" if arguments.spacing is None else f"{arguments.spacing:g} mm"
    print(
        f"\nct2mri {__version__}, SimpleITK {SimpleITK.__version__}, numpy {np.__version__}, {date.today()}, "
        f"{platform.machine()}; {arguments.cases} phantoms of each anatomy, seed {arguments.seed}, "
        f"{spacing}, {min(shapes) / 1e6:.1f} to {max(shapes) / 1e6:.1f} million voxels\n"
    )
    print(
        "| | start mm | error mm, median | error mm, worst case | worst point mm | lost | "
        "agreement of starts mm | edge distance mm | warned | seconds |"
    )
    print("|---" * 10 + "|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
