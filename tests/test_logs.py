"""Lines of JSON with role, worker and iteration, and where they go."""

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from pipeline.logs import at_iteration, end_lines, log_lines

logger = logging.getLogger("actors.somewhere")


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged meanwhile by the process of a rollout worker."""
    sent: list[str] = []
    handler = log_lines(sent.append, "rollout", "rollout-3")
    yield sent
    end_lines(handler)


def values_of(lines: list[str]) -> list[dict[str, Any]]:
    assert all("\n" not in line for line in lines)
    return [json.loads(line) for line in lines]


def test_a_line_says_who_wrote_it_and_at_which_iteration(lines):
    logger.info("rolled out %d", 8)
    with at_iteration(4):
        logger.warning("ein Blatt fällt:\n🍂")
    logger.debug("not kept")
    logging.getLogger("a.library").error("not ours")
    first, second = values_of(lines)
    assert datetime.fromisoformat(first.pop("time")).utcoffset().total_seconds() == 0
    assert first == {"level": "INFO", "role": "rollout", "worker": "rollout-3", "message": "rolled out 8"}
    assert (second["level"], second["iteration"], second["message"]) == ("WARNING", 4, "ein Blatt fällt:\n🍂")


def test_what_a_record_says_itself_counts_more(lines):
    with at_iteration(4):
        logger.info("lost", extra={"worker": "reward-1", "iteration": 5})
    (line,) = values_of(lines)
    assert (line["worker"], line["iteration"]) == ("reward-1", 5)


def test_batches_that_take_turns_keep_their_iterations_apart(lines):
    async def roll_out(iteration: int) -> None:
        with at_iteration(iteration):
            await asyncio.sleep(0)
            logger.info("done")

    async def both() -> None:
        await asyncio.gather(roll_out(1), roll_out(2))

    asyncio.run(both())
    assert [line["iteration"] for line in values_of(lines)] == [1, 2]


def test_the_stack_of_an_exception_is_kept_in_its_line(lines):
    try:
        raise LookupError("nowhere")
    except LookupError:
        logger.exception("a batch failed")
    (line,) = values_of(lines)
    assert line["exception"].startswith("Traceback") and line["exception"].endswith("LookupError: nowhere")


def test_a_line_that_cannot_be_sent_ends_nothing_and_is_told(capsys):
    def refuse(line: str) -> None:
        raise ConnectionError("the journal is gone")

    handler = log_lines(refuse, "learner", "learner-0")
    logger.info("done")
    end_lines(handler)
    logger.info("nobody listens")
    assert capsys.readouterr().err.count("ConnectionError: the journal is gone") == 1
