"""The learner: where it starts, that it learns, and that splits, orders and faults do not change what it learns."""

import asyncio
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from eventually import PATIENCE_S
from policies import make_policy
from scorers import ConstantScorer, ProjectionScorer
from settings import miniature_settings
from torch import Tensor

from pipeline.adapter import flatten_adapter
from pipeline.config import RunSettings
from pipeline.learning import Learner
from pipeline.methods.tailorpo import collect
from pipeline.optimiser import NonFiniteGradientError
from pipeline.prompts import SampleBatch
from pipeline.scoring import AsyncScorer
from pipeline.step_preferences import trainable_pairs
from pipeline.transitions import gaussian_log_prob

pytest_plugins = ["model_fixtures"]

PROMPTS = ("a red circle", "a small blue star", "a large green ring", "a purple cross")


@pytest.fixture(scope="module")
def run_settings(miniature_model: Path) -> RunSettings:
    """16 pairs an iteration, two minibatches of 8."""
    return miniature_settings(miniature_model)


def with_learner(run_settings: RunSettings, **changes: Any) -> RunSettings:
    return run_settings.model_copy(update={"learner": run_settings.learner.model_copy(update=changes)})


def roll_out(run_settings: RunSettings, adapter_scale: float, scorer: AsyncScorer | None = None) -> pa.Table:
    """The records of 8 trajectories."""
    policy, batch = make_policy(run_settings, adapter_scale), SampleBatch(0, tuple(range(8)), PROMPTS * 2)
    policy.freeze()
    scorer = scorer or ProjectionScorer()
    return asyncio.run(collect(policy, scorer, batch, run_settings.method, run_settings.seed, 1.0, 0))


@pytest.fixture(scope="module")
def table(run_settings: RunSettings) -> pa.Table:
    """An iteration's records by a policy that has left the reference."""
    table = roll_out(run_settings, adapter_scale=0.2)
    assert not any(table["tie"].to_pylist())
    return table


def make_learner(run_settings: RunSettings, adapter_scale: float = 0.2) -> Learner:
    return Learner(make_policy(run_settings, adapter_scale), run_settings)


def learnt(run_settings: RunSettings, table: pa.Table, **changes: Any) -> np.ndarray:
    """The adapter after an iteration."""
    learner = make_learner(with_learner(run_settings, **changes))
    learner.learn(table, 0)
    return flatten_adapter(learner.policy)


def poisoned(table: pa.Table, rows: list[int]) -> pa.Table:
    """`table` with a NaN in x_t of `rows`."""
    column = table["x_t"].combine_chunks()
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    latents = np.concatenate([chunk.to_numpy_ndarray() for chunk in chunks])
    latents[np.isin(table["row"].to_numpy(), rows), 0, 0, 0] = float("nan")
    place = table.schema.get_field_index("x_t")
    return table.set_column(place, table.schema.field(place), pa.FixedShapeTensorArray.from_numpy_ndarray(latents))


def test_the_loss_begins_at_ln_2_exactly(miniature_model: Path) -> None:
    # Row by row, rollout and learner give the network the same input, so not even rounding differs.
    settings = miniature_settings(
        miniature_model,
        sampling={"guidance_scale": 1.0},
        rollout={"trajectories": 1, "batch_size": 1},
        learner={"minibatch_size": 2, "micro_batch_size": 1},
    )
    policy, batch = make_policy(settings), SampleBatch(0, (0,), PROMPTS[:1])
    table = asyncio.run(collect(policy, ProjectionScorer(), batch, settings.method, settings.seed, 1.0, 0))
    metrics = make_learner(settings, adapter_scale=0.0).learn(table, 0)
    assert metrics["loss"] == np.float32(math.log(2))
    assert metrics["margin"] == metrics["drift"] == 0.0 and metrics["implicit_accuracy"] == 0.5
    assert metrics["gradient_norm"] > 0


