"""A small decoder for predicted images: where it is used, which one is refused, and how its order is compared."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from settings import miniature_settings

from benchmarks.step_decoder import measure
from pipeline.config import RunSettings
from pipeline.decoder import check_step_decoder
from pipeline.preflight import check_run
from pipeline.reward_models import RewardModels

pytest_plugins = ["model_fixtures"]

PROMPTS = ["a red circle", "a small blue star", "a white square"]
PREDICTED, FINISHED = 301, 0


def write_step_decoder(directory: Path, blocks: int = 2, **changes: Any) -> Path:
    """An AutoencoderTiny with random weights; two blocks make pictures twice as large as latents."""
    torch.manual_seed(3)
    widths, counts = (4,) * blocks, (1,) * blocks
    sizes = {"encoder_block_out_channels": widths, "decoder_block_out_channels": widths}
    AutoencoderTiny(**sizes, num_encoder_blocks=counts, num_decoder_blocks=counts, **changes).save_pretrained(directory)
    return directory


@pytest.fixture
def with_small(miniature_model: Path, miniature_clip: Path, tmp_path: Path) -> RunSettings:
    return miniature_settings(
        miniature_model,
        reward={"name": "clip", "path": str(miniature_clip)},
        reward_actors={"step_decoder": str(write_step_decoder(tmp_path / "tiny"))},
    )


@pytest.fixture
def exact(with_small: RunSettings) -> RunSettings:
    pool = with_small.reward_actors.model_copy(update={"step_decoder": None})
    return with_small.model_copy(update={"reward_actors": pool})


def test_it_decodes_what_is_predicted_and_the_own_decoder_what_is_finished(with_small, exact):
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    small, own = RewardModels(with_small), RewardModels(exact)
    assert torch.equal(small.decoder.decode(latents), own.decoder.decode(latents))
    predicted = small.decoder.decode(latents, PREDICTED)
    assert predicted.shape == (3, 3, 16, 16) and 0 <= predicted.min() < predicted.max() <= 1
    for scorers in ((small.scorer, own.scorer), (small.reward_set, own.reward_set)):
        scores = [getattr(one, "score", getattr(one, "score_each", None)) for one in scorers]
        assert torch.equal(*(score(latents, PROMPTS, FINISHED) for score in scores))
        assert not torch.equal(*(score(latents, PROMPTS, PREDICTED) for score in scores))


def test_rewards_are_differentiated_through_it(with_small):
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    scorer = RewardModels(with_small).scorer
    scores, gradients = scorer.score_with_gradient(latents, PROMPTS, PREDICTED)
    assert torch.equal(scores, scorer.score(latents, PROMPTS, PREDICTED))
    length = gradients.flatten(1).norm(dim=1)[:, None, None, None]
    assert (scorer.score(latents + 0.01 * gradients / length, PROMPTS, PREDICTED) > scores).all()


def test_it_is_checked_before_a_run_begins(with_small, miniature_model, tmp_path):
    assert check_run(with_small) == 0
    model = str(miniature_model)
    with pytest.raises(ValueError, match=r"step_decoder '.*nowhere' is neither a directory nor a hub id"):
        check_step_decoder(str(tmp_path / "nowhere"), model)
    with pytest.raises(ValueError, match=r"is of class AutoencoderKL; an AutoencoderTiny is needed"):
        check_step_decoder(str(miniature_model / "vae"), model)
    larger = write_step_decoder(tmp_path / "larger", blocks=3)
    with pytest.raises(ValueError, match=r"takes 4 channels and makes pictures 4 times .* has 4 and 2; give one"):
        check_step_decoder(str(larger), model)
    other = write_step_decoder(tmp_path / "other", latent_channels=16)
    with pytest.raises(ValueError, match=r"takes 16 channels"):
        check_run(with_small.model_copy(update={"reward_actors": pool_with(with_small, other)}))


def pool_with(settings: RunSettings, step_decoder: Path) -> Any:
    return settings.reward_actors.model_copy(update={"step_decoder": str(step_decoder)})


def test_orders_are_compared_at_every_trained_step(with_small, exact):
    found = measure(with_small, iterations=2)
    trained = len(with_small.method.trained_steps)
    assert len(found["by_timestep"]) == trained and all(seconds > 0 for seconds in found["seconds"].values())
    for row in found["by_timestep"].values():
        assert row["pairs"] == 2 * with_small.rollout.trajectories
        assert 0 <= row["agree"]["low"] <= row["agree"]["mean"] <= row["agree"]["high"] <= 1
    with pytest.raises(ValueError, match=r"name the small decoder: reward_actors.step_decoder="):
        measure(exact, iterations=1)
