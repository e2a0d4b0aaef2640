"""What ends a whole run: scores of a wrong shape, a reward that raises, gradients that are not finite."""

import re
from pathlib import Path

import pytest
from crew_fixtures import fresh, metrics_in
from failing_reward import SECRET_OF_THE_WORKER
from secret_search import contents, files_left_behind
from settings import miniature_settings

from actors.crew import Crew
from actors.failure import LastingFailureError, RunFailedError, explain_failure, note_failure
from actors.inputs import read_inputs
from actors.training import train
from pipeline.config import RunSettings

pytest_plugins = ["crew_fixtures", "model_fixtures"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the reward looks into at each call."""
    file = tmp_path_factory.mktemp("reward") / "fault"
    file.write_text("none", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def settings(miniature_model: Path, fault: Path) -> RunSettings:
    """Restarts are allowed, and none of these failures is worth one."""
    reward = {"name": "failing_reward:FailingReward", "path": str(fault)}
    return miniature_settings(miniature_model, reward=reward, method={"guidance": {}})


def failure_of_a_run(settings: RunSettings, crew: Crew, directory: Path) -> RunFailedError:
    """What the driver makes of a run that ends early."""
    run = fresh(crew, directory, settings)
    with pytest.raises(LastingFailureError) as caught:
        train(settings, read_inputs(settings), run, directory)
    failure = explain_failure(caught.value, run.journal, [run.rollout_fleet, run.reward_fleet])
    failure.__cause__ = caught.value
    note_failure(failure, directory)
    # A restart would begin the first iteration again.
    assert (directory / "log.jsonl").read_text(encoding="utf-8").count("the learner begins") == 1
    assert metrics_in(directory) == []
    return failure


def test_scores_of_a_wrong_shape_stop_the_run_with_the_reward_and_the_prompt(settings, crew, fault, tmp_path):
    fault.write_text("shape", encoding="utf-8")
    failure = failure_of_a_run(settings, crew, tmp_path)
    shape = r"returned the shape \(9,\) instead of \(8,\) for the prompts starting with 'an? "
    assert re.match(f"RewardError: reward 'failing' {shape}", str(failure))


def test_a_secret_in_the_error_of_a_reward_shows_nowhere(settings, crew, fault, tmp_path, ray_session):
    """Not even in the logs of Ray, nor though the process of the reward alone knows it."""
    fault.write_text("secret", encoding="utf-8")
    failure = failure_of_a_run(settings, crew, tmp_path)
    assert str(failure) == "RewardError: no score for who comes with ***"
    session = Path(ray_session.log_directory)
    files = files_left_behind(tmp_path, session)
    told = [path for path in files if b"no score for who comes with" in contents(path)]
    assert {"error.log", "log.jsonl"} <= {path.name for path in told}
    assert any(path.is_relative_to(session) for path in told)
    assert [path for path in files if SECRET_OF_THE_WORKER.encode() in contents(path)] == []


def test_too_many_gradients_that_are_not_finite_stop_the_run(settings, crew, fault, tmp_path):
    """The first step throws the adapter so far that the second one's loss is no number."""
    fault.write_text("none", encoding="utf-8")
    learner = settings.learner.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0, "max_skipped_steps": 0})
    failure = failure_of_a_run(settings.model_copy(update={"learner": learner}), crew, tmp_path)
    assert failure.diverged
    assert "more than learner.max_skipped_steps=0; lower learner.learning_rate" in str(failure)