def test_in_batches_the_loss_begins_at_ln_2_to_rounding(run_settings: RunSettings) -> None:
    settings = with_learner(run_settings, minibatch_size=16)
    metrics = make_learner(settings, adapter_scale=0.0).learn(roll_out(settings, adapter_scale=0.0), 0)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(metrics["margin"]) < 1e-4
    assert metrics["drift"] < 1e-8


def test_it_learns_the_preferences_it_is_shown(run_settings: RunSettings) -> None:
    settings = with_learner(run_settings, inner_epochs=4, minibatch_size=16, learning_rate=0.01)
    table = roll_out(settings, adapter_scale=0.0)
    learner = make_learner(settings, adapter_scale=0.0)
    during = learner.learn(table, 0)
    after = learner.learn(table, 0)
    assert after["loss"] < during["loss"] < math.log(2)
    assert min(during["implicit_accuracy"], after["implicit_accuracy"]) > 0.7
    assert after["margin"] > during["margin"] > 0
    assert after["drift"] > during["drift"] > 0
    assert after["optimiser_steps"] == 8


def test_the_gradient_is_that_of_the_mean_loss(run_settings: RunSettings, table: pa.Table) -> None:
    """Against autograd through the whole minibatch at once, from the paper's formula."""
    learner = make_learner(with_learner(run_settings, minibatch_size=16, micro_batch_size=3))
    policy, pairs = make_policy(run_settings, 0.2), trainable_pairs(table)
    mean, std = policy.transition.mean_std(
        policy.forward(pairs["x_t"], pairs["step"], pairs.prompts), pairs["x_t"], pairs["step"]
    )
    shift = (pairs["winner"] - pairs["loser"]) * (mean - pairs["reference_mean"])
    logits = run_settings.method.beta * shift.flatten(1).mean(1) / std**2
    torch.nn.functional.softplus(-logits).mean().backward()
    expected = torch.cat([value.grad.flatten() for value in policy.adapter_parameters().values()])
    metrics = learner.learn(table, 0)
    assert metrics["gradient_norm"] == pytest.approx(expected.norm().item(), rel=1e-4)
    assert metrics["loss"] == pytest.approx(torch.nn.functional.softplus(-logits).mean().item(), rel=1e-5)
    # AdamW's first moment after one step is (1 - beta_1) times the gradient.
    moments = learner.optimiser.state()
    found = torch.cat([moments[f"adamw.exp_avg.{name}"].flatten() for name in policy.adapter_parameters()])
    clip = min(1.0, 1.0 / expected.norm().item())
    torch.testing.assert_close(found, 0.1 * clip * expected, rtol=1e-3, atol=1e-4 * found.abs().max().item())


def test_the_gradient_is_that_of_two_forwards_and_two_of_the_reference(
    run_settings: RunSettings, table: pa.Table
) -> None:
    """Winner's and loser's log-probabilities by calls of their own, of the policy and of the network without adapter.

    The learner makes one call for both, and takes the reference's from the rollout.
    """
    policy, pairs = make_policy(run_settings, 0.2), trainable_pairs(table)

    def log_prob(sample: str) -> Tensor:
        output = policy.forward(pairs["x_t"], pairs["step"], pairs.prompts)
        return gaussian_log_prob(pairs[sample], *policy.transition.mean_std(output, pairs["x_t"], pairs["step"]))

    with policy.reference(), torch.no_grad():
        reference = {sample: log_prob(sample) for sample in ("winner", "loser")}
    ratios = {sample: log_prob(sample) - reference[sample] for sample in ("winner", "loser")}
    losses = torch.nn.functional.softplus(-run_settings.method.beta * (ratios["winner"] - ratios["loser"]))
    losses.sum().backward()
    expected = torch.cat([value.grad.flatten() for value in policy.adapter_parameters().values()])
    found = gradient(run_settings, table, "float32", run_settings.method.beta)
    assert expected.abs().max() > 0
    # A log-probability is a hundred times the ratio that is left of it in the difference.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def gradient(run_settings: RunSettings, table: pa.Table, dtype: str, beta: float, **learner: Any) -> Tensor:
    """(parameters,) of a minibatch's summed loss, on a base of some dtype."""
    settings = with_learner(run_settings, **learner)
    method = settings.method.model_copy(update={"beta": beta})
    settings = settings.model_copy(
        update={"method": method, "model": settings.model.model_copy(update={"dtype": dtype})}
    )
    made = make_learner(settings)
    made._accumulate(made.method.trainable_rows(table))
    return torch.cat([value.grad.flatten() for value in made.policy.adapter_parameters().values()])


