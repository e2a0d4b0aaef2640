"""Which runs are repeats of one another, and what to call them."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from pipeline.config import RunSettings
from pipeline.report.history import RunHistory
from pipeline.worker_settings import PoolSettings

_PLACEMENT = set(PoolSettings.model_fields)

NOT_COMPARED: Any = {
    **dict.fromkeys(("name", "output_dir", "seed", "checkpoint", "records", "samples", "tracking"), True),
    "rollout": {*_PLACEMENT, "batches_in_flight"},
    "reward_actors": _PLACEMENT,
    "learner": {"num_workers", "min_workers", "max_restarts", "num_cpus", "num_gpus", "threads"},
}
"""Settings in which repeats may differ: what a run is called, its seed, where it runs and what it keeps."""


@dataclass(frozen=True)
class Method:
    """Runs with the same settings, which differ in their seed.

    Attributes:
        label: the method's name, unique in a comparison.
        runs: by seed, at least one.
    """

    label: str
    runs: tuple[RunHistory, ...]

    @property
    def learns_from_rewards(self) -> bool:
        """Whether it trains on the reward that its runs name, not on pairs of images."""
        return bool(self.runs[0].settings.rewards_learnt_from)


@dataclass(frozen=True)
class Comparison:
    """Methods in the order in which their first runs were named."""

    methods: tuple[Method, ...]

    @property
    def runs(self) -> tuple[RunHistory, ...]:
        """All runs, method by method."""
        return tuple(run for method in self.methods for run in method.runs)

    @property
    def labels_without_reward(self) -> list[str]:
        """The methods that learn from pairs of images."""
        return [method.label for method in self.methods if not method.learns_from_rewards]


def compare(runs: Sequence[RunHistory], labels: Mapping[Path, str] | None = None) -> Comparison:
    """Group runs into methods and name these.

    Args:
        labels: of the method of each run's folder. Runs of one label are repeats; without labels, those whose settings
            say so are.

    Raises:
        ValueError: no run, or two runs of the same settings, label and seed, which repeat nothing.
    """
    if not runs:
        raise ValueError("a report needs at least one run folder")
    groups: dict[tuple[str, str], list[RunHistory]] = {}
    for run in runs:
        label = labels[run.folder] if labels else ""
        group = groups.setdefault((label, _settings_of_repeats(run.settings)), [])
        twin = next((other for other in group if other.seed == run.seed), None)
        if twin is not None:
            raise ValueError(
                f"{twin.folder} and {run.folder} have the same settings and the same seed {run.seed}; leave one out: "
                "a band over them would not be one over seeds"
            )
        group.append(run)
    sorted_groups = [sorted(group, key=lambda run: run.seed) for group in groups.values()]
    names = _labels(sorted_groups) if labels is None else [labels[group[0].folder] for group in sorted_groups]
    return Comparison(tuple(Method(name, tuple(group)) for name, group in zip(names, sorted_groups, strict=True)))


def _settings_of_repeats(settings: RunSettings) -> str:
    return json.dumps(settings.model_dump(mode="json", exclude=NOT_COMPARED), sort_keys=True)


def _labels(groups: Sequence[Sequence[RunHistory]]) -> list[str]:
    """The method's name; with the runs' name where methods share it; with a folder where they share that too."""
    labels = [group[0].settings.method.title for group in groups]
    for more in (_common_name, lambda group: str(group[0].folder)):
        count = Counter(labels)
        labels = [
            f"{label} ({more(group)})" if count[label] > 1 else label
            for label, group in zip(labels, groups, strict=True)
        ]
    return labels


def _common_name(runs: Sequence[RunHistory]) -> str:
    """What the names of repeats begin with, without the word for the seed: demo of demo-seed1 and demo-seed2."""
    names = [run.name for run in runs]
    if len(set(names)) == 1:
        return names[0]
    columns = zip(*names, strict=False)
    common = "".join(letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, columns))
    return re.sub(r"[-_. ]+(seed|s)?[-_.= ]*\d*$", "", common) or names[0]
