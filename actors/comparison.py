"""Many runs on one cluster: each is a Ray task that starts the actors of its run, as many at once as there is room for.

A task, because its process is its own and dies with the driver: a comparison that is killed leaves no run behind that
would write into its folder while it is resumed. None of a run's actors has a name that another run could meet.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.cluster import beside_the_driver
from actors.failure import RunFailedError, note_failure, root_cause
from pipeline.comparison.loading import divergence, is_over, note_divergence
from pipeline.comparison.plan import PlannedRun
from pipeline.config import RunSettings
from pipeline.progress import Metrics, progress_line
from pipeline.prompt_sets import PromptSets
from pipeline.run_folder import METRICS_FILE, MetricsFile
from pipeline.run_lock import held_alone

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0

PROGRESS_FILE = "progress.log"

Say = Callable[[str], None]
MakeRun = Callable[[RunSettings, Path], None]


def carry_out(runs: Sequence[PlannedRun], make_run: MakeRun, at_once: int, say: Say) -> dict[Path, str]:
    """Carry out the runs that are not over, in their order; an interrupted one goes on from its checkpoint.

    A run that fails does not stop the others. One that diverges has not failed: it would do so again.

    Args:
        make_run: makes one of them in a process of the cluster, such as a partial `align_in_folder`.
        at_once: how many go on at the same time.
        say: takes a line about every run and iteration.

    Returns:
        The folders of the runs that failed, each with the reason.
    """
    waiting = [run for run in runs if not is_over(run)]
    task: Any = ray.remote(_attempt).options(**beside_the_driver(), max_retries=0)
    running: dict[ray.ObjectRef[Any], _Followed] = {}
    failed: dict[Path, str] = {}
    started = len(runs) - len(waiting)
    while waiting or running:
        while waiting and len(running) < at_once:
            run, started = waiting.pop(0), started + 1
            reference = task.remote(make_run, run.settings, run.folder.resolve())
            running[reference] = _Followed(run, f"{started}/{len(runs)} {run.settings.name}: ", say)
        ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
        for followed in running.values():
            followed.tell()
        for reference in ready:
            followed = running.pop(reference)
            followed.tell()
            reason, diverged = _outcome(reference), divergence(followed.run)
            if diverged is not None:
                followed.say(f"diverged: {diverged}")
            elif reason:
                followed.say(f"failed: {reason}")
                failed[followed.run.folder] = reason
            else:
                followed.say("finished")
    return failed


def align_in_folder(
    circumstances: dict[str, Any], prompts: PromptSets | None, settings: RunSettings, run_directory: Path
) -> None:
    """Align a model in a folder held alone, as jobs/align.py does, and keep the lines of its progress in a file.

    Args:
        circumstances: what environment.json says beside versions and hardware.
        prompts: those that all runs of a comparison share; None reads what the settings name.

    Raises:
        RunFailedError: as `align`.
        ValueError: prompts or pairs of images that cannot be read, or another process works on the folder.
    """
    # The driver imports this module too, and needs no networks.
    from actors.run_in_folder import describe_and_align
    from pipeline.prompt_sets import save_prompt_sets

    with held_alone(run_directory):
        if prompts is not None:
            save_prompt_sets(prompts, settings.prompts, run_directory)
        run_directory.mkdir(parents=True, exist_ok=True)
        with (run_directory / PROGRESS_FILE).open("a", encoding="utf-8") as log:
            describe_and_align(settings, run_directory, circumstances, log)


class _Followed:
    """A run that goes on, seen from the driver through the metrics in its folder."""

    def __init__(self, run: PlannedRun, label: str, say: Say) -> None:
        self.run, self._label, self._say = run, label, say
        self._metrics = MetricsFile(run.folder / METRICS_FILE)
        # What an interrupted run made is no news.
        self._told = len(self._metrics.read())
        self._seconds: list[float] = []
        self.say("resumed" if self._told else "started")

    def say(self, text: str) -> None:
        self._say(self._label + text)

    def tell(self) -> None:
        """Say every iteration that is finished and not yet said."""
        try:
            metrics: list[Metrics] = self._metrics.read()
        except OSError as error:  # the run itself has the patience for a storage that fails for a while
            logger.warning("the metrics of %s cannot be read now: %s", self.run.folder, error)
            return
        # A resumed run makes the iterations after its last checkpoint again.
        self._told = min(self._told, len(metrics))
        for iteration in metrics[self._told :]:
            self._seconds.append(iteration["seconds"])
            settings = self.run.settings
            self.say(progress_line(iteration, settings.iterations, self._seconds, settings.budget_seconds))
        self._told = len(metrics)


def _attempt(make_run: MakeRun, settings: RunSettings, folder: Path) -> str:
    """The reason if the run failed, else nothing."""
    try:
        make_run(settings, folder)
    except RunFailedError as error:
        details = note_failure(error, folder)
        if error.diverged:
            note_divergence(folder, str(error))
        return f"{error}; details: {details}"
    return ""


def _outcome(reference: "ray.ObjectRef[Any]") -> str:
    try:
        reason: str = ray.get(reference)
    except RayError as error:
        cause = root_cause(error)
        return f"{type(cause).__name__}: {cause}"
    return reason