def test_small_gradients_survive_a_float16_base(run_settings: RunSettings, table: pa.Table) -> None:
    """Of SD v1.5's 16,384 latents each has so small a part in a mean that float16 rounds most of its gradient to zero;
    the miniature's 256 do with a small beta."""
    beta = 0.1 * 256 / 16_384
    expected = gradient(run_settings, table, "float32", beta)

    def error(found: Tensor) -> float:
        return float((found - expected).norm() / expected.norm())

    scaled = error(gradient(run_settings, table, "float16", beta))
    unscaled = error(gradient(run_settings, table, "float16", beta, loss_scale=1.0))
    assert scaled < 0.05
    assert unscaled > 2 * scaled


def test_a_loss_scale_of_a_power_of_two_changes_no_bit_in_float32(run_settings: RunSettings, table: pa.Table) -> None:
    one, other = (gradient(run_settings, table, "float32", 0.1, loss_scale=scale) for scale in (1.0, 4096.0))
    assert torch.equal(one, other)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 16])
def test_the_micro_batch_does_not_change_what_is_learnt(
    run_settings: RunSettings, table: pa.Table, micro_batch_size: int
) -> None:
    found = learnt(run_settings, table, micro_batch_size=micro_batch_size)
    np.testing.assert_allclose(found, learnt(run_settings, table), rtol=0, atol=2e-5)


def test_the_order_of_arrival_does_not_change_what_is_learnt(run_settings: RunSettings, table: pa.Table) -> None:
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    assert np.array_equal(learnt(run_settings, shuffled), learnt(run_settings, table))


