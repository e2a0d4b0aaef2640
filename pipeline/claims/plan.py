"""Which tables are made, and from what: everything that is known before the first actor starts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.claims.arms import Arm, evenly_spread, step_arms, strength_arms, tailorpo_settings
from pipeline.config import RunSettings
from pipeline.config_loading import parse_settings
from pipeline.method_settings import GuidanceSettings
from pipeline.preflight import check_run

MEASURED_STEPS = 5
"""Steps at which orders and guidance are measured, evenly spread as the paper's."""

ARMS: dict[str, Callable[[RunSettings, int], list[Arm]]] = {"steps": step_arms, "strength": strength_arms}
"""Tables of alignment runs; the others are measurements on the base model."""


@dataclass(frozen=True)
class ClaimsPlan:
    """What a configuration, and how much of it, makes of the claims.

    Attributes:
        settings: the run whose model, rewards and prompts are taken.
        samples: trajectories of each measurement.
        iterations: of each alignment run.
        tables: which of `pipeline.claims.TABLES`.
    """

    settings: RunSettings
    samples: int
    iterations: int
    tables: tuple[str, ...]

    def check(self) -> None:
        """Refuse what cannot succeed.

        Raises:
            ValueError: what is wrong and what to change.
        """
        size = self.settings.rollout.batch_size
        if self.samples < max(2, size) or self.samples % size:
            whole = max(1, self.samples // size) * size
            raise ValueError(
                f"--samples {self.samples} is no multiple of rollout.batch_size={size} above 1; {max(2, whole)} is"
            )
        if self.settings.evaluation.images == 0 and not ARMS.keys().isdisjoint(self.tables):
            raise ValueError("evaluation.images=0 leaves nothing to compare runs by; set it, or choose other --tables")
        for name in self.tables:
            for run in self.runs(name):
                check_run(run)

    def runs(self, name: str) -> list[RunSettings]:
        """The settings of every run that a table is made from; of a measurement there is one."""
        return [arm.settings for arm in self.arms(name)] if name in ARMS else [self.measured(name)]

    def arms(self, name: str) -> list[Arm]:
        """The alignment runs of a table."""
        return ARMS[name](self.settings, self.iterations)

    def measured(self, name: str) -> RunSettings:
        """The settings of a measurement: `MEASURED_STEPS` steps, and for `guidance` the configuration's strengths."""
        method = tailorpo_settings(self.settings)
        guidance = (method.guidance or GuidanceSettings()).model_dump() if name == "guidance" else None
        steps = evenly_spread(self.settings.sampling.num_steps, MEASURED_STEPS)
        values = self.settings.model_dump(mode="json")
        values["method"] = method.model_dump(mode="json") | {"trained_steps": steps, "guidance": guidance}
        return parse_settings(values)

    def inputs(self, name: str) -> dict[str, Any]:
        """What the rows of a table follow from, as plain values: an equal one need not be made again."""
        samples = {} if name in ARMS else {"samples": self.samples}
        return samples | {"runs": [run.model_dump(mode="json") for run in self.runs(name)]}
