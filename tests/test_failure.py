"""The one cause of a failure, under the layers that Ray and Python wrap around it."""

from pathlib import Path

from ray.exceptions import RayTaskError

from actors.failure import ERROR_FILE, explain_failure, note_failure, root_cause


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


def test_details_are_kept_or_it_is_said_why_not(tmp_path: Path) -> None:
    assert note_failure(RuntimeError("the disk is full"), tmp_path) == tmp_path / ERROR_FILE
    assert "RuntimeError: the disk is full" in (tmp_path / ERROR_FILE).read_text()
    no_folder = tmp_path / ERROR_FILE
    assert str(note_failure(RuntimeError("the disk is full"), no_folder)).startswith("not written, for [Errno ")
