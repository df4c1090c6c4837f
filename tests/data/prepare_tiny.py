"""Small raw pairs, and `prepare` on them."""

import numpy as np

from ct2mri.data.cases import PreparedDataset
from ct2mri.data.io import save_volume
from ct2mri.data.prepare import prepare
from ct2mri.data.volume import Volume
from ct2mri.options.data import PrepareOptions


def ellipsoid(number, size=16, edge=6.0):
    """CT and MR of an ellipsoid with a bone shell, in LPS order, the MR in whole numbers."""
    generator = np.random.default_rng(number)
    affine = np.diag([-edge, -edge, edge, 1.0])
    shape = (size, size + 3, size - 2)
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in shape], indexing="ij")
    r = np.sqrt(sum(axis**2 for axis in axes)) / generator.uniform(0.9, 1)
    ct = np.select([r < 0.8, r < 0.9, r < 1], [40.0, 900.0, -80.0], -1000.0)
    mr = np.select([r < 0.8, r < 0.9, r < 1], [300.0, 20.0, 700.0], 0.0) + generator.integers(1, 9, shape)
    return Volume(ct, affine), Volume(mr, affine)


def write_patients(root, numbers, size=16, edge=6.0):
    """A folder a patient, p0, p1, …"""
    for number in numbers:
        ct, mr = ellipsoid(number, size, edge)
        save_volume(ct, root / f"p{number}" / "ct.nii.gz")
        save_volume(mr, root / f"p{number}" / "mr.nii.gz")
    return root


def run(raw, dataset, **options):
    """Prepare in this process, unless `workers` says otherwise."""
    prepare(PrepareOptions(raw=raw, dataset=dataset, **{"workers": 0} | options))
    return PreparedDataset(dataset)
