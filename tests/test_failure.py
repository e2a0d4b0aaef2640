"""The one cause of a failure, under the layers that Ray and Python wrap around it."""

import builtins
import pickle
from pathlib import Path

import ray
from ray.exceptions import RayTaskError

from actors.failure import RunFailedError, explain_failure, failure_of, note_failure, root_cause
from pipeline.failure_report import ADVICE, LONGEST_REASON_LINES, OTHER_ADVICE, failure_report, note_of
from pipeline.patience import StorageError
from pipeline.rewards.base import RewardError
from pipeline.run_folder import ERROR_FILE

REPOSITORY = Path(__file__).parents[1]


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("evaluate", "a traceback", cause, proctitle="a worker", pid=1, ip="-")


def test_the_cause_of_a_remote_error_is_found_under_its_layers() -> None:
    cause = ValueError("the fault")
    wrapped = RuntimeError("a layer")
    wrapped.__cause__ = task_error(cause)
    assert root_cause(wrapped) is cause


def test_an_error_that_was_raised_again_from_what_holds_it_is_its_own_cause() -> None:
    """As `call_leased` raises what a method of an actor raised."""
    fault = RuntimeError("reward 'clip' returned nan")
    fault.__cause__ = task_error(fault)
    assert root_cause(fault) is fault
    assert str(explain_failure(fault, journal=None)) == "RuntimeError: reward 'clip' returned nan"
    assert not ray.is_initialized()


def test_a_report_says_what_where_how_often_and_what_to_do() -> None:
    error = RewardError("reward 'clip' returned nan")
    error.add_note("in score on reward-0")
    notes = [note_of(error, "in batch 3 of iteration 0"), note_of(LookupError("other")), note_of(error)]
    fleets = [
        {"name": "rollout", "lost": 0, "hung": 0, "garbled": 0, "failed_starts": 0},
        {"name": "reward", "lost": 2, "hung": 1, "garbled": 0, "failed_starts": 1},
    ]
    what, where, how_often, what_to_do = failure_report(notes, fleets).text().splitlines()
    assert what == "RewardError: reward 'clip' returned nan"
    assert where == "where: in score on reward-0, in batch 3 of iteration 0"
    assert how_often == (
        "how often: 2 calls failed like this since the run was started; reward workers: 2 lost, 1 of them without "
        "an answer in time, 1 failed to start"
    )
    assert what_to_do == f"what to do: {ADVICE['RewardError']}"


def test_advice_follows_from_the_class_or_from_one_that_it_derives_from() -> None:
    assert failure_report([note_of(ConnectionResetError("by peer"))], []).what_to_do == ADVICE["OSError"]
    assert failure_report([note_of(RuntimeError("odd"))], []).what_to_do == OTHER_ADVICE


def test_advice_is_given_for_exceptions_that_exist() -> None:
    ours = "".join(path.read_text() for floor in ("pipeline", "actors") for path in (REPOSITORY / floor).rglob("*.py"))
    known = {*vars(ray.exceptions), *vars(builtins)}
    assert all(name in known or f"class {name}(" in ours for name in ADVICE)


def test_a_long_reason_is_shortened_in_the_middle() -> None:
    lines = failure_report([note_of(RuntimeError("\n".join(map(str, range(100)))))], []).what.splitlines()
    assert len(lines) == LONGEST_REASON_LINES + 1 and lines[-1] == "99" and lines[LONGEST_REASON_LINES // 2] == "..."


def test_the_report_comes_first_in_the_file_that_keeps_every_detail(tmp_path: Path) -> None:
    fault = RewardError("reward 'clip' returned nan")
    fault.__cause__ = task_error(fault)
    failure = explain_failure(fault, journal=None)
    failure.__cause__ = fault
    text = note_failure(failure, tmp_path).read_text(encoding="utf-8")
    assert text.startswith(f"{failure.report}\n\n") and "RayTaskError" in text and "RunFailedError" in text


def test_a_failure_travels_between_processes_as_it_is() -> None:
    failure = RunFailedError("the reason", "the reason\nwhere: here")
    copy = pickle.loads(pickle.dumps(failure))
    assert (str(copy), copy.report) == (str(failure), failure.report)


def test_details_are_kept_or_it_is_said_why_not(tmp_path: Path) -> None:
    failure = failure_of(StorageError("the disk is full"))
    assert failure_of(failure) is failure and ADVICE["StorageError"] in failure.report
    assert note_failure(failure, tmp_path) == tmp_path / ERROR_FILE
    assert "StorageError: the disk is full" in (tmp_path / ERROR_FILE).read_text()
    no_folder = tmp_path / ERROR_FILE
    assert str(note_failure(failure, no_folder)).startswith("not written, for [Errno ")
