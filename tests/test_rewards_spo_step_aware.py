"""The step-aware reward on a small checkpoint under the published names, against its arithmetic in plain torch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hub_cache import go_offline, put
from plain_torch import Weights, attention
from step_aware_checkpoint import (
    DEPTH,
    HEADS,
    SIDE,
    TOKENIZER,
    WIDTH,
    config,
    published_tensors,
    write_checkpoint,
)
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.rewards import load_reward
from pipeline.rewards.spo_step_aware import CONFIG_HUB_ID, HUB_ID, PROCESSOR_HUB_ID, WEIGHTS, SpoStepAware
from pipeline.rewards.step_aware_clip import StepAwareClip

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a small blue star left of a green ring", "a square"]
TIMES = torch.tensor([951, 0, 301])
LAYER = "model.vision_model.encoder.layers"


def plain_time_embedding(weights: Weights, timesteps: Tensor) -> Tensor:
    """256 waves, all cosines before all sines, through Linear, SiLU, Linear: (B,) -> (B, width)."""
    frequencies = [10_000 ** -(index / 128) for index in range(128)]
    waves = [
        [wave(time * frequency) for wave in (math.cos, math.sin) for frequency in frequencies]
        for time in timesteps.tolist()
    ]
    hidden = weights.linear("t_embedder.mlp.0", torch.tensor(waves, dtype=torch.float64))
    return weights.linear("t_embedder.mlp.2", hidden * hidden.sigmoid())


def plain_attention(layer: Weights, states: Tensor, allowed: Tensor | None = None) -> Tensor:
    queries, keys, values = (layer.linear(f"self_attn.{name}_proj", states) for name in "qkv")
    return layer.linear("self_attn.out_proj", attention(queries, keys, values, HEADS, allowed))


def plain_mlp(layer: Weights, states: Tensor) -> Tensor:
    return layer.linear("mlp.fc2", torch.nn.functional.gelu(layer.linear("mlp.fc1", states)))


def plain_image_embeddings(weights: Weights, pixel_values: Tensor, timesteps: Tensor) -> Tensor:
    """The image tower with adaptive norms, (B, 3, H, W) and times (B,) -> (B, D)."""
    condition = plain_time_embedding(weights, timesteps)
    condition = (condition * condition.sigmoid())[:, None]  # the SiLU before every modulation
    tower = weights.under("vision_model")
    patches = tower.patches("embeddings.patch_embedding", pixel_values)
    classes = tower["embeddings.class_embedding"].expand(len(patches), 1, -1)
    states = torch.cat([classes, patches], dim=1) + tower["embeddings.position_embedding.weight"]
    states = tower.norm("pre_layrnorm", states, 1e-5)
    for index in range(DEPTH):
        layer = tower.under(f"encoder.layers.{index}")
        modulation = layer.linear("adaLN_modulation.1", condition).split(WIDTH, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        states = states + gate * plain_attention(layer, layer.norm("layer_norm1", states, 1e-5) * (1 + scale) + shift)
        hidden = layer.norm("layer_norm2", states, 1e-5) * (1 + mlp_scale) + mlp_shift
        states = states + mlp_gate * plain_mlp(layer, hidden)
    shift, scale = tower.linear("adaLN_modulation.1", condition)[:, 0].split(WIDTH, dim=-1)
    pooled = tower.norm("post_layernorm", states[:, 0], 1e-5) * (1 + scale) + shift
    return weights.linear("visual_projection", pooled)


def plain_text_embeddings(weights: Weights, prompts: list[str]) -> Tensor:
    """CLIP's causal text tower, read at the end token: B prompts -> (B, D)."""
    tower, rows = weights.under("text_model"), []
    for prompt in prompts:
        tokens = TOKENIZER(prompt, return_tensors="pt").input_ids
        length = tokens.shape[1]
        positions = tower["embeddings.position_embedding.weight"][:length]
        states = tower["embeddings.token_embedding.weight"][tokens] + positions
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        for index in range(DEPTH):
            layer = tower.under(f"encoder.layers.{index}")
            states = states + plain_attention(layer, layer.norm("layer_norm1", states, 1e-5), causal)
            states = states + plain_mlp(layer, layer.norm("layer_norm2", states, 1e-5))
        rows.append(tower.norm("final_layer_norm", states[0, -1], 1e-5))
    return weights.linear("text_projection", torch.stack(rows))


