"""What an alignment method is to the rest of the system: two verbs, collect and loss, and what they count."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.method_settings import MethodSettings
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch
from pipeline.records import RecordRows, record_rows
from pipeline.scoring import AsyncScorer


@dataclass(frozen=True)
class LossTerms:
    """The losses (N,) of N records, attached to the graph, and what to tell of each, (N,) detached, by name."""

    losses: Tensor
    diagnostics: dict[str, Tensor]


class Method(ABC):
    """One algorithm. Rollout workers and the learner each make their own, from the same settings.

    Attributes:
        settings_class: what `settings.method` is.
        diagnostic_names: the keys of `LossTerms.diagnostics`, whose means over an iteration are among its metrics.
    """

    settings_class: ClassVar[type[MethodSettings]]
    diagnostic_names: ClassVar[tuple[str, ...]]

    def __init__(self, settings: RunSettings) -> None:
        """Take the settings of the run; `settings.method` is this method's section."""
        self.run = settings

    @abstractmethod
    async def collect(self, policy: Policy, scorer: AsyncScorer, batch: SampleBatch, policy_version: int) -> pa.Table:
        """Roll out a batch of samples and return its records, `len(batch.samples)` times the trained steps.

        Every table has the columns row (its number within the iteration), prompt and step.
        """

    @abstractmethod
    def loss(self, policy: Policy, rows: RecordRows) -> LossTerms:
        """The losses of N records, from one call of the network per latent that was sampled."""

    @abstractmethod
    def rollout_metrics(self, table: pa.Table) -> dict[str, Any]:
        """How the rollouts of an iteration, or of a minibatch, went over all workers.

        Each worker gives its share of the records, which may be empty and need no latents. The metrics have at least
        `reward`, the mean reward of the finished images.
        """

    def trainable_rows(self, table: pa.Table) -> RecordRows:
        """The records that are trained on, sorted by row; a worker's share of an iteration goes in."""
        return record_rows(table)

    def state(self) -> dict[str, Any]:
        """What a resumed run must know beside the adapter and the optimiser, as JSON takes it."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        assert not state, f"{type(self).__name__} keeps no state"
