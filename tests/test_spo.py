"""SPO: the pool, its pairs, and a continuation that does not look at the ranking."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from policies import make_policy
from scorers import ConstantScorer, ProjectionScorer
from settings import miniature_settings
from step_aware_checkpoint import published_tensors, write_checkpoint
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.decoder import LatentDecoder
from pipeline.learning import Learner
from pipeline.methods.spo import SPO
from pipeline.noise import SampleNoise
from pipeline.prompts import SampleBatch
from pipeline.records import latent_column
from pipeline.rewards import load_reward
from pipeline.scoring import AsyncScorer, InProcessScorer, LatentScorer

pytest_plugins = ["model_fixtures"]

BATCH = SampleBatch(iteration=3, samples=(0, 1), prompts=("a red circle", "a small blue star"))


class ReversedScorer(ProjectionScorer):
    async def score(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        return -await super().score(latents, prompts, timestep)


@pytest.fixture
def run_settings(miniature_model: Path) -> RunSettings:
    return miniature_settings(
        miniature_model,
        method={"name": "spo", "plain_steps": 1, "pool_size": 3, "min_probability_gap": 0.0},
        rollout={"trajectories": 2, "batch_size": 2},
        learner={"minibatch_size": 6},
    )


def roll_out(run_settings: RunSettings, scorer: AsyncScorer) -> pa.Table:
    return asyncio.run(SPO(run_settings).collect(make_policy(run_settings, 0.2), scorer, BATCH, 5))


def test_best_and_worst_of_the_pool_make_the_pair(run_settings: RunSettings) -> None:
    table = roll_out(run_settings, ProjectionScorer())
    assert table["step"].to_pylist() == [1, 1, 2, 2, 3, 3]
    policy = make_policy(run_settings, 0.2)
    x_t = torch.from_numpy(latent_column(table, "x_t")[2:4])
    mean, std = policy.transition.mean_std(policy.predict(x_t, 2, BATCH.prompts), x_t, 2)
    noise = SampleNoise(run_settings.seed, 3, BATCH.samples)
    pool = torch.cat([mean + std * noise.draw((4, 8, 8), 2, draw) for draw in range(3)])
    prompts = list(BATCH.prompts) * 3
    x0 = policy.transition.predict_x0(policy.predict(pool, 3, prompts), pool, 3)
    scores = asyncio.run(ProjectionScorer().score(x0, prompts, 0)).view(3, 2)
    pool = pool.unflatten(0, (3, 2))
    for sample in (0, 1):
        for name, member in (("winner", scores[:, sample].argmax()), ("loser", scores[:, sample].argmin())):
            found = torch.from_numpy(latent_column(table, name)[2 + sample])
            torch.testing.assert_close(found, pool[member, sample], rtol=1e-4, atol=1e-5)
    assert table["winner_score"].to_pylist()[2:4] == pytest.approx(scores.max(dim=0).values.tolist(), rel=1e-4)


def test_the_step_aware_model_ranks_at_the_time_of_the_pool(
    run_settings: RunSettings, miniature_model: Path, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path, published_tensors())
    reward = load_reward("spo_step_aware", str(checkpoint), torch.device("cpu"), torch.float32)
    decoder = LatentDecoder.load(str(miniature_model), torch.device("cpu"), torch.float32, 4)
    table = roll_out(run_settings, InProcessScorer(LatentScorer(decoder, reward)))
    policy, prompts = make_policy(run_settings, 0.2), list(BATCH.prompts)
    for step, time in ((1, policy.transition.timestep(2)), (2, policy.transition.timestep(3)), (3, 0)):
        of_step = table.filter(pc.equal(table["step"], step))
        for name in ("winner", "loser"):
            x_s = torch.from_numpy(latent_column(of_step, name))
            clean = (
                x_s
                if time == 0
                else policy.transition.predict_x0(policy.predict(x_s, step + 1, prompts), x_s, step + 1)
            )
            with torch.no_grad():
                expected = reward.score_at(decoder.decode(clean), prompts, torch.full((2,), time))
            found = torch.tensor(of_step[f"{name}_score"].to_pylist())
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
            assert time == 0 or (found - reward.score(decoder.decode(clean), prompts)).abs().max() > 0.1


def test_who_continues_does_not_depend_on_the_ranking(run_settings: RunSettings) -> None:
    forwards, backwards = (roll_out(run_settings, scorer) for scorer in (ProjectionScorer(), ReversedScorer()))
    assert (latent_column(forwards, "x_t") == latent_column(backwards, "x_t")).all()
    assert (latent_column(forwards, "winner") == latent_column(backwards, "loser")).all()


def test_every_member_continues_equally_often() -> None:
    chosen = SampleNoise(0, 0, range(3000)).choose(3, step=5)
    assert chosen.dtype == torch.int64
    counts = torch.bincount(chosen, minlength=3)
    assert ((counts - 1000).abs() < 120).all(), "five standard deviations"
    assert torch.equal(chosen[10:20], SampleNoise(0, 0, range(10, 20)).choose(3, step=5))


def test_the_finished_image_is_scored_once(run_settings: RunSettings) -> None:
    table = roll_out(run_settings, ProjectionScorer())
    last = table.slice(4)
    low, high = (last[name].to_numpy() for name in ("loser_score", "winner_score"))
    final = table["final_reward"].to_numpy()
    assert (final[:2] == final[4:]).all()
    assert ((low <= final[4:]) & (final[4:] <= high)).all()


@pytest.mark.parametrize(("gap", "tie"), [(0.3, True), (0.29, False)])
def test_pairs_whose_softmax_hardly_differs_are_ties(run_settings: RunSettings, gap: float, tie: bool) -> None:
    method = SPO(
        run_settings.model_copy(update={"method": run_settings.method.model_copy(update={"min_probability_gap": gap})})
    )
    # softmax((s, 0)) is (1.295/2.295...): the two differ by 0.295
    score = math.log((1 + 0.295) / (1 - 0.295))
    latents = torch.randn(3, 1, 4, 8, 8)
    told = method._preferences(
        make_policy(run_settings),
        latents[0],
        ["a cross"],
        1,
        torch.tensor(0.5),
        latents,
        torch.tensor([[0.0], [score], [0.1]]),
    )
    assert told.tie.tolist() == [tie]
    assert torch.equal(told.winner, latents[1])
    assert torch.equal(told.loser, latents[0])


def test_equal_scores_teach_nothing(run_settings: RunSettings) -> None:
    metrics = Learner(make_policy(run_settings), run_settings).learn(roll_out(run_settings, ConstantScorer()), 3)
    assert metrics["tie_rate"] == 1.0


def test_the_loss_is_ln_2_at_initialisation(run_settings: RunSettings) -> None:
    policy = make_policy(run_settings)
    table = asyncio.run(SPO(run_settings).collect(policy, ProjectionScorer(), BATCH, 5))
    metrics = Learner(policy, run_settings).learn(table, 3)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)
