"""Training items: crops and flips alike on everything, a pure function of the request."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ct2mri.data.batching import Request
from ct2mri.data.cases import PreparedCase, write_case
from ct2mri.data.datasets import AIR, LatentDataset, SliceDataset, SourceShift, VolumeDataset, place_crop
from ct2mri.data.volume import Grid

SHAPE = (10, 12, 9)


def make_case(folder: Path, shape: tuple[int, int, int] = SHAPE, **arrays: np.ndarray) -> PreparedCase:
    """Every voxel's values tell where it is; the target lies outside [−1, 1] at its corner."""
    place = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / np.prod(shape)
    mask = np.zeros(shape, dtype=bool)
    mask[2:-2, 2:-2, 2:-2] = True
    valid = np.ones(shape, dtype=bool)
    valid[..., -1] = False
    content = {"source": place[None], "target": place - 0.5, "mask": mask, "valid": valid} | arrays
    return write_case(
        folder,
        patient_id=folder.name,
        grid=Grid(shape, np.eye(4)),
        target_range=(0.0, 1.0),
        inputs={},
        notes=[],
        **content,
    )


def slices(cases: list[PreparedCase], **settings: object) -> SliceDataset:
    defaults = {
        "orientations": ("axial", "coronal", "sagittal"),
        "crop_size": None,
        "shrink": 0,
        "flips": False,
        "seed": 0,
    }
    return SliceDataset(cases, **(defaults | settings))  # type: ignore[arg-type]


def test_all_slices_with_body_and_no_others(tmp_path: Path) -> None:
    items = slices([make_case(tmp_path / "a")])
    chosen = {(orientation, index) for _, orientation, index in items.slices}
    assert chosen == (
        {("sagittal", i) for i in range(2, 8)}
        | {("coronal", j) for j in range(2, 10)}
        | {("axial", k) for k in range(2, 7)}
    )


def test_a_single_slice_gives_its_own_plane_only(tmp_path: Path) -> None:
    shape = (8, 1, 7)
    case = make_case(tmp_path / "a", shape, mask=np.ones(shape, dtype=bool))
    items = slices([case])
    assert [(orientation, index) for _, orientation, index in items.slices] == [("coronal", 0)]
    assert items[Request(0, (8, 7), 0, 0)]["source"].shape == (1, 8, 7)


def test_whole_slices_are_the_prepared_arrays(tmp_path: Path) -> None:
    case = make_case(tmp_path / "a")
    items = slices([case])
    for index, (_, orientation, number) in enumerate(items.slices):
        item = items[Request(index, items.sizes[index], 0, 0)]
        plane = {"sagittal": np.s_[number], "coronal": np.s_[:, number], "axial": np.s_[:, :, number]}[
            orientation
        ]
        assert np.array_equal(item["source"][0], case.source[0][plane])
        assert np.array_equal(item["target"][0], case.target[plane])
        assert np.array_equal(item["weight"][0], case.valid[plane])


def test_crops_and_flips_are_alike_on_everything(tmp_path: Path) -> None:
    case = make_case(tmp_path / "a")
    items = slices([case], crop_size=5, flips=True, orientations=("axial",))
    flipped = 0
    for batch in range(40):
        item = items[Request(0, (5, 5), batch, 0)]
        assert torch.allclose(item["source"] - 0.5, item["target"], atol=1e-6)
        rises = item["source"][0, 1, 0] > item["source"][0, 0, 0]
        assert torch.all(item["source"].diff(dim=2) > 0), "the second axis is never mirrored"
        flipped += int(not rises)
    assert 8 < flipped < 32


def test_a_shift_moves_the_source_of_an_item_as_a_whole(tmp_path: Path) -> None:
    case = make_case(tmp_path / "a")
    windows = [[0.0, 200.0]]
    plain = slices([case], crop_size=5, flips=True, orientations=("axial",))
    shifted = slices(
        [case], crop_size=5, flips=True, orientations=("axial",), shift=SourceShift(windows, 20.0)
    )
    moves = []
    for batch in range(200):
        request = Request(0, (5, 5), batch, 0)
        before, after = plain[request], shifted[request]
        assert torch.equal(before["target"], after["target"])
        inside = after["source"].abs() < 1
        moved = (after["source"] - before["source"])[inside] * 100  # half a window is 1
        assert torch.allclose(moved, moved[0], atol=1e-3)
        moves.append(float(moved[0]))
    assert -20 <= min(moves) < -15 and 15 < max(moves) <= 20 and abs(np.mean(moves)) < 3


