import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from ct2mri.errors import RequestError
from ct2mri.models import VectorQuantizer, codes_in_use, perplexity, quantizer


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_codes_are_the_nearest_ones():
    layer = VectorQuantizer(16, 3, 0.25, "gradient").eval()
    layer.codebook.data.normal_()
    x = latents(2, 3, 4, 5, 2)
    quantized, _, codes = layer(x)
    assert codes.shape == (2, 4, 5, 2)
    distance = (
        (x[:, None] - layer.codebook[None, :, :, None, None, None]).square().sum(dim=2)
    )  # (2, 16, 4, 5, 2)
    assert torch.equal(codes, distance.argmin(dim=1))
    assert torch.allclose(quantized, layer.codebook[codes].movedim(-1, 1), atol=1e-6)
    assert torch.equal(layer.quantize(x), layer.codebook[codes].movedim(-1, 1))


def test_close_codes_far_from_zero_are_told_apart():
    layer = VectorQuantizer(2, 2, 0.25, "gradient").eval()
    layer.codebook.data.copy_(torch.tensor([[1000.0, 0.0], [1000.0, 0.01]]))
    x = torch.tensor([[1000.0, 0.002], [1000.0, 0.008]]).T.reshape(1, 2, 2)
    assert layer(x)[2].tolist() == [[0, 1]]


def test_the_search_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch):
    layer = VectorQuantizer(16, 3, 0.25, "ema")
    x = latents(1, 3, 9, 11)
    whole = copy.deepcopy(layer)
    expected = [part.clone() for part in whole(x)]
    monkeypatch.setattr(quantizer, "_CHUNK", 16 * 7)
    for got, wanted in zip(layer(x), expected, strict=True):
        assert torch.equal(got, wanted)
    assert torch.allclose(layer.codebook, whole.codebook, atol=1e-6)


@torch.no_grad()
def test_many_latents_fit_into_memory():
    """200 000 latents against 512 codes: a full table of differences would hold 3 GB."""
    layer = VectorQuantizer(512, 8, 0.25, "gradient").eval()
    layer.codebook.normal_()
    assert layer(latents(1, 8, 200_000))[2].shape == (1, 200_000)


def test_which_loss_term_carries_the_commitment_cost():
    layer = VectorQuantizer(8, 2, 0.25, "gradient").eval()
    layer.codebook.data.normal_()
    x = latents(1, 2, 5, 4).requires_grad_()
    _, loss, codes = layer(x)
    loss.backward()
    assert x.grad is not None
    assert layer.codebook.grad is not None
    nearest = layer.codebook.detach()[codes].movedim(-1, 1)
    difference = x.detach() - nearest
    assert loss.item() == pytest.approx(1.25 * difference.square().mean().item(), rel=1e-6)
    assert torch.allclose(x.grad, 0.25 * 2 * difference / x.numel(), atol=1e-7)
    expected = torch.zeros_like(layer.codebook)
    expected.index_add_(0, codes.flatten(), -2 * difference.movedim(1, -1).reshape(-1, 2) / x.numel())
    assert torch.allclose(layer.codebook.grad, expected, atol=1e-7)


def test_gradients_go_straight_through():
    layer = VectorQuantizer(8, 2, 0.25, "ema").eval()
    x = latents(1, 2, 5, 4).requires_grad_()
    layer(x)[0].backward(torch.full_like(x, 3.0))
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full_like(x, 3.0))


@pytest.mark.parametrize("codebook_update", ["gradient", "ema"])
def test_the_first_training_batch_gives_the_codes_their_start(codebook_update: str):
    layer = VectorQuantizer(32, 2, 0.25, codebook_update)
    x = latents(1, 2, 20, 20) * 0.1 + 5  # far from where a fresh codebook lies
    layer.eval()
    assert codes_in_use(layer(x)[2]) < 10
    assert not layer.initialised
    layer.train()
    assert codes_in_use(layer(x)[2]) == 32
    started = layer.codebook.detach().clone()
    if codebook_update == "gradient":
        layer(x + 1)
        assert torch.equal(layer.codebook, started)  # once only


def test_fewer_latents_than_codes_still_start_apart():
    layer = VectorQuantizer(32, 2, 0.25, "gradient")
    layer(latents(1, 2, 3, 3))
    assert codes_in_use(layer.codebook.sum(dim=1)) == 32


