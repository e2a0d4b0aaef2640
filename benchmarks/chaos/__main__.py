"""Does a run end with the same adapter, whatever is killed meanwhile?

    python -m benchmarks.chaos [--kills 16] [--seed 0] [section.key=value ...]

Starts a cluster of one head and three worker nodes on this machine and runs a small alignment on it twice: undisturbed,
and while a seeded schedule kills one part after another: a rollout worker, a reward actor, the weight store, the
journal, a learner worker, Ray Train's controller, a whole node, the driver (which is then resumed). Writes to
results/chaos.json and results/chaos.md each kill, what the run's log says of it, the seconds it cost, and whether
iterations, records and adapter are those of the undisturbed run.
"""

import argparse
import itertools
import random
import re
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

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
        outcome: what the run's log tells from the kill until then.
    """

    victim: str
    iteration: int
    time: float
    seconds: float = float("nan")
    outcome: str = ""


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
            result = compare(calm, troubled, kills)
    finally:
        cluster.shutdown()
    write_json(options.output, {**result, "overrides": overrides, "environment": describe_environment()})
    write_text(options.output.with_suffix(".md"), as_markdown(result))
    print(as_markdown(result))


def disturb(job: AlignJob, cluster: LocalCluster, victims: list[str], rng: random.Random) -> list[Kill]:
    """Kill one victim an iteration, at a random moment of it, and wait for the iteration to end all the same."""
    kills = []
    typical_seconds = 1.0
    for victim in victims:
        wait_for_iterations(job, kills[-1].iteration + 1 if kills else 1)
        time.sleep(rng.random() * typical_seconds)
        moment = time.time()
        kill(job, cluster, victim, rng)
        kills.append(Kill(victim, len(job.metrics()), moment))
        typical_seconds = min(metrics["seconds"] for metrics in job.metrics())
    return kills


def compare(calm: AlignJob, troubled: AlignJob, kills: list[Kill]) -> dict[str, Any]:
    """What the kills changed, and what each cost."""
    expected, found = calm.metrics(), troubled.metrics()
    undisturbed = median(late["time"] - early["time"] for early, late in itertools.pairwise(expected))
    times = {metrics["iteration"]: metrics["time"] for metrics in found}
    log = troubled.log()
    for event in kills:
        event.seconds = times[event.iteration] - times[event.iteration - 1]
        event.outcome = told(log, event.time, times[event.iteration])
    return {
        "every_iteration_once": [m["iteration"] for m in found] == [m["iteration"] for m in expected],
        "same_adapter_after_every_iteration": [m["adapter_sha256"] for m in found]
        == [m["adapter_sha256"] for m in expected],
        "same_records": record_keys(troubled) == record_keys(calm),
        "undisturbed_iteration_seconds": undisturbed,
        "kills": [asdict(event) | {"seconds_lost": event.seconds - undisturbed} for event in kills],
    }


def told(log: list[dict[str, Any]], begin: float, end: float) -> str:
    """What fleets, journal and driver said between two moments: the first words of each line, once each."""
    lines = [line for line in log if begin <= datetime.fromisoformat(line["time"]).timestamp() <= end]
    words = [
        f"{line['worker']} " * (line["role"] == "fleet") + re.split("[:,]", line["message"])[0]
        for line in lines
        if line["message"] != "the iteration is done"
    ]
    return "; ".join(dict.fromkeys(words)) or "nothing"


def record_keys(job: AlignJob) -> list[tuple[int, int]]:
    """(iteration, row) of every record that was kept, in order; twice what was recorded twice."""
    keys = []
    for path in sorted((job.run_directory / "records").iterdir()):
        table = pq.read_table(path, columns=["iteration", "row"])
        keys += list(zip(table["iteration"].to_pylist(), table["row"].to_pylist(), strict=True))
    return sorted(keys)


def as_markdown(result: dict[str, Any]) -> str:
    """The table of kills, those of one iteration together."""
    lines = ["| iteration | killed | what the log then says | seconds lost |", "| --- | --- | --- | --- |"]
    for iteration, group in itertools.groupby(result["kills"], key=lambda event: event["iteration"]):
        events = list(group)
        victims = ", then ".join(event["victim"] for event in events)
        outcomes = ", then ".join(event["outcome"] for event in events)
        lines.append(f"| {iteration} | {victims} | {outcomes} | {events[0]['seconds_lost']:.1f} |")
    lines += [
        "",
        f"An undisturbed iteration took {result['undisturbed_iteration_seconds']:.1f} s (median).",
        f"Every iteration exactly once: {_yes(result['every_iteration_once'])}. "
        f"No record lost or doubled: {_yes(result['same_records'])}. "
        f"The same adapter, bit for bit, after every iteration: {_yes(result['same_adapter_after_every_iteration'])}.",
        "",
    ]
    return "\n".join(lines)


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


if __name__ == "__main__":
    main()