def test_neighbouring_slices_are_shown_beside_their_own(tmp_path: Path) -> None:
    place = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE) / np.prod(SHAPE)
    mask = np.zeros(SHAPE, dtype=bool)
    mask[5, 5, 0] = mask[5, 5, 4] = mask[5, 5, 8] = True
    everywhere = np.ones(SHAPE, dtype=bool)
    case = make_case(tmp_path / "a", source=np.stack([place, -place]), mask=mask, valid=everywhere)
    items = slices([case], orientations=("axial",), neighbours=2, crop_size=6, flips=True)
    own = slices([case], orientations=("axial",), crop_size=6, flips=True)
    for index, numbers in enumerate([[0, 0, 1, 0, 2], [4, 3, 5, 2, 6], [8, 7, 8, 6, 8]]):
        for batch in range(6):
            request = Request(index, (6, 6), batch, 0)
            item, alone = items[request], own[request]
            assert item["source"].shape == (10, 6, 6)
            for shown, number in enumerate(numbers):
                moved = (number - numbers[0]) / np.prod(SHAPE)  # slices lie one step apart
                for window, sign in ((0, 1), (1, -1)):
                    wanted = alone["source"][window] + sign * moved
                    torch.testing.assert_close(item["source"][2 * shown + window], wanted)
            assert torch.equal(item["target"], alone["target"])


def test_left_right_flips_leave_sagittal_slices_alone(tmp_path: Path) -> None:
    case = make_case(tmp_path / "a")
    items = slices([case], flips=True, orientations=("sagittal",))
    for batch in range(20):
        item = items[Request(0, items.sizes[0], batch, 0)]
        assert np.array_equal(item["source"][0], case.source[0][items.slices[0][2]])


