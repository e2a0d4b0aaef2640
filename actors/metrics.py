"""What Prometheus sees of a run: numbers that the actors hand to Ray, whose agent on each node serves them.

Every name below appears there behind `ray_tailorpo_`, a counter's before `_total`, with the run's name as its label
`run`, and a reward's own as `reward`; deploy/grafana/tailorpo.json draws them. Ray forgets a gauge that nobody sets for
some seconds, and knows a counter from its first increment on only. So gauges are set again and again, and what a fleet
counts is a gauge too.

Imported by the light tasks of Ray Data through the fleet, so nothing here imports torch.
"""

import math
import threading
import time
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

# Between two settings of the same gauge, seconds; Ray passes them on every ten seconds.
METRICS_INTERVAL_S = 2.0

FLEET_GAUGES = {
    "ready": "Workers that can be leased.",
    "pending": "Workers that are starting or wait for room in the cluster.",
    "busy": "Ready workers that serve a call.",
    "leases": "Calls in progress: batches that are rolled out, or latents that are scored.",
    "waiting": "The queue: calls that wait for a free worker.",
}
FLEET_COUNTERS = {
    "calls": "Calls that were given to a worker.",
    "restarts": "Workers started in place of another.",
    "lost": "Workers that died after they were ready.",
    "hung": "Those of them that gave no answer in time.",
    "garbled": "Calls whose answer nobody could use.",
    "drained": "Workers replaced because their node was about to be taken back.",
    "given_back": "Workers ended because there was no work for them.",
    "failed_starts": "Workers that died before they were ready.",
    "expired_leases": "Calls taken back because their caller died.",
}
REWARD = "reward"
TOTAL = "total"
ITERATION_GAUGES = {
    REWARD: "Mean of the last iteration's finished images: the total trained on, and each of several in its own units.",
    "loss": "Mean loss of the last iteration.",
    "policy_age": "Versions that the oldest record of the last iteration lay behind the policy that learnt from it.",
    "rollout_seconds": "Seconds that the learner waited for the last iteration's records.",
    "learn_seconds": "Seconds that it learnt from them.",
    "seconds": "Seconds of the last iteration.",
}
ITERATIONS = "iterations"
CHECKPOINT_TIME = "last_checkpoint_timestamp_seconds"
RUN_GAUGES = ITERATION_GAUGES | {
    ITERATIONS: "Iterations done since the run began, those before an interruption included.",
    CHECKPOINT_TIME: "When the last checkpoint was written, in seconds since 1970.",
}
LEARNER_STARTS = "learner_starts"
RUN_COUNTERS = {LEARNER_STARTS: "Times that the learner began: once, and once more after each of its losses."}
TRAJECTORIES = "trajectories"
ROLLOUT_COUNTERS = {TRAJECTORIES: "Trajectories rolled out."}


class FleetMetrics:
    """The counters of one fleet, with its name as the label `fleet`."""

    def __init__(self, run: str, fleet: str) -> None:
        labels = {"run": run, "fleet": fleet}
        self._gauges = {name: _gauge(f"fleet_{name}", text, labels) for name, text in FLEET_GAUGES.items()}
        self._gauges |= {name: _gauge(f"fleet_{name}_total", text, labels) for name, text in FLEET_COUNTERS.items()}

    def show(self, stats: Mapping[str, Any]) -> None:
        """Show the fields of a `FleetStats`; to be called every METRICS_INTERVAL_S."""
        for name, gauge in self._gauges.items():
            gauge.set(stats[name])


class RolloutMetrics:
    """What one rollout worker makes; Ray passes it on every ten seconds, so a killed worker's last ten are not seen."""

    def __init__(self, run: str) -> None:
        self._trajectories = _counter(TRAJECTORIES, ROLLOUT_COUNTERS[TRAJECTORIES], {"run": run})

    def rolled_out(self, trajectories: int) -> None:
        """Count a batch that is through."""
        self._trajectories.inc(trajectories)


class RunMetrics:
    """How far a run is, and how it learns; a thread repeats it until `end`."""

    def __init__(self, run: str) -> None:
        labels = {name: {"run": run} for name in RUN_GAUGES} | {REWARD: {"run": run, "reward": TOTAL}}
        self._gauges = {name: _gauge(name, text, labels[name]) for name, text in RUN_GAUGES.items()}
        self._learner_starts = _counter(LEARNER_STARTS, RUN_COUNTERS[LEARNER_STARTS], {"run": run})
        self._values: dict[str, float] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._repeat, name="metrics", daemon=True).start()

    def learner_began(self, iteration: int, checkpoint_time: float | None) -> None:
        """The learner took its place, with `iteration` iterations behind it.

        Args:
            checkpoint_time: when the checkpoint that it begins with was written; None where it has none.
        """
        self._learner_starts.inc()
        self._set({ITERATIONS: iteration} | ({} if checkpoint_time is None else {CHECKPOINT_TIME: checkpoint_time}))

    def iteration_ended(self, metrics: Mapping[str, Any]) -> None:
        """Show an iteration's metrics; what it has no number for keeps its last one."""
        shown = {name for name in metrics if name in ITERATION_GAUGES or name.startswith(f"{REWARD}/")}
        finite = {name: metrics[name] for name in shown if metrics[name] is not None and math.isfinite(metrics[name])}
        self._set({ITERATIONS: metrics["iteration"] + 1} | finite)

    def checkpoint_written(self, when: float | None = None) -> None:
        """A checkpoint was written, just now unless it is said when, in seconds since 1970."""
        self._set({CHECKPOINT_TIME: time.time() if when is None else when})

    def end(self) -> None:
        """Repeat nothing any more."""
        self._ended.set()

    def _set(self, values: Mapping[str, float]) -> None:
        # One assignment: the thread sees either all of the old values or all of the new ones.
        self._values = {**self._values, **values}
        self._show()

    def _show(self) -> None:
        for name, value in self._values.items():
            gauge, _, reward = name.partition("/")
            self._gauges[gauge].set(value, {"reward": reward} if reward else {})

    def _repeat(self) -> None:
        while not self._ended.wait(METRICS_INTERVAL_S):
            self._show()


def exported_names() -> set[str]:
    """Every name that Prometheus can find, as it stores it."""
    gauges = {*RUN_GAUGES, *(f"fleet_{name}" for name in FLEET_GAUGES)}
    counters = {*RUN_COUNTERS, *ROLLOUT_COUNTERS, *(f"fleet_{name}" for name in FLEET_COUNTERS)}
    return {f"ray_tailorpo_{name}" for name in gauges | {f"{name}_total" for name in counters}}


def _gauge(name: str, description: str, labels: dict[str, str]) -> Gauge:
    gauge: Gauge = Gauge(f"tailorpo_{name}", description, tuple(labels)).set_default_tags(labels)
    return gauge


def _counter(name: str, description: str, labels: dict[str, str]) -> Counter:
    counter: Counter = Counter(f"tailorpo_{name}", description, tuple(labels)).set_default_tags(labels)
    return counter
