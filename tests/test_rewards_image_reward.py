"""ImageReward on a small checkpoint under the published names, against its arithmetic written out in plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hub_cache import go_offline, put
from image_reward_checkpoint import (
    DEPTH,
    HEAD_LAYERS,
    MED_CONFIG,
    SIDE,
    WIDTH,
    WORDS,
    published_shapes,
    write_image_reward,
)
from plain_torch import Weights, attention, random_tensors
from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig

from pipeline.rewards import load_reward
from pipeline.rewards.image_reward import HUB_ID, TOKENIZER_HUB_ID, ImageReward
from pipeline.rewards.image_reward_network import ImageRewardNetwork

CPU = torch.device("cpu")
PROMPTS = ["red circle", "a Red CIRCLElet, b", ""]
MEAN, STD = 0.16717362830052426, 1.0333394966054072


def plain_image_states(tensors: dict[str, Tensor], pixel_values: Tensor) -> Tensor:
    """BLIP's image tower, a pre-norm ViT with heads of 64 channels: (B, 3, H, W) -> (B, patches + 1, width)."""
    tower = Weights(tensors, "blip.visual_encoder.")
    patches = tower.patches("patch_embed.proj", pixel_values)
    states = torch.cat([tower["cls_token"].expand(len(patches), 1, -1), patches], dim=1) + tower["pos_embed"]
    for index in range(DEPTH):
        block = tower.under(f"blocks.{index}")
        queries, keys, values = block.linear("attn.qkv", block.norm("norm1", states, 1e-6)).chunk(3, dim=-1)
        states = states + block.linear("attn.proj", attention(queries, keys, values, WIDTH // 64))
        hidden = block.linear("mlp.fc1", block.norm("norm2", states, 1e-6))
        states = states + block.linear("mlp.fc2", torch.nn.functional.gelu(hidden))
    return tower.norm("norm", states, 1e-6)


def plain_attention_block(weights: Weights, states: Tensor, source: Tensor, allowed: Tensor | None) -> Tensor:
    """BERT's post-norm attention from `states` to `source`."""
    queries, keys, values = (
        weights.linear(f"self.{name}", inputs)
        for name, inputs in (("query", states), ("key", source), ("value", source))
    )
    attended = attention(queries, keys, values, MED_CONFIG["num_attention_heads"], allowed)
    return weights.norm("output.LayerNorm", weights.linear("output.dense", attended) + states, 1e-12)


def plain_scores(tensors: dict[str, Tensor], pixel_values: Tensor, tokens: Tensor) -> Tensor:
    """ImageReward in plain torch: pixels (B, 3, H, W), tokens (B, length) padded with 0 -> (B,)."""
    image_states = plain_image_states(tensors, pixel_values)
    tower = Weights(tensors, "blip.text_encoder.")
    positions = tower["embeddings.position_embeddings.weight"][: tokens.shape[1]]
    states = tower.norm("embeddings.LayerNorm", tower["embeddings.word_embeddings.weight"][tokens] + positions, 1e-12)
    for index in range(MED_CONFIG["num_hidden_layers"]):
        layer = tower.under(f"encoder.layer.{index}")
        states = plain_attention_block(layer.under("attention"), states, states, (tokens != 0)[:, None, None, :])
        states = plain_attention_block(layer.under("crossattention"), states, image_states, None)
        hidden = torch.nn.functional.gelu(layer.linear("intermediate.dense", states))
        states = layer.norm("output.LayerNorm", layer.linear("output.dense", hidden) + states, 1e-12)
    result = states[:, 0]
    for index in HEAD_LAYERS:
        result = Weights(tensors).linear(f"mlp.layers.{index}", result)
    return (result[:, 0] - MEAN) / STD


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_tensors(published_shapes(), seed=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]) -> Path:
    return write_image_reward(tmp_path_factory.mktemp("image_reward"), tensors)


@pytest.fixture(scope="module")
def reward(checkpoint: Path) -> ImageReward:
    return ImageReward.load(str(checkpoint), CPU, torch.float32)


@pytest.fixture(scope="module")
def exact(checkpoint: Path) -> ImageReward:
    """The reward in float64."""
    return ImageReward.load(str(checkpoint), CPU, torch.float64)


def images_of(batch: int, height: int = SIDE, width: int = SIDE) -> Tensor:
    """Smooth pictures (B, 3, H, W) within [0.1, 0.9], so that no resize reaches a clamp."""
    coarse = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    images = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return 0.1 + 0.8 * images


def normalised_pixels(images: Tensor) -> Tensor:
    """CLIP's mean and deviation, in numbers."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=images.dtype).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=images.dtype).view(3, 1, 1)
    return (images - mean) / std


def padded_tokens(*texts: list[str]) -> Tensor:
    """Words, [CLS] before and [SEP] after them, padded to 35: (B, 35)."""
    vocabulary = [*WORDS, "[DEC]", "[ENC]"]
    rows = [[vocabulary.index(word) for word in ["[CLS]", *text, "[SEP]"]] for text in texts]
    return torch.tensor([row + [0] * (35 - len(row)) for row in rows])


TOKENS = padded_tokens(["red", "circle"], ["a", "red", "circle", "##let", ",", "b"], [])


def test_scores_are_those_of_the_written_out_arithmetic(exact: ImageReward, tensors: dict[str, Tensor]) -> None:
    images = images_of(3).double()
    double = {name: tensor.double() for name, tensor in tensors.items()}
    expected = plain_scores(double, normalised_pixels(images), TOKENS)
    scores = exact.normalised(images, PROMPTS)
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)
    assert scores.std() > 0.1, "scores that differ by nothing would prove nothing"


def test_float32_scores_differ_by_rounding(reward: ImageReward, exact: ImageReward) -> None:
    images = images_of(3)
    scores = reward.score(images, PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact.score(images.double(), PROMPTS), rtol=1e-4, atol=1e-4)


def test_both_image_and_text_matter(exact: ImageReward) -> None:
    images = images_of(2).double()
    first, second = exact.normalised(images, ["red circle"] * 2)
    (other_text,) = exact.normalised(images[:1], ["a"])
    assert abs(first - second) > 1e-3
    assert abs(first - other_text) > 1e-3


def test_larger_images_are_resized_and_cropped_as_clip_does(exact: ImageReward, tensors: dict[str, Tensor]) -> None:
    images = images_of(3, 48, 96).double()
    resized = torch.nn.functional.interpolate(images, size=(SIDE, 2 * SIDE), mode="bicubic", antialias=True)
    pixels = normalised_pixels(resized[..., SIDE // 2 : SIDE // 2 + SIDE])
    expected = plain_scores({name: tensor.double() for name, tensor in tensors.items()}, pixels, TOKENS)
    torch.testing.assert_close(exact.normalised(images, PROMPTS), expected, rtol=1e-9, atol=1e-9)


def test_the_first_token_stays_and_only_spelled_out_additions_are_tokens_of_their_own(reward: ImageReward) -> None:
    tokens, attention_mask = reward._tokenise("a [ENC] red [DEC]")
    expected = padded_tokens(["a", "[ENC]", "red", "[DEC]"])[0]
    assert tokens.tolist() == expected.tolist()
    assert attention_mask.tolist() == (expected != 0).long().tolist()


def test_long_text_is_cut_at_35_tokens(reward: ImageReward) -> None:
    images, kept = images_of(1), "a " * 33
    assert reward._tokenise(kept + "b")[0].shape == (35,)
    assert torch.equal(reward.score(images, [kept + "b b"]), reward.score(images, [kept + "c"]))
    assert not torch.equal(reward.score(images, [kept]), reward.score(images, ["b " + kept]))


def test_gradient_equals_finite_differences_in_float64(exact: ImageReward) -> None:
    images = images_of(2, 40, 44).double().requires_grad_()
    (gradient,) = torch.autograd.grad(exact.normalised(images, PROMPTS[:2]).sum(), images)
    directions = torch.randn(3, *images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for direction in directions:
        step = 1e-5 * direction
        with torch.no_grad():
            rise = exact.normalised(images + step, PROMPTS[:2]) - exact.normalised(images - step, PROMPTS[:2])
        torch.testing.assert_close((gradient * direction).sum(), rise.sum() / 2e-5, rtol=1e-6, atol=1e-8)
    assert gradient.abs().max() > 1e-3


def test_scores_of_one_image_do_not_move_another(reward: ImageReward) -> None:
    images = images_of(2).requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score(images, PROMPTS[:2])[0], images)
    assert gradient[0].abs().sum() > 0
    assert not gradient[1].any()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in reward.network.parameters())


def test_a_pair_does_not_depend_on_its_batch(exact: ImageReward) -> None:
    images = images_of(3).double()
    together = exact.normalised(images, PROMPTS)
    alone = torch.cat([exact.normalised(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_prompts_are_tokenised_once(checkpoint: Path) -> None:
    reward = ImageReward.load(str(checkpoint), CPU, torch.float32)
    for _ in range(2):
        reward.score(images_of(3), PROMPTS)
    assert reward._tokens.cache_info().misses == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_towers_keep_a_float32_head(checkpoint: Path, reward: ImageReward, dtype: torch.dtype) -> None:
    half = ImageReward.load(str(checkpoint), CPU, dtype)
    scores = half.score(images_of(3), PROMPTS)
    assert half.network.visual_encoder.dtype == half.network.text_encoder.dtype == dtype
    assert {parameter.dtype for parameter in half.network.head.parameters()} == {torch.float32}
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, reward.score(images_of(3), PROMPTS), rtol=0.1, atol=0.1)


def test_the_mean_score_of_the_authors_is_zero(tensors: dict[str, Tensor], checkpoint: Path, tmp_path: Path) -> None:
    blind = {"mlp.layers.7.weight": torch.zeros(1, 16), "mlp.layers.7.bias": torch.tensor([MEAN + 2 * STD])}
    torch.save(tensors | blind, tmp_path / "ImageReward.pt")
    for name in ("med_config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    reward = ImageReward.load(str(tmp_path), CPU, torch.float32)
    assert reward.score(images_of(2), PROMPTS[:2]).tolist() == pytest.approx([2.0, 2.0], abs=1e-6)


def test_the_stated_size_is_that_of_the_published_network() -> None:
    vision = BlipVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224
    )
    text = BlipTextConfig(vocab_size=30524, num_attention_heads=12, encoder_hidden_size=1024, is_decoder=True)
    with torch.device("meta"):
        network = ImageRewardNetwork(vision, text)
    # In half precision.
    assert ImageReward.weights_mebibytes == round(sum(p.numel() for p in network.parameters()) * 2 / 2**20)


def copy_of(checkpoint: Path, directory: Path) -> Path:
    for file in checkpoint.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    return directory


@pytest.mark.parametrize("name", ["ImageReward.pt", "med_config.json"])
def test_a_missing_file_is_named_with_its_source_before_any_weights(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    directory = copy_of(checkpoint, tmp_path)
    (directory / name).unlink()
    with pytest.raises(ValueError, match=rf"needs {name}, .* `hf download THUDM/ImageReward {name} --local-dir"):
        ImageReward.check_path(str(directory))


def test_checking_reads_no_weights(checkpoint: Path, tmp_path: Path) -> None:
    directory = copy_of(checkpoint, tmp_path)
    (directory / "ImageReward.pt").write_bytes(b"cut off")
    ImageReward.check_path(str(directory))
    with pytest.raises(ValueError, match=r"ImageReward\.pt' cannot be read as weights"):
        ImageReward.load(str(directory), CPU, torch.float32)


def test_a_directory_without_a_tokenizer_takes_that_of_the_hub(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, cache = tmp_path / "directory", tmp_path / "cache"
    directory.mkdir()
    (copy_of(checkpoint, directory) / "vocab.txt").unlink()
    go_offline(monkeypatch, cache)
    with pytest.raises(ValueError, match=r"run `hf download google-bert/bert-base-uncased vocab.txt`"):
        ImageReward.check_path(str(directory))
    put(cache, TOKENIZER_HUB_ID, checkpoint / "vocab.txt")
    reward = ImageReward.load(str(directory), CPU, torch.float32)
    assert reward._tokenise("red circle")[0].tolist() == TOKENS[0].tolist()


def test_the_vocabulary_must_be_the_networks(checkpoint: Path, tmp_path: Path) -> None:
    directory = copy_of(checkpoint, tmp_path)
    (directory / "vocab.txt").write_text("\n".join(WORDS[:-1]))
    with pytest.raises(ValueError, match=rf"the tokenizer has {len(WORDS) + 1} tokens, med_config.json says"):
        ImageReward.load(str(directory), CPU, torch.float32)


def test_another_checkpoint_under_the_name_is_refused(
    tensors: dict[str, Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    directory = copy_of(checkpoint, tmp_path)
    without_head = {name: tensor for name, tensor in tensors.items() if not name.startswith("mlp.")}
    for content, message in (
        ({"model": tensors}, "holds no tensors by name, but a dict"),
        ({"weight": torch.zeros(1)}, r"no ImageReward checkpoint: it has no tensor 'blip.visual_encoder.pos_embed'"),
        (without_head, r"not the checkpoint this reward needs: .*head.0.weight"),
        (tensors | {"stranger": torch.zeros(1)}, r"not the checkpoint this reward needs: .*stranger"),
    ):
        torch.save(content, directory / "ImageReward.pt")
        with pytest.raises(ValueError, match=f"(?s){message}"):
            ImageReward.load(str(directory), CPU, torch.float32)


class Payload:
    """Code that a pickle would run."""

    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("the checkpoint has run code",))


def test_a_checkpoint_cannot_run_code(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = copy_of(checkpoint, tmp_path)
    torch.save({"weight": Payload()}, directory / "ImageReward.pt")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        ImageReward.load(str(directory), CPU, torch.float32)
    assert capsys.readouterr().out == ""


def test_a_damaged_configuration_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    directory = copy_of(checkpoint, tmp_path)
    (directory / "med_config.json").write_text(json.dumps({"hidden_size": 48}))
    with pytest.raises(ValueError, match=r"med_config\.json' is no configuration of BLIP's text tower.*hidden_act"):
        ImageReward.load(str(directory), CPU, torch.float32)


def test_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        ImageReward.check_path(str(tmp_path / "missing"))


def test_the_hub_id_works_from_the_cache_and_names_what_it_lacks(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: ImageReward
) -> None:
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"run `hf download THUDM/ImageReward ImageReward.pt`"):
        ImageReward.check_path(HUB_ID)
    for name in ("ImageReward.pt", "med_config.json"):
        put(tmp_path, HUB_ID, checkpoint / name)
    with pytest.raises(ValueError, match=r"run `hf download google-bert/bert-base-uncased vocab.txt`"):
        ImageReward.check_path(HUB_ID)
    put(tmp_path, TOKENIZER_HUB_ID, checkpoint / "vocab.txt")
    cached = load_reward("image_reward", HUB_ID, CPU, torch.float32)
    assert torch.equal(cached.score(images_of(3), PROMPTS), reward.score(images_of(3), PROMPTS))


def test_a_file_of_weights_may_have_any_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: ImageReward
) -> None:
    directory, cache = tmp_path / "directory", tmp_path / "cache"
    directory.mkdir()
    file = directory / "mine.pt"
    (copy_of(checkpoint, directory) / "ImageReward.pt").rename(file)
    go_offline(monkeypatch, cache)
    beside = load_reward("image_reward", str(file), CPU, torch.float32)
    assert torch.equal(beside.score(images_of(3), PROMPTS), reward.score(images_of(3), PROMPTS))
    for name in ("med_config.json", "vocab.txt"):
        (directory / name).unlink()
    with pytest.raises(ValueError, match=r"hf download THUDM/ImageReward med_config.json") as caught:
        ImageReward.check_path(str(file))
    assert "hf download google-bert/bert-base-uncased vocab.txt" in str(caught.value).splitlines()[1]
    put(cache, HUB_ID, checkpoint / "med_config.json")
    put(cache, TOKENIZER_HUB_ID, checkpoint / "vocab.txt")
    published = load_reward("image_reward", str(file), CPU, torch.float32)
    assert torch.equal(published.score(images_of(3), PROMPTS), reward.score(images_of(3), PROMPTS))