def test_moving_average_step():
    layer = VectorQuantizer(2, 1, 0.25, "ema")
    layer.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    layer.ema_sums.copy_(layer.codebook)
    layer.initialised.fill_(True)
    assert layer.ema_counts.tolist() == [1, 1]
    _, loss, _ = layer(torch.tensor([1.0, 2.0, 12.0]).reshape(1, 1, 3))
    assert loss.item() == pytest.approx(0.25 * (1 + 4 + 4) / 3)  # the commitment term alone
    assert layer.ema_counts.tolist() == pytest.approx([0.95 + 0.1, 0.95 + 0.05])
    assert layer.codebook.flatten().tolist() == pytest.approx([0.15 / 1.05, (9.5 + 0.6) / 1.0])


def test_evaluation_leaves_the_codebook_alone():
    layer = VectorQuantizer(8, 2, 0.25, "ema").eval()
    before = copy.deepcopy(layer.state_dict())
    layer(latents(1, 2, 5, 5))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_dead_codes_are_revived():
    layer = VectorQuantizer(4, 2, 0.25, "ema")
    layer(latents(1, 2, 200))
    layer.codebook[3] = 1000.0  # out of reach of every latent
    layer.ema_sums[3] = 1000.0 * layer.ema_counts[3]
    for step in range(1000):
        codes = layer(latents(1, 2, 200, seed=step))[2]
    assert codes_in_use(codes) == 4
    assert layer.codebook.abs().max() < 10


def test_moving_average_does_not_collapse():
    """Codes come back into use after the encoder has drifted away from where the codebook started."""
    layer = VectorQuantizer(64, 2, 0.25, "ema")
    for step in range(200):
        drift = min(step, 50)
        codes = layer(latents(2, 2, 16, 16, seed=step) * (1 + drift / 10) + drift / 5)[2]
    assert codes_in_use(codes) >= 48
    assert perplexity(codes) > 30


def test_training_goes_on_exactly_from_the_saved_state():
    layer = VectorQuantizer(64, 2, 0.25, "ema")
    for step in range(3):
        layer(latents(1, 2, 10, 10, seed=step))
    again = VectorQuantizer(64, 2, 0.25, "ema")
    again.load_state_dict(copy.deepcopy(layer.state_dict()))
    torch.manual_seed(1)  # what is drawn for dead codes does not hang on the global random state
    for step in range(3, 300):
        layer(latents(1, 2, 10, 10, seed=step))
    torch.manual_seed(2)
    for step in range(3, 300):
        again(latents(1, 2, 10, 10, seed=step))
    assert all(torch.equal(again.state_dict()[key], value) for key, value in layer.state_dict().items())


def _train_on_one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    layer = VectorQuantizer(16, 2, 0.25, "ema")
    for step in range(4):
        layer(latents(2, 2, 8, 8, seed=step)[rank : rank + 1])
    torch.save(layer.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_share_one_codebook(tmp_path: Path):
    multiprocessing.spawn(_train_on_one_process, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)

    torch.manual_seed(0)
    layer = VectorQuantizer(16, 2, 0.25, "ema")
    layer._initialise(
        latents(2, 2, 8, 8)[:1].movedim(1, -1).reshape(-1, 2)
    )  # from the first process's latents
    for step in range(4):
        layer(latents(2, 2, 8, 8, seed=step))
    assert torch.allclose(layer.codebook, first["codebook"], atol=1e-5)  # sums over both processes


def test_perplexity_and_codes_in_use():
    codes = torch.tensor([[3, 3, 7], [7, 3, 7]])
    assert codes_in_use(codes) == 2
    assert perplexity(codes) == pytest.approx(2)
    assert perplexity(torch.zeros(5, dtype=torch.int64)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 2, 0.25, "ema"), "num_embeddings"),
        ((8, 0, 0.25, "ema"), "embedding_dim"),
        ((8, 2, -1.0, "ema"), "commitment_cost"),
        ((8, 2, 0.25, "both"), "codebook_update"),
    ],
)
def test_impossible_configurations_are_refused(arguments: tuple[int, int, float, str], words: str):
    with pytest.raises(RequestError, match=words):
        VectorQuantizer(*arguments)
