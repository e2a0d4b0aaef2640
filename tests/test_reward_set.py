"""Several rewards at once: scores, gradients, the sum a rollout follows, and the columns it leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from in_process import load_reward_set, roll_out_several
from policies import make_policy
from settings import miniature_settings
from torch import Tensor

from actors.reward import RewardActor
from pipeline.config import RunSettings
from pipeline.methods import create_method
from pipeline.prompts import SampleBatch
from pipeline.reward_components import component_column, component_moments, with_components
from pipeline.reward_set import InProcessRewardSet, RewardSet, WeightedScorer
from pipeline.rewards.base import RewardError, StepAwareReward
from pipeline.rewards.clip import ClipReward
from pipeline.rewards.jpeg import JpegCompressibility
from pipeline.scoring import LatentScorer
from pipeline.weighting import Normalisation

pytest_plugins = ["model_fixtures"]

PROMPTS = ["a red circle", "a small blue star", "a large green ring", "a purple cross", "a white square"]
TIME = 321


@pytest.fixture(scope="module")
def run_settings(miniature_model: Path, miniature_clip: Path) -> RunSettings:
    """A differentiable reward, and one of another unit without a gradient."""
    clip = {"name": "clip", "path": str(miniature_clip)}
    return miniature_settings(
        miniature_model,
        reward=[
            clip | {"scale": 0.5},
            {"name": "jpeg_compressibility", "weight": 2.0, "scale": 0.25},
        ],
        method={"guidance": {}},
        reward_actors={"decode_chunk": 2},
    )


@pytest.fixture(scope="module")
def rewards(run_settings: RunSettings) -> RewardSet:
    return load_reward_set(run_settings).rewards


class Timed(StepAwareReward):
    """The time itself, plus the mean pixel, which leads the gradient back."""

    name, differentiable = "timed", True

    @classmethod
    def load(cls, path: Any, device: Any, dtype: Any) -> Timed:
        return cls()

    def score_at(self, images: Tensor, prompts: Any, timesteps: Tensor) -> Tensor:
        return images.mean(dim=(1, 2, 3)) + timesteps


def test_every_reward_is_told_the_diffusion_time(rewards: RewardSet, latents: Tensor) -> None:
    timed = RewardSet(rewards.decoder, [rewards.rewards[1], Timed()])
    late, finished = (timed.score_each(latents, PROMPTS, time) for time in (TIME, 0))
    torch.testing.assert_close(late - finished, torch.tensor([[0.0], [TIME]]).expand(2, 5), rtol=0, atol=1e-3)
    sums, _ = timed.score_sum_with_gradient(latents, PROMPTS, TIME, (1.0, 2.0))
    torch.testing.assert_close(sums, 2 * late[1], rtol=1e-5, atol=1e-3)


@pytest.fixture
def latents() -> Tensor:
    """(5, 4, 8, 8)."""
    return torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def test_every_row_is_that_rewards_own_score(rewards: RewardSet, latents: Tensor) -> None:
    scores = rewards.score_each(latents, PROMPTS, TIME)
    assert scores.shape == (2, 5) and scores.dtype == torch.float32
    for row, reward in zip(scores, rewards.rewards, strict=True):
        assert torch.equal(row, LatentScorer(rewards.decoder, reward).score(latents, PROMPTS, TIME))


def test_all_rewards_share_one_decoding(rewards: RewardSet, latents: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = rewards.decoder.decode
    monkeypatch.setattr(rewards.decoder, "decode", lambda x, time: decoded.append(len(x)) or decode(x, time))
    rewards.score_each(latents, PROMPTS, TIME)
    rewards.score_sum_with_gradient(latents, PROMPTS, TIME, (1.0, 1.0))
    assert decoded == [2, 2, 1] * 2


def test_the_gradient_is_that_of_the_differentiable_part(rewards: RewardSet, latents: Tensor) -> None:
    clip, jpeg = rewards.rewards
    assert clip.differentiable and not jpeg.differentiable
    scores, gradients = LatentScorer(rewards.decoder, clip).score_with_gradient(latents, PROMPTS, TIME)
    sums, sum_gradients = rewards.score_sum_with_gradient(latents, PROMPTS, TIME, (-3.0, 7.0))
    assert torch.equal(sums, -3 * scores)
    torch.testing.assert_close(sum_gradients, -3 * gradients, rtol=1e-4, atol=1e-6)
    twice = RewardSet(rewards.decoder, [clip, jpeg, clip])
    sums, sum_gradients = twice.score_sum_with_gradient(latents, PROMPTS, TIME, (2.0, 7.0, 0.5))
    torch.testing.assert_close(sums, 2.5 * scores)
    torch.testing.assert_close(sum_gradients, 2.5 * gradients, rtol=1e-4, atol=1e-6)
    assert gradients.flatten(1).norm(dim=1).min() > 0


def test_a_set_of_one_scores_and_guides_as_the_reward_alone(rewards: RewardSet, latents: Tensor) -> None:
    alone = LatentScorer(rewards.decoder, rewards.rewards[0])
    only = RewardSet(rewards.decoder, rewards.rewards[:1])
    assert torch.equal(only.score_each(latents, PROMPTS, TIME)[0], alone.score(latents, PROMPTS, TIME))
    for found, expected in zip(
        only.score_sum_with_gradient(latents, PROMPTS, TIME, (1.0,)),
        alone.score_with_gradient(latents, PROMPTS, TIME),
        strict=True,
    ):
        assert torch.equal(found, expected)


class Poisoned(JpegCompressibility):
    name, differentiable = "poisoned", True

    def score(self, images: Tensor, prompts: Any) -> Tensor:
        return images.mean(dim=(1, 2, 3)) * torch.nan


def test_a_reward_that_breaks_its_promise_is_named(rewards: RewardSet, latents: Tensor) -> None:
    broken = RewardSet(rewards.decoder, [*rewards.rewards, Poisoned(torch.device("cpu"))])
    with pytest.raises(RewardError, match="reward 'poisoned' returned nan for the prompt 'a red circle'"):
        broken.score_each(latents, PROMPTS, TIME)
    with pytest.raises(RewardError, match="reward 'poisoned' returned nan for the prompt 'a red circle'"):
        broken.score_sum_with_gradient(latents, PROMPTS, TIME, (1.0, 1.0, 1.0))


def test_the_scorer_of_a_batch_gives_the_whole_sum_and_the_gradient_of_a_part(
    rewards: RewardSet, latents: Tensor
) -> None:
    normalisation = Normalisation((1.0, 2.0), (20.0, -1.0), (0.5, 0.25))
    scorer = WeightedScorer(InProcessRewardSet(rewards), normalisation)
    raw = rewards.score_each(latents, PROMPTS, TIME)
    sums = asyncio.run(scorer.score(latents, PROMPTS, TIME))
    torch.testing.assert_close(sums, 2 * (raw[0] - 20) + 8 * (raw[1] + 1), rtol=1e-5, atol=1e-5)
    assert torch.equal(scorer.last_scores, raw)
    _, gradients = asyncio.run(scorer.score_with_gradient(latents, PROMPTS, TIME))
    assert torch.equal(gradients, rewards.score_sum_with_gradient(latents, PROMPTS, TIME, (2.0, 8.0))[1])


def test_a_reward_actor_answers_as_the_set_in_this_process(
    run_settings: RunSettings, rewards: RewardSet, latents: Tensor
) -> None:
    threads = torch.get_num_threads()
    actor = RewardActor(run_settings)
    torch.set_num_threads(threads)
    assert np.array_equal(
        actor.score_each(latents.numpy(), PROMPTS, TIME), rewards.score_each(latents, PROMPTS, TIME).numpy()
    )
    found = actor.score_sum_with_gradient(latents.numpy(), PROMPTS, TIME, [2.0, 8.0])
    expected = rewards.score_sum_with_gradient(latents, PROMPTS, TIME, (2.0, 8.0))
    assert all(np.array_equal(mine, theirs.numpy()) for mine, theirs in zip(found, expected, strict=True))
    scores = actor.evaluate(latents.numpy(), PROMPTS, list(run_settings.rewards)).scores
    np.testing.assert_allclose(scores.T, rewards.score_each(latents, PROMPTS, TIME).numpy(), rtol=1e-5)


# A rollout


@pytest.fixture(scope="module")
def table(run_settings: RunSettings) -> pa.Table:
    policy = make_policy(run_settings, adapter_scale=0.2)
    policy.freeze()
    normalisation = Normalisation((1.0, 2.0), (0.0, 0.0), (0.5, 0.25))
    return roll_out_several(policy, load_reward_set(run_settings), normalisation, run_settings, iteration=0)


def test_the_records_hold_the_sum_and_the_raw_scores_of_the_finished_images(
    table: pa.Table, run_settings: RunSettings
) -> None:
    clip, jpeg = (
        table[component_column("final_reward", label)].to_numpy() for label in run_settings.trained_reward_labels
    )
    assert table.schema.names[-2:] == ["final_reward/clip", "final_reward/jpeg_compressibility"]
    np.testing.assert_allclose(table["final_reward"].to_numpy(), 2 * clip + 8 * jpeg, rtol=1e-5)
    assert len({*zip(table["sample"].to_pylist(), clip, strict=True)}) == run_settings.rollout.trajectories
    assert (jpeg < 0).all()


def test_a_guided_winner_is_accepted_by_the_whole_sum(run_settings: RunSettings, miniature_clip: Path) -> None:
    """The move follows the first reward; a second one that the move harms far more must undo it."""
    policy = make_policy(run_settings, adapter_scale=0.2)
    policy.freeze()
    rewards = load_reward_set(run_settings).rewards
    clip = rewards.rewards[0]

    class Opposite(ClipReward):
        name, differentiable = "opposite", False

        def __init__(self) -> None:
            pass

        def score(self, images: Tensor, prompts: Any) -> Tensor:
            return -clip.score(images, prompts)

    opposed = InProcessRewardSet(RewardSet(rewards.decoder, [clip, Opposite()]))
    accepted = []
    for weight in (0.01, 100.0):
        normalisation = Normalisation((1.0, weight), (0.0, 0.0), (0.01, 0.01))
        table = roll_out_several(policy, opposed, normalisation, run_settings, iteration=0)
        accepted.append(np.mean(table["guidance_accepted"].to_numpy()))
    assert accepted[0] > 0.7 and accepted[1] < 0.3


def test_scores_that_are_not_of_the_finished_images_are_refused(table: pa.Table, run_settings: RunSettings) -> None:
    samples = tuple(range(run_settings.rollout.trajectories))
    batch = SampleBatch(0, samples, ("a red circle",) * len(samples))
    normalisation = Normalisation((1.0, 2.0), (0.0, 0.0), (0.5, 0.25))
    with pytest.raises(AssertionError, match="final_reward is not of the images that were scored last"):
        with_components(table, batch, torch.zeros(2, len(samples)), ("final_reward",), ("a", "b"), normalisation)


@pytest.mark.parametrize(
    ("method", "columns"),
    [
        ({"name": "d3po"}, ("winner_reward", "loser_reward")),
        ({"name": "ddpo"}, ("reward",)),
        ({"name": "spo", "plain_steps": 2, "pool_size": 3}, ("final_reward",)),
    ],
)
def test_every_method_records_the_rewards_of_its_finished_images(
    run_settings: RunSettings, rewards: RewardSet, method: dict[str, Any], columns: tuple[str, ...]
) -> None:
    values = run_settings.model_dump(exclude={"method"}) | {"method": method}
    settings = RunSettings.model_validate(values)
    policy = make_policy(settings, adapter_scale=0.2)
    policy.freeze()
    normalisation = Normalisation((1.0, 2.0), (1.0, -3.0), (0.5, 0.25))
    table = roll_out_several(policy, InProcessRewardSet(rewards), normalisation, settings, iteration=0)
    labels = settings.trained_reward_labels
    names = [component_column(column, label) for column in columns for label in labels]
    assert settings.method.reward_columns == columns and table.schema.names[-len(names) :] == names
    for column in columns:
        raw = np.stack([table[component_column(column, label)].to_numpy() for label in labels])
        assert np.array_equal(table[column].to_numpy(), normalisation.combine(raw))
        assert len(set(raw[0])) > 1
    count, means, _ = vars(component_moments(table, columns, labels)).values()
    assert count == len(columns) * len(table)
    metrics = create_method(settings).rollout_metrics(table)
    assert metrics["reward"] == pytest.approx(2 * (means[0] - 1) + 8 * (means[1] + 3), rel=1e-5)


def test_images_with_one_and_the_same_sum_are_told_apart() -> None:
    """Two samples of two trajectories: the first ties with other scores, the second is won by the later one."""
    scores = torch.tensor([[1.0, 2.0, 3.0, 5.0], [4.0, 0.0, 2.0, 1.0]])
    normalisation = Normalisation((1.0, 1.0), (0.0, 0.0), (1.0, 1.0))
    table = pa.table(
        {
            "sample": [7, 6, 7],
            "winner_reward": pa.array([6.0, 5.0, 6.0], pa.float32()),
            "loser_reward": pa.array([2.0, 5.0, 2.0], pa.float32()),
        }
    )
    batch = SampleBatch(0, (6, 7), ("a", "b"))
    found = with_components(table, batch, scores, ("winner_reward", "loser_reward"), ("x", "y"), normalisation)
    assert {name: found[name].to_pylist() for name in found.schema.names[3:]} == {
        "winner_reward/x": [5.0, 1.0, 5.0],
        "winner_reward/y": [1.0, 4.0, 1.0],
        "loser_reward/x": [2.0, 3.0, 2.0],
        "loser_reward/y": [0.0, 2.0, 0.0],
    }
