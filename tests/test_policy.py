"""The policy: one or two branches of guidance, the reference inside it, prompts of any script, precision and layout."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from policies import make_policy
from settings import miniature_settings
from torch import Tensor

from pipeline.adapter import flatten_adapter, load_flat_adapter
from pipeline.generation import generate_latents
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch

pytest_plugins = ["model_fixtures"]

PROMPTS = ["a red circle", "a small blue star left of a green ring"]


def latents(seed: int, batch: int = 2) -> Tensor:
    """(B, 4, 8, 8)."""
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def load(model: Path, adapter_scale: float = 0.3, guidance_scale: float = 2.0, **model_changes: Any) -> Policy:
    settings = miniature_settings(model, sampling={"guidance_scale": guidance_scale})
    changed = settings.model_copy(update={"model": settings.model.model_copy(update=model_changes)})
    return make_policy(changed, adapter_scale)


@pytest.fixture(scope="module")
def moved(miniature_model: Path) -> Policy:
    """A policy whose adapter is not the reference; tests leave it as they find it."""
    return load(miniature_model)


@pytest.fixture
def batches(moved: Policy) -> Iterator[list[int]]:
    """Batch sizes of the network's calls."""
    seen: list[int] = []
    hook = moved.unet.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    yield seen
    hook.remove()