def test_crops_hold_valid_body(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[7, 9, 4] = True
    case = make_case(tmp_path / "a", mask=mask)
    wanted = case.source[0, 7, 9, 4]
    items = VolumeDataset([case], crop_size=(4, 4, 4), flips=True, seed=0)
    plane = slices([case], crop_size=4, flips=True)
    for batch in range(30):
        assert np.isclose(items[Request(0, (4, 4, 4), batch, 0)]["image"] + 0.5, wanted, atol=1e-6).any()
        for index in range(len(plane)):
            assert (plane[Request(index, (4, 4), batch, 0)]["source"] == float(wanted)).any()


def test_targets_are_clipped_and_padding_weighs_nothing(tmp_path: Path) -> None:
    target = np.full(SHAPE, 2.0, dtype=np.float32)
    target[0] = -3
    items = slices([make_case(tmp_path / "a", target=target)], orientations=("axial",))
    item = items[Request(0, (16, 14), 0, 0)]
    assert item["target"].shape == (1, 16, 14)
    assert item["target"][:, :10, :12].unique().tolist() == [-1, 1]
    for name, fill in (("source", AIR), ("target", AIR), ("weight", 0)):
        assert (item[name][:, 10:] == fill).all() and (item[name][:, :, 12:] == fill).all()
    assert (item["weight"][:, :10, :12] == 1).all()


def test_items_are_a_function_of_the_request(tmp_path: Path) -> None:
    case = make_case(tmp_path / "a")
    items, again = (slices([case], crop_size=4, flips=True) for _ in range(2))
    one, same = items[Request(3, (4, 4), 7, 1)], again[Request(3, (4, 4), 7, 1)]
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert one["key"].tolist() == [7, 1]
    others = [items[Request(3, (4, 4), 7, place)]["source"] for place in range(2, 8)]
    assert any(not torch.equal(one["source"], other) for other in others)


def test_drafts_are_learnt_too_and_weigh_everywhere(tmp_path: Path) -> None:
    case, bare = make_case(tmp_path / "a"), make_case(tmp_path / "b")
    case.write_draft(np.full(SHAPE, 0.25))
    items = VolumeDataset([case, bare], crop_size=(16, 16, 16), flips=False, seed=0)
    assert [(c.case_id, name) for c, name in items.images] == [
        ("a", "target"),
        ("b", "target"),
        ("a", "draft"),
    ]
    assert items.sizes == [SHAPE] * 3
    target, draft = (items[Request(index, SHAPE, 0, 0)] for index in (0, 2))
    assert (draft["image"] == 0.25).all() and (draft["weight"] == 1).all()
    assert np.array_equal(target["weight"][0], case.valid)


def test_latents_are_standardised_and_mirrored_as_a_whole(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shape = (3, 4, 2)
    latents = {
        flip: {name: generator.normal(5, 2, (2, *shape)).astype(np.float32) for name in ("target", "draft")}
        for flip in ("", "flipped")
    }
    for flip, parts in latents.items():
        (tmp_path / flip).mkdir(exist_ok=True)
        for name, array in parts.items():
            np.save(tmp_path / flip / f"{name}.npy", array)
        for name in ("weight", "mask"):
            np.save(tmp_path / flip / f"{name}.npy", np.ones(shape, np.float32))
    items = LatentDataset(
        [tmp_path], condition=["draft"], mean=[5, 4], std=[2, 1], crop_size=None, shrink=0, flips=True, seed=0
    )
    seen = set()
    for batch in range(20):
        item = items[Request(0, (4, 4, 4), batch, 0)]
        assert item["condition"].shape == (2, 4, 4, 4)
        restored = item["target"][:, :3, :4, :2] * torch.tensor([2.0, 1.0])[:, None, None, None]
        restored = restored + torch.tensor([5.0, 4.0])[:, None, None, None]
        (flip,) = [f for f in latents if np.allclose(restored, latents[f]["target"], atol=1e-5)]
        draft = (latents[flip]["draft"] - [[[[5]]], [[[4]]]]) / [[[[2]]], [[[1]]]]
        assert np.allclose(item["condition"][:, :3, :4, :2], draft, atol=1e-5)
        assert item["weight"].sum() == np.prod(shape) and (item["target"][:, 3:] == 0).all()
        seen.add(flip)
    assert seen == {"", "flipped"}


def test_latents_as_a_change_and_the_voxels_of_the_same_place(tmp_path: Path) -> None:
    shape = (8, 12, 10)  # latents of half of that
    place = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / np.prod(shape)
    everywhere = np.ones(shape, dtype=bool)
    arrays = {"source": place[None] / 2, "mask": everywhere, "valid": everywhere}
    case = make_case(tmp_path / "case", shape, **arrays)
    case.write_draft(place / 2)
    halves = place[::2, ::2, ::2]
    for flip, latents in (("", halves), ("flipped", place[::-1][::2, ::2, ::2])):
        (tmp_path / "latents" / flip).mkdir(exist_ok=True, parents=True)
        for name, array in (("target", 3 * latents[None]), ("draft", latents[None])):
            np.save(tmp_path / "latents" / flip / f"{name}.npy", array)
        for name in ("weight", "mask"):
            np.save(tmp_path / "latents" / flip / f"{name}.npy", np.ones(halves.shape, np.float32))
    items = LatentDataset(
        [tmp_path / "latents"],
        condition=["draft"],
        mean=[0.5],
        std=[2.0],
        change_std=[0.25],
        crop_size=(2, 3, 2),
        shrink=0,
        flips=True,
        seed=0,
        cases=[case],
        windows=True,
        shift=SourceShift([[0.0, 2.0]], 0.1),
        images=True,
        factor=2,
    )
    shifts = set()
    for batch in range(20):
        item = items[Request(0, (2, 3, 2), batch, 0)]
        draft = 2 * item["condition"] + 0.5
        np.testing.assert_allclose(item["target"], 2 * draft / (0.25 * 2), rtol=1e-4)  # (3 − 1) · draft
        image = item["target_image"] + 0.5  # the place
        assert image.shape == (1, 4, 6, 4) and (item["valid"] == 1).all()
        np.testing.assert_allclose(image[:, ::2, ::2, ::2], draft, atol=1e-6)
        np.testing.assert_allclose(item["draft_image"], image / 2, atol=1e-6)
        shift = item["windows"] - image / 2
        np.testing.assert_allclose(shift, np.full_like(shift, shift[0, 0, 0, 0]), atol=1e-6)
        shifts.add(round(float(shift[0, 0, 0, 0]), 4))
    assert len(shifts) == 20 and max(map(abs, shifts)) <= 0.1


@pytest.mark.parametrize("shape", [(3, 3, 3), (5, 20, 1)])
def test_a_crop_lies_inside_and_anywhere_when_nothing_is_wanted(shape: tuple[int, ...]) -> None:
    nothing = np.zeros((6, 7, 5), dtype=bool)
    crop = place_crop(nothing, nothing, shape, np.random.default_rng(0))
    assert tuple(s.stop - s.start for s in crop) == tuple(map(min, shape, nothing.shape))
