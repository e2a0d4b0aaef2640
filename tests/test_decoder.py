"""The latent decoder against diffusers' own post-processing, on a tiny VAE written to disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor

from pipeline.decoder import LatentDecoder

CPU = torch.device("cpu")


def tiny_vae(**settings: float) -> AutoencoderKL:
    """A VAE of random weights: latents (B, 4, 8, 8) <-> images (B, 3, 16, 16)."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(**blocks, block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4, **settings)


@pytest.fixture(scope="module")
def pipeline_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pipeline")
    tiny_vae(scaling_factor=0.18215).save_pretrained(directory / "vae")
    return directory


def random_latents(batch: int) -> torch.Tensor:
    """(B, 4, 8, 8), small enough that most pixels stay inside the clamp."""
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(7)) * 0.1


def test_it_decodes_as_diffusers_does(pipeline_directory: Path) -> None:
    decoder = LatentDecoder.load(str(pipeline_directory), CPU, torch.float32, chunk_size=2)
    latents = random_latents(5)
    images = decoder.decode(latents)
    vae = AutoencoderKL.from_pretrained(pipeline_directory, subfolder="vae")
    with torch.no_grad():
        decoded = vae.decode(latents / 0.18215).sample
    expected = VaeImageProcessor().postprocess(decoded, output_type="pt")
    assert images.shape == (5, 3, 16, 16)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_pixels_stay_in_the_unit_interval(pipeline_directory: Path) -> None:
    decoder = LatentDecoder.load(str(pipeline_directory), CPU, torch.float32, chunk_size=4)
    decoder.vae.decoder.conv_out.bias.add_(torch.tensor([-9.0, 0.0, 9.0]))
    images = decoder.decode(random_latents(2))
    assert torch.equal(images[:, 0], torch.zeros_like(images[:, 0]))
    assert torch.equal(images[:, 2], torch.ones_like(images[:, 2]))


def test_the_shift_factor_is_added_where_the_vae_has_one() -> None:
    latents = random_latents(2)
    shifted = LatentDecoder(tiny_vae(scaling_factor=0.5, shift_factor=0.1), chunk_size=2).decode(latents)
    plain = LatentDecoder(tiny_vae(scaling_factor=1.0), chunk_size=2).decode(latents / 0.5 + 0.1)
    torch.testing.assert_close(shifted, plain, rtol=0, atol=1e-6)


def test_the_chunk_size_changes_memory_and_not_the_images() -> None:
    vae, latents = tiny_vae(), random_latents(5)
    whole = LatentDecoder(vae, chunk_size=5).decode(latents)
    for chunk_size in (1, 2, 8):
        torch.testing.assert_close(LatentDecoder(vae, chunk_size).decode(latents), whole, rtol=0, atol=1e-5)


def test_the_chunk_size_bounds_each_call_of_the_vae(pipeline_directory: Path) -> None:
    decoder = LatentDecoder.load(str(pipeline_directory), CPU, torch.float32, chunk_size=2)
    batches: list[int] = []
    decoder.vae.decoder.register_forward_pre_hook(lambda _module, inputs: batches.append(len(inputs[0])))
    decoder.decode(random_latents(5))
    assert batches == [2, 2, 1]


def test_gradients_reach_the_latents_through_the_chunks(pipeline_directory: Path) -> None:
    decoder = LatentDecoder.load(str(pipeline_directory), CPU, torch.float32, chunk_size=2)
    latents = random_latents(3).requires_grad_()
    weights = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((decoder.decode(latents) * weights).sum(), latents)
    direction = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    double = LatentDecoder(tiny_vae(scaling_factor=0.18215).double(), chunk_size=3)
    ends = [latents.detach().double() + sign * 1e-4 * direction for sign in (1, -1)]
    with torch.no_grad():
        rise = (double.decode(ends[0]) - double.decode(ends[1])) * weights
    torch.testing.assert_close((gradient * direction).sum().item(), rise.sum().item() / 2e-4, rtol=1e-2, atol=1e-2)


def test_half_precision_returns_float32_images(pipeline_directory: Path) -> None:
    decoder = LatentDecoder.load(str(pipeline_directory), CPU, torch.bfloat16, chunk_size=2)
    images = decoder.decode(random_latents(2))
    full = LatentDecoder.load(str(pipeline_directory), CPU, torch.float32, chunk_size=2).decode(random_latents(2))
    assert decoder.vae.dtype == torch.bfloat16
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, full, rtol=0, atol=0.03)


def test_a_directory_without_a_vae_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no VAE: give the directory of a StableDiffusionPipeline"):
        LatentDecoder.load(str(tmp_path), CPU, torch.float32, chunk_size=2)


def test_a_chunk_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        LatentDecoder(tiny_vae(), chunk_size=0)