def plain_scores(tensors: dict[str, Tensor], pixel_values: Tensor, prompts: list[str], timesteps: Tensor) -> Tensor:
    weights = Weights({name: tensor.double() for name, tensor in tensors.items()}, "model.")
    images = plain_image_embeddings(weights, pixel_values, timesteps)
    texts = plain_text_embeddings(weights, prompts)
    cosines = (images * texts).sum(dim=1) / (images.norm(dim=1) * texts.norm(dim=1))
    return weights["logit_scale"].exp() * cosines


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return published_tensors()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("step_aware"), tensors)


@pytest.fixture(scope="module")
def reward(checkpoint: Path) -> SpoStepAware:
    return SpoStepAware.load(str(checkpoint), CPU, torch.float32)


@pytest.fixture(scope="module")
def exact(checkpoint: Path) -> SpoStepAware:
    """The reward in float64."""
    return SpoStepAware.load(str(checkpoint), CPU, torch.float64)


def images_of(batch: int, height: int = SIDE, width: int = SIDE) -> Tensor:
    """Pictures (B, 3, H, W) within [0.1, 0.9], with detail that antialiasing would remove."""
    coarse = torch.rand(batch, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    return 0.1 + 0.8 * torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def normalised_pixels(images: Tensor) -> Tensor:
    """CLIP's mean and deviation, in numbers."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=images.dtype).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=images.dtype).view(3, 1, 1)
    return (images - mean) / std


def test_scores_are_those_of_the_written_out_arithmetic(exact: SpoStepAware, tensors: dict[str, Tensor]) -> None:
    images = images_of(3).double()
    scores = exact.logits_at(images, PROMPTS, TIMES)
    expected = plain_scores(tensors, normalised_pixels(images), PROMPTS, TIMES)
    # The waves are computed in float32, as the authors' code has them: at time 951 that rounds the angle to 6e-5.
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-4)
    assert scores.std() > 1, "scores that differ by nothing would prove nothing"


def test_at_time_zero_every_cosine_is_one_and_every_sine_zero(exact: SpoStepAware, tensors: dict[str, Tensor]) -> None:
    images = images_of(3).double()
    expected = plain_scores(tensors, normalised_pixels(images), PROMPTS, torch.zeros(3))
    torch.testing.assert_close(exact.logits_at(images, PROMPTS, torch.zeros(3)), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact.logits(images, PROMPTS), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact.score(images, PROMPTS), expected.float())


def test_float32_scores_differ_by_rounding(reward: SpoStepAware, exact: SpoStepAware) -> None:
    images = images_of(3)
    scores = reward.score_at(images, PROMPTS, TIMES)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact.score_at(images.double(), PROMPTS, TIMES), rtol=1e-4, atol=1e-3)


def test_the_time_matters_and_belongs_to_its_own_sample(exact: SpoStepAware) -> None:
    images = images_of(1).double().expand(4, -1, -1, -1)
    scores = exact.logits_at(images, PROMPTS[:1] * 4, torch.tensor([0, 1, 500, 951]))
    assert (scores.sort().values.diff() > 1e-3).all()
    (alone,) = exact.logits_at(images[:1], PROMPTS[:1], torch.tensor([500]))
    torch.testing.assert_close(scores[2], alone, rtol=1e-12, atol=1e-12)


def test_larger_images_are_resized_without_antialiasing(exact: SpoStepAware, tensors: dict[str, Tensor]) -> None:
    images = images_of(3, 96, 128).double()
    resized = torch.nn.functional.interpolate(images, size=(SIDE, 43), mode="bicubic", align_corners=False).clamp(0, 1)
    expected = plain_scores(tensors, normalised_pixels(resized[..., 5:37]), PROMPTS, torch.zeros(3))
    torch.testing.assert_close(exact.logits_at(images, PROMPTS, torch.zeros(3)), expected, rtol=1e-9, atol=1e-9)
    smoothed = torch.nn.functional.interpolate(images, size=(SIDE, 43), mode="bicubic", antialias=True)
    different = plain_scores(tensors, normalised_pixels(smoothed[..., 5:37]), PROMPTS, torch.zeros(3))
    assert (different - expected).abs().max() > 1e-2, "the two resizes must differ for this test to tell them apart"


def reward_with(tensors: dict[str, Tensor], directory: Path, **changes: Tensor) -> SpoStepAware:
    """The float64 reward of `tensors` with those replaced whose names end with a key of `changes`."""
    replaced = dict(tensors)
    for ending, value in changes.items():
        names = [name for name in tensors if name.endswith(ending.replace("__", "."))]
        assert names, ending
        replaced |= {name: value.expand(tensors[name].shape).clone() for name in names}
    return SpoStepAware.load(str(write_checkpoint(directory, replaced)), CPU, torch.float64)


def test_closed_gates_leave_the_class_token_alone(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """With every modulation zero no layer adds anything: image and time cannot matter, whatever the other weights."""
    zero = torch.zeros(1)
    reward = reward_with(tensors, tmp_path, adaLN_modulation__1__weight=zero, adaLN_modulation__1__bias=zero)
    images = images_of(3).double().requires_grad_()
    scores = reward.logits_at(images, PROMPTS[:1] * 3, TIMES)
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert not gradient.any()

    weights = Weights({name: tensor.double() for name, tensor in tensors.items()}, "model.")
    tower = weights.under("vision_model")
    token = tower["embeddings.class_embedding"] + tower["embeddings.position_embedding.weight"][0]
    pooled = tower.norm("post_layernorm", tower.norm("pre_layrnorm", token, 1e-5), 1e-5)
    image, text = weights.linear("visual_projection", pooled), plain_text_embeddings(weights, PROMPTS[:1])[0]
    expected = weights["logit_scale"].exp() * torch.nn.functional.cosine_similarity(image, text, dim=0)
    torch.testing.assert_close(scores, expected.expand(3), rtol=1e-9, atol=1e-9)


def test_open_gates_without_shift_and_scale_are_plain_clip(
    tensors: dict[str, Tensor], tmp_path: Path, checkpoint: Path
) -> None:
    shift, scale, gate = torch.zeros(WIDTH), torch.zeros(WIDTH), torch.ones(WIDTH)
    open_gates = {f"{LAYER}.{i}.adaLN_modulation.1.bias": torch.cat([shift, scale, gate] * 2) for i in range(DEPTH)}
    final = {"vision_model__adaLN_modulation__1__bias": torch.zeros(1)}
    reward = reward_with(tensors | open_gates, tmp_path, adaLN_modulation__1__weight=torch.zeros(1), **final)

    clip = CLIPModel(config()).double().eval()
    names = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    clip.load_state_dict({name: names[name] for name in clip.state_dict()})
    images = images_of(3).double()
    tokens = TOKENIZER(PROMPTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = clip(**tokens, pixel_values=normalised_pixels(images)).logits_per_image.diagonal()
    torch.testing.assert_close(reward.logits_at(images, PROMPTS, TIMES), expected, rtol=1e-9, atol=1e-9)


def test_a_time_embedding_that_is_constant_makes_the_time_no_matter(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    reward = reward_with(tensors, tmp_path, t_embedder__mlp__0__weight=torch.zeros(1))
    images = images_of(3).double()
    torch.testing.assert_close(
        reward.logits_at(images, PROMPTS, TIMES),
        reward.logits_at(images, PROMPTS, torch.zeros(3)),
        rtol=1e-12,
        atol=1e-12,
    )


def test_gradient_equals_finite_differences_in_float64(exact: SpoStepAware) -> None:
    images = images_of(2, 40, 44).double().requires_grad_()
    arguments = (PROMPTS[:2], TIMES[[0, 2]])
    (gradient,) = torch.autograd.grad(exact.logits_at(images, *arguments).sum(), images)
    directions = torch.randn(3, *images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for direction in directions:
        step = 1e-5 * direction
        with torch.no_grad():
            rise = exact.logits_at(images + step, *arguments) - exact.logits_at(images - step, *arguments)
        torch.testing.assert_close((gradient * direction).sum(), rise.sum() / 2e-5, rtol=1e-6, atol=1e-7)
    assert gradient.abs().max() > 1e-3


def test_scores_of_one_image_do_not_move_another(reward: SpoStepAware) -> None:
    images = images_of(2).requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score_at(images, PROMPTS[:2], TIMES[:2])[0], images)
    assert gradient[0].abs().sum() > 0
    assert not gradient[1].any()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in reward.model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_towers_and_not_the_scale(
    checkpoint: Path, reward: SpoStepAware, dtype: torch.dtype
) -> None:
    half = SpoStepAware.load(str(checkpoint), CPU, dtype)
    assert half.model.vision_model.dtype == half.model.text_model.dtype == dtype
    assert half.model.logit_scale.exp().item() == pytest.approx(100, rel=1e-3)
    scores = half.score_at(images_of(3), PROMPTS, TIMES)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, reward.score_at(images_of(3), PROMPTS, TIMES), rtol=0.05, atol=2)


def test_the_stated_size_is_that_of_the_published_network() -> None:
    tower = {"num_attention_heads": 16}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14}
    published = CLIPConfig(text_config=text | tower, vision_config=vision | tower, projection_dim=1024)
    with torch.device("meta"):
        model = StepAwareClip(published)
    # In half precision.
    assert SpoStepAware.weights_mebibytes == round(sum(p.numel() for p in model.parameters()) * 2 / 2**20)


def test_a_directory_without_the_weights_is_told_where_to_fetch_them(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    (write_checkpoint(tmp_path, tensors) / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=rf"does not hold: fetch it by `hf download {HUB_ID} {WEIGHTS} --local-dir"):
        SpoStepAware.check_path(str(tmp_path))
    with pytest.raises(ValueError, match="does not exist"):
        SpoStepAware.check_path(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("config.json", CONFIG_HUB_ID),
        ("tokenizer.json", PROCESSOR_HUB_ID),
        ("preprocessor_config.json", PROCESSOR_HUB_ID),
    ],
)
def test_what_the_directory_lacks_comes_from_the_hub_where_it_is_published(
    tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hub_id: str
) -> None:
    directory, cache, elsewhere = (tmp_path / part for part in ("directory", "cache", "elsewhere"))
    for folder in (directory, elsewhere):
        folder.mkdir()
    (write_checkpoint(directory, tensors) / name).rename(elsewhere / name)
    go_offline(monkeypatch, cache)
    with pytest.raises(ValueError, match=rf"needs .*{name}.*run `hf download {hub_id} {name}`"):
        SpoStepAware.check_path(str(directory))
    put(cache, hub_id, elsewhere / name)
    SpoStepAware.check_path(str(directory))


def test_plain_clip_weights_under_the_name_are_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    plain = {name: tensor for name, tensor in tensors.items() if "adaLN" not in name}
    with pytest.raises(ValueError, match=r"(?s)not the checkpoint this reward needs: .*adaLN_modulation"):
        SpoStepAware.load(str(write_checkpoint(tmp_path, plain)), CPU, torch.float32)


def test_preprocessing_of_another_size_is_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tensors)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"preprocessing gives \(16, 16\) pixels, the vision tower takes \(32, 32\)"):
        SpoStepAware.load(str(tmp_path), CPU, torch.float32)


def test_the_hub_id_works_from_the_cache_and_names_what_it_lacks(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: SpoStepAware
) -> None:
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=rf"run `hf download {HUB_ID} {WEIGHTS}`"):
        SpoStepAware.check_path(HUB_ID)
    put(tmp_path, HUB_ID, checkpoint / WEIGHTS)
    put(tmp_path, CONFIG_HUB_ID, checkpoint / "config.json")
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        put(tmp_path, PROCESSOR_HUB_ID, checkpoint / name)
    cached = load_reward("spo_step_aware", HUB_ID, CPU, torch.float32)
    assert torch.equal(cached.score(images_of(3), PROMPTS), reward.score(images_of(3), PROMPTS))


def test_a_file_of_weights_may_have_any_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: SpoStepAware
) -> None:
    directory, cache = tmp_path / "directory", tmp_path / "cache"
    directory.mkdir()
    for file in checkpoint.iterdir():
        (directory / file.name.replace(WEIGHTS, "mine.bin")).write_bytes(file.read_bytes())
    go_offline(monkeypatch, cache)
    beside = load_reward("spo_step_aware", str(directory / "mine.bin"), CPU, torch.float32)
    assert torch.equal(beside.score(images_of(3), PROMPTS), reward.score(images_of(3), PROMPTS))
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        (directory / name).unlink()
    with pytest.raises(ValueError, match=rf"hf download {CONFIG_HUB_ID} config.json") as caught:
        SpoStepAware.check_path(str(directory / "mine.bin"))
    assert len(str(caught.value).splitlines()) == 3
