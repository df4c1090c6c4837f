from dataclasses import replace

import numpy as np
import pytest
import torch

from ct2mri.diffusion import NoiseSettings, alphas_cumprod, noisy_sample, predicted_original
from ct2mri.losses import diffusion_loss, double_loss, gradient_loss

OURS = NoiseSettings()
PUBLISHED = NoiseSettings(prediction_type="epsilon", zero_terminal_snr=False, last_timestep_input="noise")


def test_double_loss_vector(reference):
    vector = np.load(reference / "double_loss.npz")
    prediction, target = (torch.from_numpy(vector[key]) for key in ("prediction", "target"))
    timestep = torch.zeros(len(target), dtype=torch.long)
    loss = diffusion_loss(prediction, target, timestep, PUBLISHED, "double")
    assert loss.item() == pytest.approx(vector["loss"].item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1", "double"])
def test_invalid_voxels_do_not_count(loss):
    torch.manual_seed(0)
    output, target = torch.randn(3, 2, 6, 5), torch.randn(3, 2, 6, 5)
    weight = torch.ones(3, 1, 6, 5)
    weight[:, :, 4:] = 0
    timestep = torch.tensor([3, 500, 999])
    expected = diffusion_loss(output, target, timestep, OURS, loss, weight)
    output[:, :, 4:] = 1e6
    assert diffusion_loss(output, target, timestep, OURS, loss, weight) == expected
    assert torch.isfinite(diffusion_loss(output, target, timestep, OURS, loss, torch.zeros_like(weight)))


def test_loss_is_l1_at_a_blind_last_timestep():
    output, target = torch.full((2, 1, 3, 3), 3.0), torch.zeros(2, 1, 3, 3)
    loss = diffusion_loss(output, target, torch.tensor([10, 999]), OURS)
    assert loss.item() == pytest.approx((9 + 3) / 2)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "epsilon"])
def test_min_snr_weighs_the_images_error(prediction_type):
    """Whatever the network predicts: the error of the image that it implies, times min(SNR, γ)."""
    torch.manual_seed(0)
    zero = prediction_type != "epsilon"
    settings = NoiseSettings(
        prediction_type=prediction_type,
        zero_terminal_snr=zero,
        last_timestep_input="zero" if zero else "noise",
    )
    image, noise, output = torch.randn(4, 1, 4, 5), torch.randn(4, 1, 4, 5), torch.randn(4, 1, 4, 5)
    timestep = torch.tensor([3, 120, 300, 700])
    state, target = noisy_sample(image, noise, timestep, settings)
    implied = predicted_original(output, state, timestep, settings)
    level = alphas_cumprod(settings)[timestep]
    snr = level / (1 - level)
    assert (snr > 5).tolist() == [True, True, False, False]
    expected = ((implied - image).square().mean((1, 2, 3)) * snr.clamp(max=5)).mean()
    found = diffusion_loss(output, target, timestep, settings, min_snr_gamma=5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_min_snr_leaves_a_blind_last_timestep_as_it_is():
    output, target = torch.randn(3, 1, 6, 5), torch.randn(3, 1, 6, 5)
    timestep = torch.full((3,), 999)
    plain = diffusion_loss(output, target, timestep, OURS, gradient_weight=0.5)
    assert diffusion_loss(output, target, timestep, OURS, gradient_weight=0.5, min_snr_gamma=5) == plain


def test_double_loss_of_equal_images_is_zero():
    image = torch.randn(2, 1, 4, 4)
    assert double_loss(image, image).tolist() == [0, 0]


def test_gradient_loss_of_a_line():
    target = torch.zeros(1, 1, 8, 8)
    prediction = target.clone()
    prediction[..., 4] = 1  # 8 pixels; to the left and right of each, a difference of 1
    whole = 2 * 8 / (8 * 7)
    half = 2 * 4 * 0.5 / (4 * 3)  # two pixels of 2 × 2 average to a half
    quarter = 2 * 0.25 / 2
    assert gradient_loss(prediction, target).item() == pytest.approx(whole + half + quarter)
    assert gradient_loss(prediction.mT, target).item() == pytest.approx(whole + half + quarter)


def test_gradient_loss_of_volumes_is_that_of_slices_and_of_what_lies_between():
    generator = torch.Generator().manual_seed(0)
    image, target = torch.rand(2, 2, 1, 8, 8, generator=generator)
    thick, thick_target = (x[..., None].expand(-1, -1, -1, -1, 4) for x in (image, target))
    torch.testing.assert_close(gradient_loss(thick, thick_target), gradient_loss(image, target))
    step = torch.zeros(1, 1, 4, 4, 4)
    step[..., 2:] = 1  # whole: one of three differences; half: one of one; a quarter: none
    assert gradient_loss(step, torch.zeros_like(step)).item() == pytest.approx(1 / 3 + 1)


def test_gradient_loss_sees_edges_and_no_level():
    image = torch.randn(3, 1, 9, 14)
    torch.testing.assert_close(gradient_loss(image + 0.5, image), torch.zeros(3), atol=1e-6, rtol=0)
    sharp = torch.zeros(1, 1, 16, 16)
    sharp[..., 8:] = 1
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1, count_include_pad=False)
    noisy = sharp + 0.01 * torch.randn(1, 1, 16, 16)
    assert gradient_loss(blurred, sharp) > gradient_loss(noisy, sharp)


