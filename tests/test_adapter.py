"""The adapter as a vector, and as a LoRA directory that stock diffusers draws the same pictures with."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from policies import make_policy
from safetensors import safe_open
from settings import miniature_settings
from stock_pipeline import PROMPTS, SEED, stock_latents

from pipeline.adapter import BareAdapter, export_adapter, flatten_adapter, load_flat_adapter
from pipeline.generation import evaluation_batch, generate_latents
from pipeline.training_record import read_training_record, training_record

pytest_plugins = ["model_fixtures"]

FILES = {"pytorch_lora_weights.safetensors", "README.md", "training.json"}
RECORD = training_record(miniature_settings(Path("the/base")))


@pytest.mark.parametrize("alpha", [4, 16])
def test_stock_diffusers_draws_the_same_latents(miniature_model: Path, tmp_path: Path, alpha: int) -> None:
    policy = make_policy(miniature_settings(miniature_model, lora={"rank": 4, "alpha": alpha}), adapter_scale=0.3)
    export_adapter(policy, tmp_path / "adapter", "card", RECORD)
    ours = generate_latents(policy, evaluation_batch(PROMPTS, 0, 2), SEED)
    scale = ours.abs().max().item()
    stock = stock_latents(miniature_model, tmp_path / "adapter", policy)
    torch.testing.assert_close(stock, ours, rtol=0, atol=1e-4 * scale)
    without = stock_latents(miniature_model, None, policy)
    assert (without - ours).abs().max() > 1e-2 * scale
    with policy.reference():
        base = generate_latents(policy, evaluation_batch(PROMPTS, 0, 2), SEED)
    torch.testing.assert_close(without, base, rtol=0, atol=1e-4 * scale)


def test_other_target_modules_are_exported_too(miniature_model: Path, tmp_path: Path) -> None:
    lora = {"rank": 2, "alpha": 3, "target_modules": ["to_q", "ff.net.0.proj", "proj_in", "conv1"]}
    model = {"channels_last": True}  # of the weights of convolutions too
    policy = make_policy(miniature_settings(miniature_model, lora=lora, model=model), adapter_scale=0.3)
    export_adapter(policy, tmp_path / "adapter", "card", RECORD)
    ours = generate_latents(policy, evaluation_batch(PROMPTS, 0, 2), SEED)
    stock = stock_latents(miniature_model, tmp_path / "adapter", policy)
    torch.testing.assert_close(stock, ours, rtol=0, atol=1e-4 * ours.abs().max().item())


@pytest.mark.parametrize("targets", [["to_q", "to_v"], ["to_q", "ff.net.0.proj", "proj_in", "conv1"]])
def test_an_adapter_is_exported_without_its_base_model(miniature_model: Path, tmp_path: Path, targets) -> None:
    """A driver may lie on a machine that has no more of the model than its configuration."""
    settings = miniature_settings(miniature_model, lora={"rank": 2, "alpha": 3, "target_modules": targets})
    policy = make_policy(settings, adapter_scale=0.3)
    export_adapter(policy, tmp_path / "whole", "card", RECORD)
    shutil.copytree(
        miniature_model / "unet",
        tmp_path / "model" / "unet",
        ignore=lambda _, names: [name for name in names if name != "config.json"],
    )
    bare = BareAdapter.make(str(tmp_path / "model"), settings.lora)
    load_flat_adapter(bare, flatten_adapter(policy))
    export_adapter(bare, tmp_path / "bare", "card", RECORD)
    (found, its_metadata), (expected, metadata) = (contents_of(tmp_path / name) for name in ("bare", "whole"))
    assert found.keys() == expected.keys() and its_metadata == metadata
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def contents_of(adapter: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata; in the file the latter have no fixed order."""
    with safe_open(adapter / "pytorch_lora_weights.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (no mapping)


def test_the_directory_holds_weights_and_card_and_nothing_else(miniature_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "adapter"
    export_adapter(make_policy(miniature_settings(miniature_model)), directory, "# card, für 🦊", RECORD)
    assert {path.name for path in directory.iterdir()} == FILES
    assert (directory / "README.md").read_text(encoding="utf-8") == "# card, für 🦊"
    assert read_training_record(str(directory)) == RECORD
    assert RECORD.base_model == "the/base" and RECORD.rewards[0].name == "jpeg_compressibility"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_export_replaces_the_last_one_whole(miniature_model: Path, tmp_path: Path) -> None:
    directory, debris = tmp_path / "adapter", tmp_path / ".adapter.partial"
    policy = make_policy(miniature_settings(miniature_model))
    export_adapter(policy, directory, "first", RECORD)
    (directory / "left_over").touch()
    debris.mkdir()
    (debris / "half_written").touch()
    export_adapter(policy, directory, "second", RECORD)
    assert (directory / "README.md").read_text() == "second"
    assert {path.name for path in directory.iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_export_that_fails_leaves_the_last_one(miniature_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "adapter"
    policy = make_policy(miniature_settings(miniature_model))
    export_adapter(policy, directory, "first", RECORD)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(UnicodeEncodeError):
        export_adapter(policy, directory, "\ud800 cannot be written as UTF-8", RECORD)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_the_flat_vector_is_the_adapter(miniature_model: Path) -> None:
    source = make_policy(miniature_settings(miniature_model), adapter_scale=0.3)
    target = make_policy(miniature_settings(miniature_model, seed=8))
    flat = flatten_adapter(source)
    assert flat.dtype == np.float32
    assert flat.shape == (sum(value.numel() for value in source.adapter_parameters().values()),)
    flat.flags.writeable = False  # as what comes out of the object store
    load_flat_adapter(target, flat)
    for name, value in source.adapter_parameters().items():
        assert torch.equal(value, target.adapter_parameters()[name])
    assert np.array_equal(flatten_adapter(target), flat)


def test_the_flat_vector_does_not_change_with_the_policy(miniature_model: Path) -> None:
    policy = make_policy(miniature_settings(miniature_model))
    flat = flatten_adapter(policy)
    kept = flat.copy()
    load_flat_adapter(policy, np.ones_like(flat))
    assert np.array_equal(flat, kept)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_vector_of_another_adapter_is_refused(miniature_model: Path, change: int) -> None:
    policy = make_policy(miniature_settings(miniature_model))
    size = len(flatten_adapter(policy))
    with pytest.raises(ValueError, match=f"has {size} weights but .*lora.rank"):
        load_flat_adapter(policy, np.zeros(size + change, dtype=np.float32))
