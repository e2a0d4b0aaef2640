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
import re
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
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
    records, calm_records = records_by_iteration(troubled), records_by_iteration(calm)
    log = troubled.log()
    for event in kills:
        number = event.iteration
        event.seconds = times[number] - times[number - 1]
        event.told = told(log, event.time, times[number])
        event.outcome = outcome(
            once=[metrics["iteration"] for metrics in found].count(number) == 1,
            same_records=records[number].equals(calm_records[number]),
            same_adapter=found[number]["adapter_sha256"] == expected[number]["adapter_sha256"],
        )
    return {
        "every_iteration_once": [m["iteration"] for m in found] == [m["iteration"] for m in expected],
        "same_adapter_after_every_iteration": [m["adapter_sha256"] for m in found]
        == [m["adapter_sha256"] for m in expected],
        "same_records": records.keys() == calm_records.keys()
        and all(records[number].equals(table) for number, table in calm_records.items()),
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


def outcome(*, once: bool, same_records: bool, same_adapter: bool) -> str:
    """In words, what became of an iteration."""
    return ", ".join(
        [
            "done once" if once else "NOT DONE ONCE",
            "same records" if same_records else "OTHER RECORDS",
            "same adapter" if same_adapter else "ANOTHER ADAPTER",
        ]
    )


def records_by_iteration(job: AlignJob) -> dict[int, pa.Table]:
    """All records that were kept, with every column, in the order of their rows; twice what was recorded twice."""
    kept = pa.concat_tables(map(pq.read_table, sorted((job.run_directory / "records").iterdir()))).sort_by("row")
    numbers = kept["iteration"].unique().to_pylist()
    return {number: kept.filter(pc.field("iteration") == number).combine_chunks() for number in numbers}


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