def test_smooth_l1_is_least_near_the_mean_and_l1_at_the_median():
    """Of a line that is there in one case of three, L1's best answer is none, and smooth L1's a faint one."""
    images = torch.zeros(3, 1, 8, 8)
    images[0, ..., 4] = 0.15
    timestep = torch.full((3,), 999)

    def loss(strength, kind):
        answer = torch.zeros_like(images)
        answer[..., 4] = strength
        return float(diffusion_loss(answer, images, timestep, OURS, kind, gradient_weight=0.5))

    strengths = np.linspace(0, 0.15, 16)
    assert strengths[np.argmin([loss(s, "l1") for s in strengths])] == 0
    assert strengths[np.argmin([loss(s, "smooth_l1") for s in strengths])] == pytest.approx(0.05)
    far = torch.full((1, 1, 3, 3), 3.0)
    last = torch.tensor([999])
    assert diffusion_loss(far, torch.zeros_like(far), last, OURS, "smooth_l1").item() == pytest.approx(2.9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (5, 5), (13, 22)])
def test_gradient_loss_of_any_size(shape):
    image, target = torch.randn(2, 2, *shape), torch.randn(2, 2, *shape)
    loss = gradient_loss(image, target)
    assert loss.shape == (2,)
    assert (loss > 0).all() == (max(shape) > 1)
    assert gradient_loss(target, target).tolist() == [0, 0]


def test_gradients_count_where_the_network_answers_with_an_estimate_and_pixels_are_valid():
    torch.manual_seed(0)
    output, target = torch.randn(2, 1, 12, 10), torch.randn(2, 1, 12, 10)
    timestep = torch.tensor([10, 999])
    plain = diffusion_loss(output, target, timestep, OURS)
    found = diffusion_loss(output, target, timestep, OURS, gradient_weight=0.5)
    gradients = gradient_loss(output[1:], target[1:]).item()
    assert found.item() == pytest.approx(plain.item() + 0.5 * gradients / 2, rel=1e-5)
    seen = diffusion_loss(output, target, timestep, PUBLISHED, gradient_weight=0.5)
    assert seen == diffusion_loss(output, target, timestep, PUBLISHED)
    sample = replace(OURS, prediction_type="sample")
    more = diffusion_loss(output, target, timestep, sample, gradient_weight=0.5, from_estimate=True)
    both = gradient_loss(output, target).mean().item()
    plain = diffusion_loss(output, target, timestep, sample)
    once = diffusion_loss(output, target, timestep, sample, gradient_weight=0.5)
    assert once.item() == pytest.approx(plain.item() + 0.5 * gradients / 2, rel=1e-5)
    assert more.item() == pytest.approx(plain.item() + 0.5 * both, rel=1e-5)
    weight = torch.ones(2, 1, 12, 10)
    weight[..., 7:] = 0
    masked = gradient_loss(output, target, weight)
    output[..., 7:] = 1e6
    torch.testing.assert_close(gradient_loss(output, target, weight), masked)
    assert gradient_loss(output, target, torch.zeros_like(weight)).tolist() == [0, 0]
