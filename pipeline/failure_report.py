"""Why a run ended early, for a person to read: what failed, where, how often, and what to do about it."""

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

LONGEST_REASON_LINES = 20

LOSSES = {
    "lost": "lost",
    "hung": "of them without an answer in time",
    "garbled": "times an answer nobody could use",
    "failed_starts": "failed to start",
}
"""Counters of a fleet that a failure may have to do with, and what they are called."""

KILLED = "a process of the run was killed: look at the memory of its node and at its log"

ADVICE = {
    "RewardError": "look at what the message names; NaN mostly comes from damaged weights (reward.path) or from half "
    "precision (model.dtype), and a server that does not answer, or not with scores, has its own log",
    "NonFiniteGradientError": "the settings that the message names need a new run, for a run is resumed as it was",
    "StaleRecordsError": "this is a fault of the program: report it, with the details",
    "StorageError": "make room, or bring back the storage that the message names",
    "AssertionError": "this is a fault of the program: report it, with the details",
    "TrackerError": "bring back the service that the message names; iterations that it lacks are given to it then",
    "WeightChecksumError": "look at the network and the memory of that node; a new attempt fetches the weights again",
    "FleetError": "the workers' own last error stands above; a process that was killed mostly lacked memory, and needs "
    "a larger node, or in a new run smaller batches (rollout.batch_size, reward_actors.decode_chunk)",
    "OutOfMemoryError": "give the workers a larger node, or in a new run smaller batches (rollout.batch_size, "
    "reward_actors.decode_chunk, learner.micro_batch_size)",
    "ObjectStoreFullError": "give the nodes a larger object store (`ray start --object-store-memory=BYTES`; --dry-run "
    "says object_store_bytes_at_once), or in a new run fewer rollout.trajectories",
    "OutOfDiskError": "make room on the disk of the node that the message names: Ray's objects spill there, below "
    "/tmp/ray unless its --temp-dir is another",
    "ActorDiedError": f"{KILLED}; a learner whose log ends with `Timeout` and stacks was slower than its "
    "learner.timeout_seconds, and needs a higher one in a new run",
    "WorkerCrashedError": KILLED,
    "NodeDiedError": "a node was lost; nothing but a new attempt is needed",
    "OSError": "look at the disk or the network that the message names",
}
"""By the name of the exception's class, or of one that it derives from."""

DIVERGENCE = {"NonFiniteGradientError", "NonFiniteScoreError"}
"""Exceptions, by name, with which a run ends whose learning rate was too high for it; another attempt ends alike."""

OTHER_ADVICE = "look at the details; what a machine or a network did needs nothing but a new attempt"


class FailureNote(NamedTuple):
    """What the caller of a worker met.

    Attributes:
        reason: class and message of the exception.
        kinds: names of its class and of those that this derives from.
        where: which call it was, innermost first.
        stack: its traceback.
    """

    reason: str
    kinds: tuple[str, ...]
    where: tuple[str, ...]
    stack: str


@dataclass(frozen=True)
class FailureReport:
    """Four short answers."""

    what: str
    where: str
    how_often: str
    what_to_do: str

    def text(self) -> str:
        """The report, the reason first."""
        answers = {"where": self.where, "how often": self.how_often, "what to do": self.what_to_do}
        return "\n".join([self.what, *(f"{question}: {answer}" for question, answer in answers.items())])


def note_of(error: BaseException, *where: str) -> FailureNote:
    """A note of an exception: its own notes (`add_note`) say where it was raised, and `where` what was around that."""
    kinds = tuple(kind.__name__ for kind in type(error).__mro__)
    stack = "".join(traceback.format_exception(error))
    return FailureNote(f"{kinds[0]}: {error}", kinds, (*getattr(error, "__notes__", ()), *where), stack)


def failure_report(notes: Sequence[FailureNote], fleets: Iterable[Mapping[str, Any]]) -> FailureReport:
    """The report of a run that ended with the first of `notes`.

    Args:
        notes: all that was noted since the run was started or taken up, oldest first; at least one.
        fleets: the counters of its fleets, the fields of a `FleetStats`.
    """
    first = notes[0]
    return FailureReport(
        what=_shorten(first.reason),
        where=", ".join(first.where) or "in the learner, or around it",
        how_often=_how_often(notes, fleets),
        what_to_do=next((ADVICE[kind] for kind in first.kinds if kind in ADVICE), OTHER_ADVICE),
    )


def _how_often(notes: Sequence[FailureNote], fleets: Iterable[Mapping[str, Any]]) -> str:
    alike = sum(note.kinds[0] == notes[0].kinds[0] for note in notes)
    counts = [f"{alike} call{'s' if alike > 1 else ''} failed like this since the run was started"]
    for stats in fleets:
        losses = [f"{stats[counter]} {name}" for counter, name in LOSSES.items() if stats[counter]]
        if losses:
            counts.append(f"{stats['name']} workers: {', '.join(losses)}")
    return "; ".join(counts)


def _shorten(text: str) -> str:
    lines = text.splitlines()
    if len(lines) > LONGEST_REASON_LINES:
        half = LONGEST_REASON_LINES // 2
        lines = [*lines[:half], "...", *lines[-half:]]
    return "\n".join(lines)
