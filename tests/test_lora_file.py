"""LoRAs from anywhere: read as diffusers reads them, drawn with as diffusers draws, refused where they do not fit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hub_cache import go_offline, put
from loras import trained_unet, write_bare_lora, write_diffusers_lora, write_kohya_lora, write_peft_lora
from miniature import write_clip
from safetensors.torch import load_file, save_file
from settings import miniature_settings
from stock_pipeline import PROMPTS, SEED, stock_latents

from pipeline.generation import drift_steps, evaluation_batch, generate_latents, generate_with_drift
from pipeline.lora_file import HUB_FILE, LoraFile, read_lora
from pipeline.lora_policy import LoraPolicy, check_lora_fits

pytest_plugins = ["model_fixtures"]

BATCH = evaluation_batch(PROMPTS, 0, 2)


@pytest.fixture
def policy(miniature_model: Path) -> LoraPolicy:
    settings = miniature_settings(miniature_model)
    return LoraPolicy.load(settings.model, None, settings.sampling, settings.seed)


def travelled(lora: LoraFile) -> LoraFile:
    return LoraFile.from_buffer(lora.to_buffer())


@pytest.mark.parametrize("write", [write_diffusers_lora, write_kohya_lora], ids=["diffusers", "kohya"])
def test_stock_diffusers_draws_the_same_latents(
    write: Callable[[Path, Path], Path], policy: LoraPolicy, miniature_model: Path, tmp_path: Path
) -> None:
    path = write(miniature_model, tmp_path / "style.safetensors")
    base = generate_latents(policy, BATCH, SEED)
    policy.hold(travelled(read_lora(str(path))))
    ours = generate_latents(policy, BATCH, SEED)
    scale = ours.abs().max().item()
    torch.testing.assert_close(ours, stock_latents(miniature_model, path, policy), rtol=0, atol=1e-4 * scale)
    assert (ours - base).abs().max() > 1e-2 * scale
    with policy.reference():
        assert torch.equal(generate_latents(policy, BATCH, SEED), base)
    assert torch.equal(generate_latents(policy, BATCH, SEED), ours)


@pytest.mark.parametrize("write", [write_bare_lora, write_peft_lora], ids=["a network alone", "peft"])
def test_other_ways_to_save_the_same_weights_draw_the_same(
    write: Callable[[Path, Path], Path], policy: LoraPolicy, miniature_model: Path, tmp_path: Path
) -> None:
    unet = trained_unet(miniature_model)
    policy.hold(travelled(read_lora(str(write(miniature_model, tmp_path / "style")))))
    x_t, text = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), policy.encode_prompts(PROMPTS[:1])
    with torch.no_grad():
        expected, found = (network(x_t, 500, text).sample for network in (unet, policy.unet))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_policy_holds_one_lora_after_another(policy: LoraPolicy, miniature_model: Path, tmp_path: Path) -> None:
    both = read_lora(str(write_diffusers_lora(miniature_model, tmp_path / "both")))
    kohya = read_lora(str(write_kohya_lora(miniature_model, tmp_path / "kohya.safetensors")))
    base = generate_latents(policy, BATCH, SEED)
    policy.hold(both)
    first = generate_latents(policy, BATCH, SEED)
    policy.hold(kohya)
    assert not torch.equal(generate_latents(policy, BATCH, SEED), first), "the text encoder's adapter is gone"
    policy.hold(both)
    assert torch.equal(generate_latents(policy, BATCH, SEED), first)
    policy.release()
    assert torch.equal(generate_latents(policy, BATCH, SEED), base)
    with policy.reference():
        assert torch.equal(generate_latents(policy, BATCH, SEED), base)


def test_the_drift_is_half_the_squared_distance_of_the_means(
    policy: LoraPolicy, miniature_model: Path, tmp_path: Path
) -> None:
    policy.hold(read_lora(str(write_diffusers_lora(miniature_model, tmp_path / "style"))))
    seen = []
    latents = generate_latents(policy, BATCH, SEED, lambda step, x_t, mean, std: seen.append((step, x_t, mean, std)))
    expected = []
    for step, x_t, mean, std in (seen[step] for step in drift_steps(len(seen))):
        reference, _ = policy.transition.mean_std(policy.predict_reference(x_t, step, PROMPTS), x_t, step)
        expected.append(((mean - reference) / std).square().flatten(1).mean(dim=1) / 2)
    found, drift = generate_with_drift(policy, BATCH, SEED)
    assert torch.equal(found, latents)
    torch.testing.assert_close(drift, torch.stack(expected).mean(dim=0))
    assert drift.shape == (2,) and (drift > 0).all()
    policy.release()
    assert torch.equal(generate_with_drift(policy, BATCH, SEED)[1], torch.zeros(2))


def test_what_is_read_survives_the_way_to_a_worker(miniature_model: Path, tmp_path: Path) -> None:
    for lora in (
        read_lora(str(write_kohya_lora(miniature_model, tmp_path / "kohya.safetensors"))),
        read_lora(str(write_peft_lora(miniature_model, tmp_path / "peft"))),
    ):
        buffer = lora.to_buffer()
        arrived = LoraFile.from_buffer(buffer)
        assert buffer.dtype == np.uint8
        assert arrived.alphas == lora.alphas
        assert np.array_equal(arrived.to_buffer(), buffer), "the same LoRA has the same bytes"
        assert all(torch.equal(arrived.tensors[name], tensor) for name, tensor in lora.tensors.items())


# What is refused


def test_a_lora_that_fits_passes(miniature_model: Path, tmp_path: Path) -> None:
    for path in (
        write_diffusers_lora(miniature_model, tmp_path / "style"),
        write_kohya_lora(miniature_model, tmp_path / "style.safetensors"),
        write_peft_lora(miniature_model, tmp_path / "peft"),
    ):
        lora = read_lora(str(path))
        assert lora.tensors
        check_lora_fits(lora, str(miniature_model))


def test_an_adapter_of_another_architecture_is_refused(miniature_model: Path, tmp_path: Path) -> None:
    directory = write_diffusers_lora(miniature_model, tmp_path / "wide")
    file = directory / "pytorch_lora_weights.safetensors"
    wide = {n: v.repeat(2, *[1] * (v.ndim - 1)) if "lora_B" in n else v for n, v in load_file(file).items()}
    save_file(wide, file)
    with pytest.raises(ValueError, match=r"does not fit the unet of the model: .*size mismatch"):
        check_lora_fits(read_lora(str(directory)), str(miniature_model))


def test_weights_for_layers_that_are_not_there_are_counted(miniature_model: Path, tmp_path: Path) -> None:
    file = write_kohya_lora(miniature_model, tmp_path / "style.safetensors")
    lora = read_lora(str(file))
    name = next(iter(lora.tensors))
    tensors = lora.tensors | {name.replace("down_blocks.0", "down_blocks.7"): lora.tensors[name]}
    with pytest.raises(ValueError, match=r"1 of \d+ weights are for layers that the unet does not have"):
        check_lora_fits(LoraFile(tensors, lora.alphas, lora.metadata), str(miniature_model))


def test_networks_that_the_pipeline_does_not_have_are_named(tmp_path: Path) -> None:
    tensors = {f"transformer.blocks.0.attn.to_q.lora_{half}.weight": torch.zeros(2, 2) for half in "AB"}
    save_file(tensors, tmp_path / "flux.safetensors")
    with pytest.raises(ValueError, match=r"2 of 2 weights .* transformer.blocks.0.* another architecture"):
        read_lora(str(tmp_path / "flux.safetensors"))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: path, "there is no adapter"),
        (lambda path: path.mkdir() or path, "has no .safetensors file"),
        (lambda path: path.write_bytes(b"no weights") and path, "diffusers cannot read the adapter"),
        (lambda path: write_clip(path), "is no LoRA: it holds logit_scale"),
    ],
    ids=["missing", "empty", "damaged", "another model"],
)
def test_what_is_no_lora_is_refused(prepare: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_lora(str(prepare(tmp_path / "style.safetensors")))


def test_a_lora_of_the_hub_is_taken_from_its_cache(
    miniature_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_offline(monkeypatch, tmp_path / "cache")
    put(tmp_path / "cache", "someone/style", write_diffusers_lora(miniature_model, tmp_path / "style") / HUB_FILE)
    assert len(read_lora("someone/style").tensors) > 0
    with pytest.raises(ValueError, match=r"'someone/else' is no directory, and .* cannot be had from the hub or"):
        read_lora("someone/else")


def test_a_whole_unet_is_no_lora(miniature_model: Path) -> None:
    assert UNet2DConditionModel.load_config(miniature_model, subfolder="unet")
    with pytest.raises(ValueError, match="is no LoRA"):
        read_lora(str(miniature_model / "unet"))