class Workers:
    """Learner workers as threads of this process: `sum_over_workers` adds up in the order of their ranks."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count, timeout=PATIENCE_S)
        self.parts: dict[int, Tensor] = {}
        self.ranks: dict[int, int] = {}
        self.results: dict[int, Any] = {}
        self.count = count

    def sum(self, values: Tensor) -> Tensor:
        self.parts[self.ranks[threading.get_ident()]] = values.clone()
        self.barrier.wait()
        total = torch.stack([self.parts[rank] for rank in range(self.count)]).sum(0)
        self.barrier.wait()
        return total

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        def worker(rank: int) -> None:
            self.ranks[threading.get_ident()] = rank
            self.results[rank] = work(rank)

        threads = [threading.Thread(target=worker, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [self.results[rank] for rank in range(self.count)]


@pytest.mark.parametrize("first_share", [8, 3, 15])
def test_the_split_over_workers_does_not_change_what_is_learnt(
    run_settings: RunSettings, table: pa.Table, monkeypatch: pytest.MonkeyPatch, first_share: int
) -> None:
    alone = make_learner(run_settings)
    expected_metrics = alone.learn(table, 0)
    workers = Workers(2)
    for module in ("learning", "optimiser", "diagnostics", "step_diagnostics"):
        monkeypatch.setattr(f"pipeline.{module}.sum_over_workers", workers.sum)
    learners = [make_learner(with_learner(run_settings, micro_batch_size=size)) for size in (2, 5)]
    shares = [table.slice(0, first_share), table.slice(first_share)]
    metrics = workers.run(lambda rank: learners[rank].learn(shares[rank], 0))
    adapters = [flatten_adapter(learner.policy) for learner in learners]
    assert np.array_equal(adapters[0], adapters[1])
    np.testing.assert_allclose(adapters[0], flatten_adapter(alone.policy), rtol=0, atol=2e-5)
    assert metrics[0] == metrics[1]
    found = metrics[0]
    for expected, values in (
        (expected_metrics.pop("minibatches"), found.pop("minibatches")),
        (expected_metrics, found),
    ):
        for name, value in expected.items():
            np.testing.assert_allclose(values[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_inner_epochs_pass_over_the_pairs_in_orders_of_their_own(run_settings: RunSettings, table: pa.Table) -> None:
    learner = make_learner(with_learner(run_settings, inner_epochs=3))
    seen: list[Tensor] = []
    learner.policy.unet.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][: len(inputs[0]) // 2]))
    metrics = learner.learn(table, 0)
    assert metrics["optimiser_steps"] == learner.optimiser.steps_taken == 6
    assert metrics["pairs"] == 48
    passes = [torch.cat(seen[start : start + 4]).flatten(1) for start in (0, 4, 8)]
    pairs = trainable_pairs(table)["x_t"].flatten(1)
    for one in passes:
        assert sorted(one[:, 0].tolist()) == sorted(pairs[:, 0].tolist()), "every pair once a pass"
    assert not torch.equal(passes[0], passes[1])
    assert not torch.equal(passes[1], passes[2])


def test_beta_does_not_matter_where_the_loss_is_ln_2_and_gradients_are_far_above_epsilon(
    run_settings: RunSettings,
) -> None:
    """The gradient is then beta times one that does not depend on it, and AdamW's step not on the gradient's size."""
    table, updates = roll_out(run_settings, adapter_scale=0.0), []
    for beta in (0.1, 1.0):
        method = run_settings.method.model_copy(update={"beta": beta})
        settings = with_learner(run_settings.model_copy(update={"method": method}), epsilon=1e-14)
        learner = make_learner(settings, adapter_scale=0.0)
        before = flatten_adapter(learner.policy)
        metrics = learner.learn(table, 0)
        assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-3)
        updates.append(flatten_adapter(learner.policy) - before)
    weak, strong = updates
    assert np.linalg.norm(strong - weak) < 0.05 * np.linalg.norm(weak)


def test_another_iteration_makes_other_minibatches(run_settings: RunSettings, table: pa.Table) -> None:
    learners = [make_learner(run_settings) for _ in range(2)]
    for iteration, learner in enumerate(learners):
        learner.learn(table, iteration)
    assert not np.array_equal(*(flatten_adapter(learner.policy) for learner in learners))


def test_every_minibatch_is_told_of(run_settings: RunSettings, table: pa.Table) -> None:
    metrics = make_learner(with_learner(run_settings, inner_epochs=2)).learn(table, 0)
    minibatches = metrics["minibatches"]
    names = {"pairs", "loss", "implicit_accuracy", "margin", "clamped_ratios", "drift", "gradient_norm"}
    assert names <= set(minibatches) and all(len(values) == 4 for values in minibatches.values())
    assert minibatches["pairs"] == [8.0] * 4
    for name in names - {"pairs"}:
        assert metrics[name] == pytest.approx(np.mean(minibatches[name]), abs=1e-6)
    for name in ("reward", "tie_rate", "step_reward", "step_gap", "step_tie_rate"):
        # The two minibatches of an epoch are halves of the iteration, but not of the records of each trained step.
        assert len(minibatches[name]) == 4 and np.isfinite(minibatches[name]).all()
        if not name.startswith("step"):
            assert metrics[name] == pytest.approx(np.mean(minibatches[name]), abs=1e-6)
    first, *later = minibatches["loss"]
    assert first == pytest.approx(math.log(2), abs=0.05) and len({first, *later}) == 4


def test_every_minibatch_is_told_of_its_guidance(miniature_model: Path) -> None:
    settings = miniature_settings(miniature_model, method={"guidance": {}})
    table = roll_out(settings, adapter_scale=0.2)
    minibatches = make_learner(settings).learn(table, 0)["minibatches"]
    accepted, moves = (np.array(minibatches[name]) for name in ("step_accepted", "step_move"))
    assert accepted.shape == moves.shape == (2, 2) and (moves > 0).all()  # two minibatches, two trained steps
    lowest, highest = accepted.min(axis=0), accepted.max(axis=0)
    overall = [
        np.mean(table.filter(pc.equal(table["step"], step))["guidance_accepted"])
        for step in settings.trained_grid_steps
    ]
    assert (lowest <= overall).all() and (overall <= highest).all()


def test_a_poisoned_pair_costs_its_minibatch_alone(run_settings: RunSettings, table: pa.Table) -> None:
    learner = make_learner(run_settings)
    before = flatten_adapter(learner.policy)
    metrics = learner.learn(poisoned(table, [0]), 0)
    assert (metrics["optimiser_steps"], metrics["skipped_steps"]) == (1, 1)
    assert sorted(map(math.isnan, metrics["minibatches"]["loss"])) == [False, True]
    (learnt_from,) = (index for index, loss in enumerate(metrics["minibatches"]["loss"]) if math.isfinite(loss))
    for name in ("pairs", "loss", "implicit_accuracy", "gradient_norm"):
        assert metrics[name] == metrics["minibatches"][name][learnt_from], name
    after = flatten_adapter(learner.policy)
    assert np.isfinite(after).all()
    assert not np.array_equal(after, before)


def test_too_many_poisoned_minibatches_stop_the_run(run_settings: RunSettings, table: pa.Table) -> None:
    learner = make_learner(with_learner(run_settings, max_skipped_steps=1))
    before = flatten_adapter(learner.policy)
    with pytest.raises(NonFiniteGradientError, match=r"more than learner\.max_skipped_steps=1"):
        learner.learn(poisoned(table, list(range(16))), 0)
    assert np.array_equal(flatten_adapter(learner.policy), before)


def test_an_iteration_of_ties_teaches_nothing(run_settings: RunSettings) -> None:
    table = roll_out(run_settings, adapter_scale=0.2, scorer=ConstantScorer())
    learner = make_learner(run_settings)
    before = flatten_adapter(learner.policy)
    metrics = learner.learn(table, 0)
    assert np.array_equal(flatten_adapter(learner.policy), before)
    assert metrics["tie_rate"] == 1.0
    assert (metrics["pairs"], metrics["optimiser_steps"], metrics["skipped_steps"]) == (0, 0, 0)
    assert math.isnan(metrics["loss"]) and math.isnan(metrics["gradient_norm"])


def test_a_minibatch_of_ties_alone_has_no_gradient_norm(run_settings: RunSettings, table: pa.Table) -> None:
    learner = make_learner(run_settings)
    in_first = (learner._minibatch_of_row(0, 0) == 0).numpy()[table["row"].to_numpy()]
    place = table.schema.get_field_index("tie")
    metrics = learner.learn(table.set_column(place, "tie", pa.array(in_first)), 0)
    without, with_pairs = metrics["minibatches"]["gradient_norm"]
    assert math.isnan(without)
    assert metrics["gradient_norm"] == with_pairs > 0


@pytest.mark.parametrize("rows", [15, 17])
def test_lost_or_doubled_records_stop_the_run(run_settings: RunSettings, table: pa.Table, rows: int) -> None:
    wrong = pa.concat_tables([table, table]).slice(0, rows)
    with pytest.raises(RuntimeError, match=f"iteration 4 has 16 records but {rows} reached the learner"):
        make_learner(run_settings).learn(wrong, 4)


def test_the_clamp_and_the_sum_reach_the_loss(run_settings: RunSettings, table: pa.Table) -> None:
    method = run_settings.method.model_copy(update={"reduction": "sum", "ratio_clip": 0.1})
    settings = with_learner(run_settings.model_copy(update={"method": method}), minibatch_size=16)
    metrics = make_learner(settings).learn(table, 0)
    assert 0.683 <= metrics["loss"] <= 0.7033
    assert 0 < metrics["clamped_ratios"] <= 1
    mean_margin = make_learner(with_learner(run_settings, minibatch_size=16)).learn(table, 0)["margin"]
    assert metrics["margin"] == pytest.approx(256 * mean_margin, rel=1e-4)
