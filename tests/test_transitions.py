"""The Gaussian denoising step: against the published schedule's numbers, diffusers' own step, and closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.demo.architectures import SCHEDULER as DEMO_SCHEDULER
from pipeline.transitions import DDIMTransition, gaussian_log_prob, reduce_latent

SD15_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

# Steps that remain, time, next time, alpha_bar of both, sigma at eta = 1, d mean / d epsilon: T = 20 on SD v1.5.
VECTORS = [
    (20, 951, 901, 0.00816, 0.01400, 0.64439, -0.54963),
    (16, 751, 701, 0.05572, 0.08192, 0.55762, -0.39905),
    (12, 551, 501, 0.21278, 0.27500, 0.45647, -0.28988),
    (8, 351, 301, 0.50482, 0.58882, 0.34418, -0.21895),
    (4, 151, 101, 0.82640, 0.89298, 0.21439, -0.18602),
    (2, 51, 1, 0.95052, 0.99830, 0.04060, -0.22048),
    (1, 1, 0, 0.99830, 0.99915, 0.02065, -0.02071),
]
HALF_UNIT_IN_LAST_PLACE = 5.5e-6


def scheduler(**changes: object) -> DDIMScheduler:
    return DDIMScheduler(**(SD15_SCHEDULE | changes))


def latents(seed: int, batch: int = 3) -> Tensor:
    """(B, 4, 2, 2)."""
    return torch.randn(batch, 4, 2, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"step {vector[0]}")
def test_it_has_the_published_numbers_of_sd15(vector: tuple[float, ...]) -> None:
    remaining, time, next_time, alpha_t, alpha_s, std, sensitivity = vector
    transition, step = DDIMTransition.from_scheduler(scheduler(), num_steps=20), 20 - int(remaining)
    output, x_t = torch.zeros(1, 1, 1, 1, requires_grad=True), torch.ones(1, 1, 1, 1)
    mean, found_std = transition.mean_std(output, x_t, step)
    x0 = transition.predict_x0(output, x_t, step)
    (d_mean,) = torch.autograd.grad(mean.sum(), output)
    # At epsilon = 0, x0 is x_t / sqrt(alpha_t) and the mean sqrt(alpha_s) times that.
    found_alpha_t, found_alpha_s = 1 / x0.item() ** 2, (mean / x0).item() ** 2
    found = [found_alpha_t, found_alpha_s, found_std.item(), d_mean.item()]
    assert int(transition.timesteps[step]) == time
    assert int(transition.timesteps[step + 1]) == next_time if remaining > 1 else next_time == 0
    assert found == pytest.approx([alpha_t, alpha_s, std, sensitivity], abs=HALF_UNIT_IN_LAST_PLACE)


def assert_agrees_with_diffusers(ddim: DDIMScheduler, num_steps: int, eta: float) -> None:
    """Mean, standard deviation and x0 of every step against `DDIMScheduler.step` in float64."""
    transition = DDIMTransition.from_scheduler(ddim, num_steps, eta)
    ddim.set_timesteps(num_steps)
    assert torch.equal(transition.timesteps, ddim.timesteps)
    ddim.alphas_cumprod, ddim.final_alpha_cumprod = ddim.alphas_cumprod.double(), ddim.final_alpha_cumprod.double()
    output, x_t, noise = latents(1), latents(2), torch.ones(3, 4, 2, 2, dtype=torch.float64)
    for step, time in enumerate(ddim.timesteps):
        quiet, noisy = (
            ddim.step(output.double(), time, x_t.double(), eta, variance_noise=variance_noise)
            for variance_noise in (torch.zeros_like(noise), noise)
        )
        mean, std = transition.mean_std(output, x_t, step)
        x0 = transition.predict_x0(output, x_t, step)
        assert {mean.dtype, std.dtype, x0.dtype} == {torch.float32}
        scale = quiet.pred_original_sample.abs().max().item() + 1
        torch.testing.assert_close(mean.double(), quiet.prev_sample, rtol=1e-5, atol=2e-6 * scale)
        torch.testing.assert_close(x0.double(), quiet.pred_original_sample, rtol=1e-5, atol=2e-6 * scale)
        expected_std = (noisy.prev_sample - quiet.prev_sample).mean()
        torch.testing.assert_close(std.double(), expected_std, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("num_steps", [1, 7, 20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_step_agrees_with_diffusers(prediction: str, spacing: str, num_steps: int, eta: float) -> None:
    ddim = scheduler(prediction_type=prediction, timestep_spacing=spacing)
    assert_agrees_with_diffusers(ddim, num_steps, eta)


@pytest.mark.parametrize("num_steps", [12, 20])
def test_the_demo_schedule_agrees_with_diffusers(num_steps: int) -> None:
    assert_agrees_with_diffusers(DDIMScheduler(**DEMO_SCHEDULER), num_steps, 1.0)


def test_a_schedule_that_ends_without_signal_agrees_with_diffusers() -> None:
    ddim = scheduler(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)
    assert_agrees_with_diffusers(ddim, 20, 1.0)


def test_the_default_grid_leads_to_its_own_next_time() -> None:
    ddim = scheduler()
    ddim.set_timesteps(20)
    given_grid = DDIMTransition(ddim.alphas_cumprod, ddim.timesteps, final_alpha_cumprod=ddim.final_alpha_cumprod)
    derived = DDIMTransition.from_scheduler(ddim, 20)
    for step in range(20):
        for ours, theirs in zip(
            given_grid.mean_std(latents(1), latents(2), step),
            derived.mean_std(latents(1), latents(2), step),
            strict=True,
        ):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_step_per_sample_equals_each_step_alone(prediction: str) -> None:
    transition = DDIMTransition.from_scheduler(scheduler(prediction_type=prediction), 20, 1.0)
    steps, output, x_t = torch.tensor([0, 7, 19]), latents(1), latents(2)
    mean, std = transition.mean_std(output, x_t, steps)
    x0 = transition.predict_x0(output, x_t, steps)
    assert std.shape == (3,)
    for row, step in enumerate(steps.tolist()):
        one = slice(row, row + 1)
        mean_alone, std_alone = transition.mean_std(output[one], x_t[one], step)
        assert torch.equal(mean[one], mean_alone)
        assert torch.equal(std[row], std_alone)
        assert torch.equal(x0[one], transition.predict_x0(output[one], x_t[one], step))


@given(step=st.integers(0, 19), eta=st.floats(0, 1), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_all_prediction_types_describe_the_same_step(step: int, eta: float, seed: int) -> None:
    ddim = scheduler()
    x0, epsilon = latents(seed), latents(seed + 1)
    transitions = {
        prediction: DDIMTransition.from_scheduler(scheduler(prediction_type=prediction), 20, eta)
        for prediction in ("epsilon", "v_prediction", "sample")
    }
    alpha = ddim.alphas_cumprod[transitions["epsilon"].timesteps[step]]
    x_t = alpha.sqrt() * x0 + (1 - alpha).sqrt() * epsilon
    outputs = {
        "epsilon": epsilon,
        "v_prediction": alpha.sqrt() * epsilon - (1 - alpha).sqrt() * x0,
        "sample": x0,
    }
    means = [transitions[name].mean_std(output, x_t, step)[0] for name, output in outputs.items()]
    for name, output in outputs.items():
        torch.testing.assert_close(transitions[name].predict_x0(output, x_t, step), x0, rtol=0, atol=1e-4)
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0], rtol=0, atol=1e-4)


def test_half_precision_latents_are_worked_on_in_float32() -> None:
    transition = DDIMTransition.from_scheduler(scheduler(), 20)
    output, x_t = latents(1).bfloat16(), latents(2).bfloat16()
    mean, _ = transition.mean_std(output, x_t, 3)
    expected, _ = transition.mean_std(output.float(), x_t.float(), 3)
    assert mean.dtype == torch.float32
    assert torch.equal(mean, expected)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    std=st.floats(0.01, 10),
    scale=st.floats(0.1, 10),
    per_sample=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_log_probability_is_that_of_the_normal_distribution(
    shape: tuple[int, ...], std: float, scale: float, per_sample: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean = scale * torch.randn(shape, generator=generator)
    deviation = torch.linspace(std, 2 * std, shape[0]) if per_sample else torch.tensor(std)
    spread = deviation.view(-1, 1, 1, 1) if per_sample else deviation
    sample = mean + 2 * spread * torch.randn(shape, generator=generator)
    density = torch.distributions.Normal(mean.double(), spread.double()).log_prob(sample.double()).flatten(1)
    for reduction, expected in (("mean", density.mean(1)), ("sum", density.sum(1))):
        found = gaussian_log_prob(sample, mean, deviation, reduction)
        # The sample itself is rounded to float32: at a mean of 30 and a deviation of 0.01 that is 1e-4 of a deviation.
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4 * density.shape[1])


def test_the_default_reduction_is_the_mean() -> None:
    sample, mean = latents(1), latents(2)
    assert torch.equal(gaussian_log_prob(sample, mean, 0.5), gaussian_log_prob(sample, mean, 0.5, "mean"))
    torch.testing.assert_close(16 * reduce_latent(sample, "mean"), reduce_latent(sample, "sum"))


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_eta_outside_its_range_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta is .*0 <= eta <= 1"):
        DDIMTransition(torch.tensor([0.9, 0.5]), torch.tensor([1, 0]), eta=eta)


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="'flow'; known are 'epsilon'"):
        DDIMTransition(torch.tensor([0.9, 0.5]), torch.tensor([1, 0]), prediction_type="flow")  # type: ignore[arg-type]


def test_noise_prediction_without_signal_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ends at zero signal.*use v_prediction"):
        DDIMTransition(torch.tensor([0.9, 0.0]), torch.tensor([1, 0]))


@pytest.mark.parametrize("clipping", [{"clip_sample": True}, {"thresholding": True}])
def test_a_clipping_scheduler_is_refused(clipping: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match=r"clips its x0 prediction.*set both to false"):
        DDIMTransition.from_scheduler(scheduler(**clipping), 20)
