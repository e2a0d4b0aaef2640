"""The status of a run in a few lines for a terminal."""

from pipeline.report.status import RunStatus
from pipeline.report.wording import count, duration, interval, number, signed
from pipeline.run_folder import ERROR_FILE

RESUME = "python jobs/align.py --resume"

METRICS_SHOWN = ("reward", "loss", "implicit_accuracy", "drift", "gradient_norm", "seconds")


def status_text(status: RunStatus, now: float) -> str:
    """A paragraph, a fact a line; ages are those at `now`, in seconds since 1970."""
    settings = status.settings
    facts = {
        "method": f"{settings.method.title} on {settings.reward_title}, seed {settings.seed}",
        "iterations": _iterations(status),
        "state": _state(status, now),
        "last": _last_metrics(status),
        "checkpoint": _checkpoint(status, now),
        "evaluation": _evaluation(status),
        "resume": _resume(status),
    }
    width = max(map(len, facts))
    return "\n".join([status.location, *(f"  {name:<{width}}  {fact}" for name, fact in facts.items())])


def _iterations(status: RunStatus) -> str:
    settings, done = status.settings, len(status.metrics)
    text = f"{done} of {settings.iterations}"
    if settings.budget_seconds is not None:
        spent = sum(metrics["seconds"] for metrics in status.metrics)
        text = f"{done}, {duration(spent)} of {duration(settings.budget_seconds)} spent"
    return f"{text} ({count(done * settings.rollout.trajectories)} trajectories)"


def _state(status: RunStatus, now: float) -> str:
    if status.is_complete:
        return "complete"
    if status.failure is not None:
        return f"stopped by a failure, see {status.location}/{ERROR_FILE}: {status.failure}"
    doing = "evaluating" if status.iterations_are_done else "learning" if status.metrics else "starting"
    rhythm = f", an iteration takes {duration(status.metrics[-1]['seconds'])}" if status.metrics else ""
    return f"{doing}, or interrupted: it last wrote {duration(now - status.last_written)} ago{rhythm}"


def _last_metrics(status: RunStatus) -> str:
    if not status.metrics:
        return "no iteration yet"
    last = status.metrics[-1]
    shown = (f"{name} {number(last[name])}" for name in METRICS_SHOWN if last.get(name) is not None)
    return f"iteration {last['iteration'] + 1}: {', '.join(shown)}"


def _checkpoint(status: RunStatus, now: float) -> str:
    if status.checkpoint is None:
        return "none"
    age = duration(now - status.checkpoint.written)
    return f"after iteration {status.checkpoint.next_iteration}, {age} old"


def _evaluation(status: RunStatus) -> str:
    if status.evaluation is not None:
        rows = status.evaluation.rewards
        changes = [
            f"{label} {signed(rows[label].difference)} {interval(rows[label].low, rows[label].high)}"
            for label in status.settings.reward_labels
            if label in rows
        ]
        return ", ".join(changes) or "made"
    return "not yet" if status.settings.evaluation.images else "none asked for (evaluation.images=0)"


def _resume(status: RunStatus) -> str:
    if status.is_complete:
        return "nothing is left to do"
    begin = status.checkpoint.next_iteration if status.checkpoint else 0
    again = len(status.metrics) - begin
    repeated = f", the last {again} of those done are made again" if again > 0 else ""
    return f"{RESUME} {status.location} (goes on after iteration {begin}{repeated})"
