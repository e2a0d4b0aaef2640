"""What the runs cost, how they were set up, and what they ran on."""

import json
from typing import Any

from pipeline.report.comparison import Comparison
from pipeline.report.content import Listing, Section, Table
from pipeline.report.explanations import NO_ENVIRONMENT
from pipeline.report.history import RunHistory
from pipeline.report.wording import MISSING, count, duration

BUDGET_COLUMNS = (
    "method",
    "run",
    "seed",
    "iterations",
    "trajectories",
    "network calls",
    "calls per trajectory",
    "time",
    "rollouts",
    "learning",
)


MOST_OPEN_ROWS = 12

NAMES_OF_MACHINES = ("address", "driver_host", "log_directory")
"""What environment.json tells of a cluster, for those who can reach it."""

ENVIRONMENT_COLUMNS = ("code", "Python", "torch", "Ray", "CPUs", "GPUs")


def budget_section(comparison: Comparison) -> Section:
    """Work and time of every run so far."""
    rows = tuple((method.label, *_budget(run)) for method in comparison.methods for run in method.runs)
    table = Table("What every run has spent so far", BUDGET_COLUMNS, rows)
    seconds = sum(float(run.series("seconds").sum()) for run in comparison.runs)
    sums = (f"Rollouts and learning of all runs took {duration(seconds)} together.",) if len(rows) > 1 else ()
    return Section("Budget", paragraphs=sums, tables=_open(table), folded=_folded(table))


def settings_section(comparison: Comparison) -> Section:
    """The resolved configuration of every run."""
    return Section(
        "Settings",
        listings=tuple(
            Listing(f"{method.label}, seed {run.seed}: config.yaml", run.config)
            for method in comparison.methods
            for run in method.runs
        ),
    )


def environment_section(comparison: Comparison) -> Section:
    """Versions and hardware of the runs whose folders tell them."""
    told = [
        (f"{method.label}, seed {run.seed}", run.environment)
        for method in comparison.methods
        for run in method.runs
        if run.environment is not None
    ]
    if not told:
        return Section("Environment", paragraphs=(NO_ENVIRONMENT,))
    rows = tuple((title, *_environment(environment)) for title, environment in told)
    table = Table("What the runs ran on", ("run", *ENVIRONMENT_COLUMNS), rows)
    return Section(
        "Environment",
        tables=_open(table),
        folded=_folded(table),
        listings=tuple(
            Listing(f"{title}: environment.json", json.dumps(_for_others(environment), indent=2, ensure_ascii=False))
            for title, environment in told
        ),
    )


def _open(table: Table) -> tuple[Table, ...]:
    """The table, unless a phone would have to scroll for long past it."""
    return (table,) if len(table.rows) <= MOST_OPEN_ROWS else ()


def _folded(table: Table) -> tuple[Table, ...]:
    return () if _open(table) else (table,)


def iterations_done(run: RunHistory) -> str:
    """5 of 24; of a run that its time ends, 5 in 60 s."""
    budget = run.settings.budget_seconds
    return (
        f"{len(run.metrics)} of {run.settings.iterations}" if budget is None else f"{len(run.metrics)} in {budget:g} s"
    )


def _environment(environment: dict[str, Any]) -> list[str]:
    packages, git = environment.get("packages") or {}, environment.get("git") or {}
    state = " with changes" if git.get("modified_files") else ""
    cells = {
        "code": f"{git['commit'][:10]}{state}" if "commit" in git else MISSING,
        "Python": environment.get("python", MISSING),
        "torch": packages.get("torch", MISSING),
        "Ray": packages.get("ray", MISSING),
        "CPUs": str(environment.get("cpus", MISSING)),
        "GPUs": ", ".join(environment.get("gpus", [])) or "none",
    }
    return [cells[column] for column in ENVIRONMENT_COLUMNS]


def _for_others(environment: dict[str, Any]) -> dict[str, Any]:
    """Without what means something on the run's own machines only: a page is passed on."""
    cluster = environment.get("cluster")
    if not isinstance(cluster, dict):
        return environment
    shown = {name: value for name, value in cluster.items() if name not in NAMES_OF_MACHINES}
    if isinstance(resources := shown.get("resources"), dict):
        shown["resources"] = {name: amount for name, amount in resources.items() if not name.startswith("node:")}
    return environment | {"cluster": shown}


def _budget(run: RunHistory) -> tuple[str, ...]:
    done = len(run.metrics)
    trajectories = done * run.settings.rollout.trajectories
    calls = run.settings.network_calls_per_trajectory
    return (
        run.name,
        str(run.seed),
        iterations_done(run),
        count(trajectories),
        count(trajectories * calls),
        count(calls),
        duration(float(run.series("seconds").sum())),
        _seconds(run, "rollout_seconds"),
        _seconds(run, "learn_seconds"),
    )


def _seconds(run: RunHistory, metric: str) -> str:
    values = run.series(metric)
    return MISSING if any(values != values) else duration(float(values.sum()))
