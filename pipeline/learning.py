"""Learning from one iteration's records."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.diagnostics import term_means, term_sums
from pipeline.methods import create_method
from pipeline.optimiser import AdapterOptimiser
from pipeline.policy import Policy
from pipeline.records import RecordRows, without_latents
from pipeline.reduction import sum_over_workers
from pipeline.reward_normaliser import RewardNormaliser

FLOAT16_LOSS_SCALE = 4096.0


class Learner:
    """Applies the method's loss to an iteration of records, on one worker or as one of several.

    Which records make up a minibatch follows from their row numbers alone, so it does not matter which worker holds
    them: each adds the gradients of those it has, and the sum over workers is the gradient of the minibatch.
    """

    def __init__(self, policy: Policy, settings: RunSettings) -> None:
        """Take a policy whose adapter has gradients."""
        self.policy = policy
        self.settings = settings
        self.method = create_method(settings)
        self.optimiser = AdapterOptimiser(policy.adapter_parameters(), settings.learner, settings.learning_rate)
        self.normaliser = RewardNormaliser(settings)
        by_dtype = FLOAT16_LOSS_SCALE if settings.model.dtype == "float16" else 1.0
        self.loss_scale = settings.learner.loss_scale or by_dtype

    def learn(
        self, table: pa.Table, iteration: int, around_step: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> dict[str, Any]:
        """Take this worker's records of an iteration and make all of its optimiser steps.

        Args:
            table: the records (`pipeline.records`).
            iteration: which one it is, counted from 0; it seeds the order of the records.
            around_step: makes what each optimiser step is done within, such as a watchdog.

        Returns:
            means over the iteration by name, those of losses over the records learnt from, and under "minibatches" the
            same of each minibatch in turn, also of one whose update was skipped.

        Raises:
            RuntimeError: the workers' shares do not add up to the iteration's records.
            NonFiniteGradientError: too many gradients were not finite.
        """
        expected = self.settings.records_per_iteration
        received = int(sum_over_workers(torch.tensor([float(len(table))])))
        if received != expected:
            raise RuntimeError(f"iteration {iteration} has {expected} records but {received} reached the learner")
        metrics = self.method.rollout_metrics(table) | self.normaliser.observe(table)
        rows = self.method.trainable_rows(table)
        rolled_out = without_latents(table)
        names = self.method.diagnostic_names
        totals = torch.zeros(2 + len(names))
        minibatches: list[dict[str, Any]] = []
        norms: list[float] = []
        learning_rate = self.optimiser.learning_rate
        for epoch in range(self.settings.learner.inner_epochs):
            minibatch_of_row = self._minibatch_of_row(iteration, epoch)
            for index in range(expected // self.settings.learner.minibatch_size):
                steps_before = self.optimiser.steps_taken
                with around_step():
                    in_minibatch = torch.nonzero(minibatch_of_row[rows["row"]] == index).flatten()
                    sums, norm = self.optimiser.step(self._accumulate(rows.select(in_minibatch)))
                if self.optimiser.steps_taken > steps_before:
                    totals += sums
                    norms.append(norm)
                records = rolled_out.filter(minibatch_of_row.numpy()[rolled_out["row"].to_numpy()] == index)
                minibatches.append(
                    self.method.rollout_metrics(records) | term_means(sums, names) | {"gradient_norm": norm}
                )
        return (
            metrics
            | term_means(totals, names)
            | {
                "gradient_norm": float(np.mean(norms)) if norms else math.nan,
                "learning_rate": learning_rate,
                "optimiser_steps": self.optimiser.steps_taken,
                "skipped_steps": self.optimiser.steps_skipped,
                "minibatches": {name: [minibatch[name] for minibatch in minibatches] for name in minibatches[0]},
            }
        )

    def _minibatch_of_row(self, iteration: int, epoch: int) -> Tensor:
        """Which minibatch each of the iteration's N rows is in, (N,) int64, by a seeded order of them."""
        total, size = self.settings.records_per_iteration, self.settings.learner.minibatch_size
        order = np.random.default_rng((self.settings.seed, iteration, epoch)).permutation(total)
        return torch.from_numpy(np.argsort(order) // size)

    def _accumulate(self, rows: RecordRows) -> Tensor:
        """Add the gradient of the summed loss of `rows` to `.grad`, a micro-batch at a time."""
        names = self.method.diagnostic_names
        totals = torch.zeros(2 + len(names))
        for indices in torch.arange(len(rows)).split(self.settings.learner.micro_batch_size):
            if len(indices):
                terms = self.method.loss(self.policy, rows.select(indices))
                (terms.losses.sum() * self.loss_scale).backward()
                totals += term_sums(terms.losses, terms.diagnostics, names)
        for parameter in self.policy.adapter_parameters().values():
            if parameter.grad is not None:
                parameter.grad /= self.loss_scale
        return totals
