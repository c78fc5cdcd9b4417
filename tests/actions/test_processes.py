"""Flow matching and diffusion: their steps by hand, and the distribution they sample held against a
known one."""

import math

import pytest
import torch

from vla.actions.diffusion import Diffusion
from vla.actions.flow import LATEST_TRAINED, FlowMatching
from vla.actions.generative_process import GenerativeProcess, gaussian_entropy, gaussian_logprob

MEANS = torch.tensor([[1.0, 0.5], [-0.5, -1.0]])
WEIGHTS, SPREAD = torch.tensor([0.7, 0.3]), 0.2


def flow(num_steps: int, noise_level: float = 0.5) -> FlowMatching:
    return FlowMatching(num_steps, time_alpha=1.5, time_beta=1.0, noise_level=noise_level)


def expected_data(state, data_scale, noise_scale):
    """E[x_1 | x] where x = data_scale x_1 + noise_scale x_0 and x_1 is the mixture: exact,
    component by component.

    Given component i, x_1 and x are jointly Gaussian: E = m + data_scale SPREAD^2 / var (x -
    data_scale m).
    """
    variance = data_scale**2 * SPREAD**2 + noise_scale**2
    away = state[..., None, :] - data_scale * MEANS
    chances = (WEIGHTS.log() - away.square().sum(-1) / (2 * variance)).softmax(-1)
    each = MEANS + data_scale * SPREAD**2 / variance * away
    return (chances[..., None] * each).sum(-2)


def perfect_flow(state, time):
    """The velocity E[x_1 - x_0 | x]; x_0 = (x - t x_1) / (1 - t)."""
    data = expected_data(state, time, 1 - time)
    return data - (state - time * data) / (1 - time)


def perfect_diffusion(process, state, step):
    """The v-prediction sqrt(abar) noise - sqrt(1 - abar) data."""
    kept = process.noising.alphas_cumprod[process.timesteps[step]]
    data = expected_data(state, kept.sqrt(), (1 - kept).sqrt())
    noise = (state - kept.sqrt() * data) / (1 - kept).sqrt()
    return kept.sqrt() * noise - (1 - kept).sqrt() * data


def check_mixture(points):
    """4000 points: share of the first component, means and spread within about four standard
    errors."""
    first = (points @ torch.tensor([1.5, 1.5]) > 0).squeeze()
    assert float(first.float().mean()) == pytest.approx(0.7, abs=0.03)
    for component, mean in zip((first, ~first), MEANS):
        assert (points[component].mean(0) - mean).abs().max() < 0.03
        assert (points[component].std(0) - SPREAD).abs().max() < 0.03


@pytest.mark.parametrize("stochastic", [False, True])
def test_flow_samples_the_mixture(stochastic):
    torch.manual_seed(0)
    process = flow(100)
    state = torch.randn(4000, 1, 2)
    for step, time in enumerate(process.times):
        prediction = perfect_flow(state, time)
        if stochastic:
            mean, std = process.transition(step, state, prediction)
            state = mean + std * torch.randn_like(state)
        else:
            state = process.move(step, state, prediction)
    check_mixture(state[:, 0])


@pytest.mark.parametrize("stochastic", [False, True])
def test_diffusion_samples_the_mixture(stochastic):
    torch.manual_seed(0)
    process = Diffusion(100, 100 if stochastic else 50, "v_prediction", min_std=0.01, clip=3.0)
    state = torch.randn(4000, 1, 2)
    for step in range(process.num_steps):
        prediction = perfect_diffusion(process, state, step)
        if stochastic:
            mean, std = process.transition(step, state, prediction)
            state = mean + std * torch.randn_like(state)
        else:
            state = process.move(step, state, prediction)
    check_mixture(state[:, 0])


