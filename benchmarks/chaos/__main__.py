"""Does a run end with the same adapter, whatever is killed meanwhile?

    python -m benchmarks.chaos [--kills 16] [--seed 0] [section.key=value ...]

Starts a cluster of one head and three worker nodes on this machine and runs a small alignment on it twice: undisturbed,
and while a seeded schedule kills one part after another: a rollout worker, a reward actor, the weight store, the
journal, a learner worker, Ray Train's controller, a whole node, the driver (which is then resumed). Writes to
results/chaos.json and results/chaos.md each kill, what became of the iteration that it hit, what the run's log says of
it, the seconds it cost, and whether iterations, records and adapter are those of the undisturbed run.
"""

import argparse
import itertools
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.chaos.cluster import LocalCluster
from benchmarks.chaos.disturbance import (
    CPUS_PER_NODE,
    NODES,
    SMALL_RUN,
    VICTIMS,
    kill,
    schedule,
    wait_for_iterations,
)
from benchmarks.chaos.run import AlignJob
from benchmarks.chaos.sameness import as_sentences, compare, records_by_iteration
from pipeline.environment import describe_environment
from pipeline.run_folder import write_json, write_text


@dataclass
class Kill:
    """One kill.

    Attributes:
        victim: what was killed.
        iteration: the iteration that was under way.
        time: when, in seconds since 1970.
        seconds: until that iteration was done, from the end of the one before it.
        outcome: what became of the iteration, against the same one of the undisturbed run.
        told: what the run's log says from the kill until then.
    """

    victim: str
    iteration: int
    time: float
    seconds: float = float("nan")
    outcome: str = ""
    told: str = ""


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--kills", type=int, default=2 * len(VICTIMS), help="kills, one an iteration")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument("--output", type=Path, default=Path("results/chaos.json"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    overrides = [*SMALL_RUN, *options.overrides, f"iterations={2 * options.kills + 2}"]
    cluster = LocalCluster(NODES, CPUS_PER_NODE)
    try:
        with tempfile.TemporaryDirectory() as folder:
            calm = AlignJob(options.config, overrides, Path(folder) / "calm", cluster.address)
            calm.finish()
            troubled = AlignJob(options.config, overrides, Path(folder) / "troubled", cluster.address)
            try:
                kills = disturb(troubled, cluster, schedule(options.kills, options.seed), random.Random(options.seed))
                troubled.finish()
            finally:
                troubled.stop()
            result = assess(calm, troubled, kills)
    finally:
        cluster.shutdown()
    write_json(options.output, {**result, "overrides": overrides, "environment": describe_environment()})
    write_text(options.output.with_suffix(".md"), as_markdown(result))
    print(as_markdown(result))


def disturb(job: AlignJob, cluster: LocalCluster, victims: list[str], rng: random.Random) -> list[Kill]:
    """Kill one victim an iteration, at a random moment of it, and wait for the iteration to end all the same."""
    kills: list[Kill] = []
    typical_seconds = 1.0
    for victim in victims:
        wait_for_iterations(job, kills[-1].iteration + 1 if kills else 1)
        time.sleep(rng.random() * typical_seconds)
        moment = time.time()
        kill(job, cluster, victim, rng)
        kills.append(Kill(victim, len(job.metrics()), moment))
        typical_seconds = min(metrics["seconds"] for metrics in job.metrics())
    return kills


def assess(calm: AlignJob, troubled: AlignJob, kills: list[Kill]) -> dict[str, Any]:
    """What the kills changed, and what each cost."""
    expected, found = calm.metrics(), troubled.metrics()
    undisturbed = median(late["time"] - early["time"] for early, late in itertools.pairwise(expected))
    times = {metrics["iteration"]: metrics["time"] for metrics in found}
    records, calm_records = records_by_iteration(troubled), records_by_iteration(calm)
    for event in kills:
        number = event.iteration
        event.seconds = times[number] - times[number - 1]
        event.told = troubled.told(event.time, times[number])
        event.outcome = outcome(
            once=[metrics["iteration"] for metrics in found].count(number) == 1,
            same_records=records[number].equals(calm_records[number]),
            same_adapter=found[number]["adapter_sha256"] == expected[number]["adapter_sha256"],
        )
    return {
        **compare(calm, troubled),
        "undisturbed_iteration_seconds": undisturbed,
        "kills": [asdict(event) | {"seconds_lost": event.seconds - undisturbed} for event in kills],
    }


def outcome(*, once: bool, same_records: bool, same_adapter: bool) -> str:
    """In words, what became of an iteration."""
    return ", ".join(
        [
            "done once" if once else "NOT DONE ONCE",
            "same records" if same_records else "OTHER RECORDS",
            "same adapter" if same_adapter else "ANOTHER ADAPTER",
        ]
    )


def as_markdown(result: dict[str, Any]) -> str:
    """The table of kills, those of one iteration together."""
    lines = ["| iteration | killed | outcome | seconds lost | what the log says |", "| --- | --- | --- | --- | --- |"]
    for iteration, group in itertools.groupby(result["kills"], key=lambda event: event["iteration"]):
        events = list(group)
        victims = ", then ".join(event["victim"] for event in events)
        log = ", then ".join(event["told"] for event in events)
        first = events[0]
        lines.append(f"| {iteration} | {victims} | {first['outcome']} | {first['seconds_lost']:.1f} | {log} |")
    lines += [
        "",
        f"An undisturbed iteration took {result['undisturbed_iteration_seconds']:.1f} s (median).",
        as_sentences(result),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