def base_prediction(model: Path, x_t: Tensor, step: int, guidance_scale: float) -> Tensor:
    """Classifier-free guidance by hand on the stock pipeline's components."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.scheduler.set_timesteps(4)
    time = pipeline.scheduler.timesteps[step]
    with torch.no_grad():
        conditional, unconditional = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=True)
        output = pipeline.unet(
            torch.cat([x_t, x_t]), time, encoder_hidden_states=torch.cat([unconditional, conditional])
        ).sample
    without, with_prompt = output.chunk(2)
    return without + guidance_scale * (with_prompt - without)


def test_the_reference_is_the_base_model_to_the_last_bit(moved: Policy, miniature_model: Path) -> None:
    expected = base_prediction(miniature_model, latents(0), 1, 2.0)
    assert torch.equal(moved.predict_reference(latents(0), 1, PROMPTS), expected)
    assert (moved.predict(latents(0), 1, PROMPTS) - expected).abs().max() > 1e-3


def test_a_fresh_adapter_is_the_reference_to_the_last_bit(miniature_model: Path) -> None:
    policy = load(miniature_model, adapter_scale=0.0)
    assert torch.equal(policy.predict(latents(0), 2, PROMPTS), policy.predict_reference(latents(0), 2, PROMPTS))


def test_guidance_runs_both_branches_in_one_call(moved: Policy, batches: list[int]) -> None:
    moved.predict(latents(0), 0, PROMPTS)
    assert batches == [4]


def test_guidance_scale_one_runs_the_conditional_branch_alone(miniature_model: Path) -> None:
    policy, seen = load(miniature_model, guidance_scale=1.0), []
    policy.unet.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    found = policy.predict(latents(0), 1, PROMPTS)
    assert seen == [2]
    # Two scales give the two branches; extrapolated to scale 1 they are the conditional one.
    two, three = (load(miniature_model, guidance_scale=scale).predict(latents(0), 1, PROMPTS) for scale in (2.0, 3.0))
    torch.testing.assert_close(found, 2 * two - three, rtol=0, atol=1e-5)


def test_a_step_per_sample_equals_each_step_alone(moved: Policy) -> None:
    together = moved.predict(latents(0), torch.tensor([0, 3]), PROMPTS)
    for row, step in enumerate((0, 3)):
        alone = moved.predict(latents(0)[row : row + 1], step, PROMPTS[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


def test_the_seed_decides_the_adapter_and_leaves_torch_alone(miniature_model: Path) -> None:
    before = torch.get_rng_state()
    first, again = load(miniature_model, adapter_scale=0.0), load(miniature_model, adapter_scale=0.0)
    other = make_policy(miniature_settings(miniature_model, seed=8))
    assert torch.equal(before, torch.get_rng_state())
    down = [name for name in first.adapter_parameters() if ".lora_A." in name]
    up = [name for name in first.adapter_parameters() if ".lora_B." in name]
    assert len(down) == len(up) > 0
    for name in down:
        assert torch.equal(first.adapter_parameters()[name], again.adapter_parameters()[name])
        assert not torch.equal(first.adapter_parameters()[name], other.adapter_parameters()[name])
    assert all(not first.adapter_parameters()[name].any() for name in up)


def test_only_the_adapter_is_trainable(miniature_model: Path) -> None:
    policy = load(miniature_model)
    trainable = {name for name, value in policy.unet.named_parameters() if value.requires_grad}
    assert trainable == set(policy.adapter_parameters())
    assert not any(value.requires_grad for value in policy.text_encoder.parameters())


def test_a_frozen_policy_stays_frozen_after_the_reference(miniature_model: Path) -> None:
    policy = load(miniature_model)
    policy.freeze()
    policy.predict_reference(latents(0), 0, PROMPTS)
    assert not any(value.requires_grad for value in policy.unet.parameters())
    assert not policy.forward(latents(0), 0, PROMPTS).requires_grad


def test_a_learning_policy_still_learns_after_the_reference(miniature_model: Path) -> None:
    policy = load(miniature_model)
    policy.predict_reference(latents(0), 0, PROMPTS)
    policy.forward(latents(0), 0, PROMPTS).sum().backward()
    assert all(value.grad is not None for value in policy.adapter_parameters().values())


def test_the_adapter_comes_back_when_the_reference_fails(miniature_model: Path) -> None:
    policy = load(miniature_model)
    expected = policy.predict(latents(0), 0, PROMPTS)
    with pytest.raises(IndexError):
        policy.predict_reference(latents(0), 99, PROMPTS)
    assert torch.equal(policy.predict(latents(0), 0, PROMPTS), expected)


def test_every_prompt_is_encoded_once(miniature_model: Path) -> None:
    policy, encoded = load(miniature_model), []
    policy.text_encoder.register_forward_pre_hook(lambda _module, inputs: encoded.append(len(inputs[0])))
    for _ in range(3):
        policy.predict(latents(0), 0, PROMPTS)
        policy.predict(latents(0, 4), 1, PROMPTS * 2)
    assert encoded == [1, 1, 1]  # two prompts and the empty one


@pytest.mark.parametrize(
    "prompt", ["a red circle", "", "🦊🚀 a fox", "قطة حمراء", "一只红色的猫", "café ﬁ Ω", "word " * 500, "🦊" * 300]
)
def test_prompts_of_any_script_and_length_are_encoded_as_diffusers_does(
    moved: Policy, miniature_model: Path, prompt: str
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(miniature_model, safety_checker=None)
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
    assert torch.equal(moved.encode_prompts([prompt]), expected)


def test_different_scripts_are_different_prompts(moved: Policy) -> None:
    embeddings = moved.encode_prompts(["🦊", "🐻", "قطة", "猫", "狗", ""])
    assert torch.isfinite(embeddings).all()
    distances = torch.cdist(embeddings.flatten(1), embeddings.flatten(1)) + torch.eye(6)
    assert distances.min() > 1e-3


def test_long_prompts_are_counted_and_warned_of_once(miniature_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy, long = load(miniature_model), "a red circle " * 100
    limit = policy.tokenizer.model_max_length
    with caplog.at_level(logging.WARNING, "pipeline.policy"):
        policy.encode_prompts([long, "a red circle", long])
        policy.encode_prompts([long])
    ours = [record for record in caplog.records if record.name == "pipeline.policy"]
    assert len(ours) == 1
    assert f"longer than the tokenizer's {limit} tokens" in ours[0].message


def test_a_float32_adapter_learns_on_a_bfloat16_base(miniature_model: Path, moved: Policy) -> None:
    policy = load(miniature_model, dtype="bfloat16")
    assert {value.dtype for value in policy.adapter_parameters().values()} == {torch.float32}
    frozen = {value.dtype for name, value in policy.unet.named_parameters() if ".lora_" not in name}
    assert frozen == {torch.bfloat16}
    assert policy.unet.dtype == torch.bfloat16
    output = policy.forward(latents(0), 0, PROMPTS)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, moved.predict(latents(0), 0, PROMPTS), rtol=0, atol=0.1)
    output.square().sum().backward()
    for value in policy.adapter_parameters().values():
        assert value.grad is not None
        assert value.grad.dtype == torch.float32
        assert torch.isfinite(value.grad).all()
        assert value.grad.abs().max() > 0


def test_channels_last_gives_the_same_prediction(miniature_model: Path, moved: Policy) -> None:
    policy = load(miniature_model, channels_last=True)
    assert policy.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        policy.predict(latents(0), 1, PROMPTS), moved.predict(latents(0), 1, PROMPTS), rtol=0, atol=1e-5
    )


@pytest.mark.slow
def test_the_traced_network_follows_the_adapter_on_and_off(
    miniature_model: Path, moved: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tracing and its guards are the real ones; the eager backend leaves out the minute of C++ compilation.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    policy = load(miniature_model, compile=True)
    assert isinstance(policy._network, torch._dynamo.eval_frame.OptimizedModule)
    for predict in ("predict", "predict_reference", "predict"):
        found, expected = (getattr(one, predict)(latents(0), 1, PROMPTS) for one in (policy, moved))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def adapter_gradients(policy: Policy) -> list[Tensor]:
    """Those that a learner takes."""
    loss = policy.forward(latents(0), 1, PROMPTS).square().sum()
    return list(torch.autograd.grad(loss, list(policy.adapter_parameters().values())))


def latent_gradients(policy: Policy) -> list[Tensor]:
    """Those that guidance takes, of a policy that is frozen."""
    x_t = latents(0).requires_grad_()
    return list(torch.autograd.grad(policy.forward(x_t, 1, PROMPTS).square().sum(), [x_t]))


@pytest.mark.slow
def test_the_traced_network_has_the_gradients_of_the_untraced_one_and_follows_new_weights(
    miniature_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both directions are traced here, as for a learner, and only their C++ is left out."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    traced, plain = load(miniature_model, compile=True), load(miniature_model)

    def compare(gradients: Callable[[Policy], list[Tensor]]) -> None:
        for found, expected in zip(gradients(traced), gradients(plain), strict=True):
            assert expected.abs().max() > 0
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())

    compare(adapter_gradients)
    published = flatten_adapter(plain) * np.float32(-0.5)
    for policy in (traced, plain):
        load_flat_adapter(policy, published)
    compare(adapter_gradients)
    for policy in (traced, plain):
        policy.freeze()
    compare(latent_gradients)


def test_attention_is_scaled_dot_product_attention(moved: Policy) -> None:
    assert {type(one) for one in moved.unet.attn_processors.values()} == {AttnProcessor2_0}
    assert moved.text_encoder.config._attn_implementation == "sdpa"


def test_blocks_narrow_the_adapter(miniature_model: Path) -> None:
    everywhere = make_policy(miniature_settings(miniature_model)).adapter_parameters()
    narrowed = make_policy(miniature_settings(miniature_model, lora={"blocks": ["mid_block"]})).adapter_parameters()
    assert set(narrowed) == {name for name in everywhere if name.startswith("mid_block.")}
    assert 0 < len(narrowed) < len(everywhere)


def test_an_adapter_on_no_layer_is_refused(miniature_model: Path) -> None:
    settings = miniature_settings(miniature_model, lora={"target_modules": ["to_nothing"]})
    with pytest.raises(ValueError, match="to_nothing"):
        make_policy(settings)


def test_latents_need_not_be_square(miniature_model: Path, moved: Policy) -> None:
    """diffusers lets a UNet's configuration give a height and a width."""
    config = UNet2DConditionModel.load_config(miniature_model, subfolder="unet") | {"sample_size": [8, 16]}
    unet = UNet2DConditionModel.from_config(config)
    policy = Policy(unet, moved.text_encoder, moved.tokenizer, moved.transition, guidance_scale=2.0)
    assert policy.latent_shape == (4, 8, 16)
    batch = SampleBatch(iteration=0, samples=(0, 1), prompts=tuple(PROMPTS[:2]))
    assert generate_latents(policy, batch, run_seed=0).shape == (2, 4, 8, 16)


def test_components_may_come_from_memory(miniature_model: Path, moved: Policy) -> None:
    unet = UNet2DConditionModel.from_pretrained(miniature_model, subfolder="unet")
    policy = Policy(unet, moved.text_encoder, moved.tokenizer, moved.transition, guidance_scale=2.0)
    assert policy.latent_shape == (4, 8, 8)
    assert torch.equal(policy.predict(latents(0), 1, PROMPTS), moved.predict_reference(latents(0), 1, PROMPTS))
