"""When a fleet gives up on workers that do not start, and for how long it pauses before."""

import time

from actors.start_failures import LOADING_S, LONGEST_PAUSE_S, StartFailures


def count(failures: StartFailures, *, crashed: bool = False, serve: bool = False, loading: tuple[float, ...] = ()):
    return failures.count(crashed, serve, loading)


def test_constructors_that_raise_are_tried_again_at_once_and_given_up_soon():
    failures = StartFailures(3, max_workers=4)
    assert [count(failures) for _ in range(3)] == [0.0, 0.0, None]
    assert failures.in_a_row == 3


def test_crashes_get_pauses_and_as_many_more_attempts_as_there_are_workers():
    failures = StartFailures(3, max_workers=4)
    pauses = [count(failures, crashed=True) for _ in range(12)]
    assert pauses[:8] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S] and pauses[-1] is None
    assert None not in pauses[:-1]


def test_where_others_serve_nothing_is_counted():
    failures = StartFailures(1, max_workers=1)
    assert [count(failures, serve=True) for _ in range(3)] == [0.5, 1.0, 2.0]
    assert failures.in_a_row == 0


def test_others_that_were_on_their_way_before_get_the_time_to_load():
    """One node has no driver, and its worker fails three times while those of the other nodes load their weights."""
    failures = StartFailures(3, max_workers=4)
    loading = (time.monotonic() - 1.0,)
    assert [count(failures, loading=loading) for _ in range(4)] == [0.5, 1.0, 2.0, 4.0]
    assert count(failures, loading=(time.monotonic(),)) is None, "it was started in place of one that failed"
    failures.forget()
    assert count(failures) == 0.0 and failures.in_a_row == 1


def test_what_failed_while_others_served_is_forgotten_when_the_last_of_them_is_lost(monkeypatch):
    failures, start = StartFailures(3, max_workers=4), time.monotonic()
    for minute in range(5):
        monkeypatch.setattr(time, "monotonic", lambda minute=minute: start + 60.0 * minute)
        assert count(failures, serve=True) is not None
    replacement = (start + 299.0,)
    monkeypatch.setattr(time, "monotonic", lambda: start + 300.0)
    assert None not in [count(failures, loading=replacement) for _ in range(4)]


def test_nobody_is_waited_for_for_ever(monkeypatch):
    """It may have found no place, and fail as the others did when it has one."""
    failures = StartFailures(2, max_workers=4)
    loading = (time.monotonic() - 1.0,)
    assert count(failures, loading=loading) == 0.5
    later = time.monotonic() + LOADING_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert count(failures, loading=loading) is None
