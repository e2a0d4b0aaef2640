"""Trackers: what a configuration may ask for, and a run taken up again that goes on where it was, in their stores."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from event_files import read_events, read_wandb_records
from mlflow.tracking import MlflowClient
from settings import miniature_settings
from wandb.proto.wandb_internal_pb2 import Record

from actors.journal import Journal
from pipeline.config import RunSettings
from pipeline.tracking.trackers import DISTRIBUTIONS, Trackers, check_trackers


def settings_with(*tracking: Any) -> RunSettings:
    return miniature_settings(Path("a-model"), tracking=list(tracking))


def metrics_of(iteration: int) -> dict[str, Any]:
    return {"iteration": iteration, "reward": 0.5 * iteration, "reward/a + b": 1.0, "step_gap": [0.25, 0.75]}


def record(journal: Journal, *iterations: int) -> None:
    for iteration in iterations:
        journal.record(metrics_of(iteration))


# What a configuration may ask for


def test_a_tracker_is_named_alone_or_as_a_section():
    settings = settings_with("tensorboard", {"name": "wandb", "mode": "offline"}, {"name": "mlflow", "uri": "file:/a"})
    assert [tracker.name for tracker in settings.tracking] == ["tensorboard", "wandb", "mlflow"]
    assert settings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("tracking", "message"),
    [
        (["tensorbord"], "tracking.0.name='tensorbord' is unknown; known are 'tensorboard', 'wandb', 'mlflow'"),
        (["mlflow"], "setting tracking.0.uri is missing"),
        ([{"name": "wandb", "projct": "p"}], "unknown setting tracking.0.projct; did you mean project?"),
        (["wandb", {"name": "wandb", "project": "p"}], "tracking lists wandb twice"),
        ([{"name": "mlflow", "uri": "http://me:secret@host"}], "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_what_cannot_be_meant_is_refused(tracking, message):
    with pytest.raises(ValueError, match="tracking") as refusal:
        settings_with(*tracking)
    assert message in str(refusal.value)


def test_a_password_in_a_refused_uri_is_not_repeated():
    with pytest.raises(ValueError, match="password") as refusal:
        settings_with({"name": "mlflow", "uri": "http://me:open-sesame@host"})
    assert "open-sesame" not in str(refusal.value)


@pytest.mark.parametrize("tracker", ["wandb", {"name": "mlflow", "uri": "file:/a"}])
def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(tracker, monkeypatch):
    settings = settings_with(tracker)
    name = settings.tracking[0].name
    monkeypatch.setitem(DISTRIBUTIONS, name, "nothing-of-this-name")
    with pytest.raises(ValueError, match=rf"pip install '\.\[{name}\]'"):
        check_trackers(settings.tracking)


def test_weights_and_biases_on_line_needs_an_account(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ValueError, match="nobody is logged in; run `wandb login`"):
        check_trackers(settings_with("wandb").tracking)
    check_trackers(settings_with({"name": "wandb", "mode": "offline"}).tracking)


def test_a_place_that_mlflow_does_not_know_is_refused():
    with pytest.raises(ValueError, match="uri='gopher://host', which cannot be used"):
        check_trackers(settings_with({"name": "mlflow", "uri": "gopher://host"}).tracking)


# TensorBoard's files


def test_tensorboard_has_every_iteration_once(tmp_path):
    for first, iterations in ((0, (0, 1)), (2, (2, 3))):
        journal = Journal(str(tmp_path), settings_with("tensorboard"))
        journal.begin(first)
        record(journal, *iterations)
        journal.close(succeeded=False)
    events = [event for file in (tmp_path / "tensorboard").iterdir() for event in read_events(file)]
    steps = [event.step for event in events for value in event.summary.value if value.tag == "step_gap/1"]
    assert sorted(steps) == [0, 1, 2, 3]


def test_without_trackers_the_metrics_are_kept_all_the_same(tmp_path):
    journal = Journal(str(tmp_path), settings_with())
    journal.begin(0)
    record(journal, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


class Tracked:
    """Tells how it was closed; one on a full disk cannot even say so."""

    def __init__(self, disk_is_full: bool) -> None:
        self.disk_is_full = disk_is_full
        self.closed: list[bool] = []

    def close(self, succeeded: bool) -> None:
        if self.disk_is_full:
            raise OSError("no space left on device")
        self.closed.append(succeeded)


def test_a_tracker_that_cannot_be_closed_keeps_no_other_open(caplog):
    other = Tracked(disk_is_full=False)
    Trackers([Tracked(disk_is_full=True), other]).close(succeeded=True)
    assert other.closed == [True]
    assert "no space left on device" in caplog.text


# MLflow's files


@pytest.fixture
def mlflow_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for the client that a test looks with, before any run
    return settings_with({"name": "mlflow", "uri": f"file:{tmp_path / 'mlruns'}"})


def mlflow_steps(settings: RunSettings, metric: str = "reward") -> list[tuple[int, float]]:
    """Step and value of a metric of the only run, as they were logged."""
    client = MlflowClient(tracking_uri=settings.tracking[0].uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tailorpo").experiment_id])
    assert run.info.run_name == settings.name and run.data.params["learner.betas.1"] == "0.999"
    return [(entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, metric)]


def test_a_run_taken_up_again_is_the_same_run_of_mlflow(mlflow_settings, tmp_path):
    interrupted = Journal(str(tmp_path), mlflow_settings)
    interrupted.begin(0)
    record(interrupted, 0, 1, 2)  # its checkpoint holds two iterations; it is killed here
    resumed = Journal(str(tmp_path), mlflow_settings)
    resumed.begin(2)
    record(resumed, 2, 3)
    resumed.begin(3)  # the learner was lost, the journal was not
    record(resumed, 3, 4)
    resumed.close(succeeded=True)
    assert mlflow_steps(mlflow_settings) == [(iteration, 0.5 * iteration) for iteration in range(5)]
    assert mlflow_steps(mlflow_settings, "step_gap.1") == [(iteration, 0.75) for iteration in range(5)]
    assert len(mlflow_steps(mlflow_settings, "reward.a _ b")) == 5


def test_the_end_of_a_run_is_told(mlflow_settings, tmp_path):
    client = MlflowClient(tracking_uri=mlflow_settings.tracking[0].uri)
    states = []
    for succeeded in (False, True):
        journal = Journal(str(tmp_path), mlflow_settings)
        journal.begin(0)
        (run,) = client.search_runs([client.get_experiment_by_name("tailorpo").experiment_id])
        states.append(run.info.status)
        journal.close(succeeded)
        states.append(client.get_run(run.info.run_id).info.status)
    assert states == ["RUNNING", "FAILED", "RUNNING", "FINISHED"]


def test_a_store_that_is_away_for_a_while_is_given_what_it_missed(mlflow_settings, tmp_path, caplog):
    journal = Journal(str(tmp_path), mlflow_settings)
    journal.begin(0)
    record(journal, 0)
    # MLflow's files say in a plain Exception that they are gone.
    (tmp_path / "mlruns").rename(tmp_path / "away")
    with caplog.at_level(logging.WARNING):
        record(journal, 1, 2)
    assert [entry.message.count("did not take iteration 1") for entry in caplog.records].count(1) == 2
    assert [line["iteration"] for line in journal.metrics.read()] == [0, 1, 2]
    (tmp_path / "away").rename(tmp_path / "mlruns")
    record(journal, 3)
    assert [step for step, _ in mlflow_steps(mlflow_settings)] == [0, 1, 2, 3]


def test_an_iteration_that_a_kill_kept_from_a_tracker_is_given_later(mlflow_settings, tmp_path):
    killed = Journal(str(tmp_path), mlflow_settings)
    killed.begin(0)
    record(killed, 0)
    killed.metrics.append(metrics_of(1))  # the kill came after the metrics and before the tracker
    resumed = Journal(str(tmp_path), mlflow_settings)
    resumed.begin(2)
    record(resumed, 2)
    assert [step for step, _ in mlflow_steps(mlflow_settings)] == [0, 1, 2]


# The files of Weights & Biases off line


def test_a_run_taken_up_again_is_the_same_run_of_weights_and_biases(tmp_path):
    settings = settings_with({"name": "wandb", "mode": "offline", "project": "p"})
    interrupted = Journal(str(tmp_path), settings)
    interrupted.begin(0)
    record(interrupted, 0, 1, 2)
    interrupted.close(succeeded=False)
    time.sleep(1)  # folders are named by the second
    resumed = Journal(str(tmp_path), settings)
    resumed.begin(2)
    record(resumed, 2, 3)
    resumed.close(succeeded=True)
    files = wandb_files(tmp_path)
    assert len(files) == 2 and len({file.name for file in files}) == 1
    first, second = (list(read_wandb_records(file)) for file in files)
    assert [steps_of(records) for records in (first, second)] == [[0, 1, 2], [3]]
    for records, exit_code in ((first, 1), (second, 0)):
        (run,) = (entry.run for entry in records if entry.HasField("run"))
        assert (run.display_name, run.project) == (settings.name, "p")
        assert any(item.key == "seed" and item.value_json == "7" for item in run.config.update)
        (end,) = (entry.exit for entry in records if entry.HasField("exit"))
        assert end.exit_code == exit_code


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from actors.journal import Journal
from test_tracking import record, settings_with

journal = Journal(sys.argv[1], settings_with({"name": "wandb", "mode": "offline", "project": "p"}))
journal.begin(0)
record(journal, 0, 1, 2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_weights_and_biases_are_given_again_what_a_killed_journal_took_with_it(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    killed = subprocess.run([sys.executable, "-c", KILLED_RUN, str(tmp_path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    kept = {step for file in wandb_files(tmp_path) for step in steps_of(list(read_wandb_records(file)))}
    resumed = Journal(str(tmp_path), settings_with({"name": "wandb", "mode": "offline", "project": "p"}))
    resumed.begin(2)
    record(resumed, 2, 3)
    resumed.close(succeeded=True)
    later = {*steps_of(list(read_wandb_records(wandb_files(tmp_path)[-1])))}
    assert kept | later == {0, 1, 2, 3}


def wandb_files(run_folder: Path) -> list[Path]:
    return sorted((run_folder / "wandb").glob("offline-run-*/*.wandb"))


def steps_of(records: list[Record]) -> list[int]:
    return [entry.history.step.num for entry in records if entry.HasField("history")]