def test_flow_by_hand():
    process = flow(4)
    assert isinstance(process, GenerativeProcess)
    assert process.times.tolist() == [0, 0.25, 0.5, 0.75]
    clean, noise = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), -1.0)
    noised, target = process.corrupt(clean, noise, torch.tensor([0.25]))
    assert (noised.item(), target.item()) == (-0.25, 3.0)  # .25 * 2 - .75, and 2 - (-1)
    assert process.move(1, noised, target).item() == 0.5  # -.25 + 3 / 4: on the line at t = .5
    # Step 1: s^2 = .25 * .75 / .25 = .75; x_0 = -1; mean = .5 - .75 * .25 / 1.5 * -1 = .625; std =
    # sqrt(.75 / 4).
    mean, std = process.transition(1, noised, target)
    assert mean.item() == pytest.approx(0.625)
    assert std == pytest.approx(math.sqrt(0.1875))
    # Step 0: the time below the line is that of step 1, s^2 = .25 * 1 / .25 = 1; std = .5, the
    # noise level itself.
    mean, std = process.transition(0, noise, target)
    assert mean.item() == pytest.approx(-1 + 0.75 + 0.125)
    assert std == pytest.approx(0.5)


def test_flow_times_are_mostly_noisy_ones():
    torch.manual_seed(0)
    times = flow(4).draw_times((20000,), torch.device("cpu"))
    assert times.min() >= 0
    assert times.max() <= LATEST_TRAINED
    # The mean of Beta(1.5, 1) is .6, so that of times is .999 * .4; the standard deviation is .26,
    # of the mean .0019.
    assert times.mean().item() == pytest.approx(0.3996, abs=0.008)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_diffusion_predictions_lead_back_to_the_data(prediction):
    """From a noised chunk, the true prediction and the last step, whose end is the data, give the
    chunk back."""
    process = Diffusion(20, 4, prediction, min_std=0.1, clip=2.0)
    assert isinstance(process, GenerativeProcess)
    assert process.timesteps == [19, 14, 9, 4]
    torch.testing.assert_close(process.times, torch.tensor([0.05, 0.3, 0.55, 0.8]))
    clean, noise = torch.tensor([[[0.5], [-1.0]]]), torch.tensor([[[1.0], [2.0]]])
    noised, target = process.corrupt(clean, noise, process.times[3:])
    torch.testing.assert_close(process.move(3, noised, target), clean, rtol=0, atol=1e-4)
    mean, std = process.transition(3, noised, target)
    torch.testing.assert_close(mean, clean, rtol=0, atol=1e-4)
    assert std == 0.1  # the floor: DDIM's own last step has no noise


def test_diffusion_spreads_are_those_of_ddim():
    process = Diffusion(20, 4, "epsilon", min_std=0.01, clip=2.0)
    kept = process.noising.alphas_cumprod
    before, after = kept[14], kept[9]
    # Song 2021, eq. 16 with eta = 1: sqrt((1 - after) / (1 - before)) sqrt(1 - before / after).
    expected = ((1 - after) / (1 - before) * (1 - before / after)).sqrt().item()
    assert process.stds[1] == pytest.approx(expected, rel=1e-4)


def test_steps_that_do_not_divide_are_refused():
    with pytest.raises(
        ValueError, match=r"policy.num_steps \(3\) must divide policy.num_train_steps \(20\)"
    ):
        Diffusion(20, 3, "epsilon", 0.1, 2.0)
    with pytest.raises(ValueError, match=r"policy.num_steps \(30\) must lie between 1 and"):
        Diffusion(20, 30, "epsilon", 0.1, 2.0)


def test_gaussians_by_hand():
    value, mean = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    # log N(1; 0, 2) + log N(0; 0, 2) = -1/8 - 2 log 2 - log 2 pi
    assert gaussian_logprob(value, mean, 2.0).item() == pytest.approx(
        -0.125 - 2 * math.log(2) - math.log(2 * math.pi)
    )
    torch.testing.assert_close(
        gaussian_logprob(value, mean, torch.full((1, 2), 2.0)), gaussian_logprob(value, mean, 2.0)
    )
    # Entropy of one: log 2 + (log 2 pi e) / 2
    assert gaussian_entropy(torch.full((1, 2), 2.0)).item() == pytest.approx(
        2 * math.log(2) + math.log(2 * math.pi * math.e)
    )
