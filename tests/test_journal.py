"""Journal: a run folder that tells every iteration once, whatever happened to the run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from ray.util.metrics import Gauge
from settings import miniature_settings

from actors.journal import Journal
from pipeline.checkpoint_store import checkpoints_of_run
from pipeline.failure_report import note_of
from pipeline.prompts import SampleBatch
from pipeline.step_preferences import StepPreferences, records_table

SETTINGS = miniature_settings(Path("a-model"))


def iteration_metrics(iteration: int, reward: float = 0.5) -> dict:
    return {"iteration": iteration, "reward": reward, "step_gap": [0.25, 0.75], "adapter_sha256": "ab"}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(str(tmp_path), SETTINGS)
    journal.begin(0)
    return journal


def test_metrics_are_on_the_disk_as_soon_as_they_are_recorded(journal, tmp_path):
    for iteration in range(2):
        journal.record(iteration_metrics(iteration))
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [iteration_metrics(done) for done in range(iteration + 1)]


def test_since_returns_what_is_new(journal):
    for iteration in range(3):
        journal.record(iteration_metrics(iteration))
    assert [metrics["iteration"] for metrics in journal.since(1)] == [1, 2]
    assert journal.since(3) == []


def test_a_journal_in_place_of_a_dead_one_goes_on_and_writes_every_iteration_once(journal, tmp_path):
    for iteration in range(2):
        journal.record(iteration_metrics(iteration))
    another = Journal(str(tmp_path), SETTINGS)
    assert [metrics["iteration"] for metrics in another.since(1)] == [1]
    assert another.made_since(0) == []
    for iteration in (1, 2):  # the dead one wrote iteration 1, and did not live to say so
        another.record(iteration_metrics(iteration))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [iteration_metrics(iteration) for iteration in range(3)]
    assert [metrics["iteration"] for metrics in another.made_since(0)] == [1, 2]


def test_a_journal_in_place_of_a_dead_one_says_so_and_shows_the_last_checkpoint(journal, tmp_path, monkeypatch, caplog):
    for iteration in range(3):
        journal.record(iteration_metrics(iteration) | {"time": 100.0 + iteration})
    checkpoints_of_run(SETTINGS, tmp_path).save(2, {"position.json": b"2"})
    another = Journal(str(tmp_path), SETTINGS)
    shown: dict[str, float] = {}
    monkeypatch.setattr(Gauge, "set", lambda gauge, value, _: shown.update({gauge.info["name"]: value}))
    another.record(iteration_metrics(3))
    assert shown["tailorpo_last_checkpoint_timestamp_seconds"] == 101.0
    assert caplog.messages.count("the journal was lost; another one goes on") == 1


def test_a_resumed_run_replaces_what_its_checkpoint_does_not_hold(journal, tmp_path):
    for iteration in range(3):
        journal.record(iteration_metrics(iteration))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "rew')  # the process was killed here
    resumed = Journal(str(tmp_path), SETTINGS)
    resumed.begin(2)
    assert [metrics["iteration"] for metrics in resumed.since(0)] == [0, 1]
    assert resumed.made_since(0) == []
    resumed.record(iteration_metrics(2, reward=0.75))
    assert [metrics["iteration"] for metrics in resumed.made_since(0)] == [2]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [iteration_metrics(0), iteration_metrics(1), iteration_metrics(2, reward=0.75)]


def test_a_stop_is_asked_for_once_and_for_all(journal):
    assert journal.stop_requested() is False
    journal.request_stop()
    assert journal.stop_requested() is True


def test_failures_are_kept_in_the_order_they_came(journal):
    for reason in ("first", "second"):
        journal.note_failure(note_of(LookupError(reason), "here"))
    assert [note.reason for note in journal.noted_failures()] == ["LookupError: first", "LookupError: second"]


def test_lines_are_added_to_those_of_an_interrupted_run(journal, tmp_path):
    journal.log('{"message": "100 % done"}')
    Journal(str(tmp_path), SETTINGS).log('{"message": "again"}')
    assert [json.loads(line)["message"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        "100 % done",
        "again",
    ]


def test_a_grid_holds_every_image(journal, tmp_path):
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((1, 4, 6, 3), 50, dtype=np.uint8)
    journal.save_grid(20, images)
    grid = np.asarray(Image.open(tmp_path / "samples" / "iteration_000020.png"))
    assert grid.shape == (2 * 4, 3 * 6, 3)
    assert np.array_equal(grid[4:8, 6:12], images[4])


def test_records_that_are_made_again_by_fewer_learners_leave_none_behind(journal, tmp_path):
    names = [f"iteration_{iteration:06d}_worker_{rank:03d}.parquet" for iteration in (0, 1, 2) for rank in (0, 1)]
    (tmp_path / "records").mkdir()
    for name in names:
        (tmp_path / "records" / name).touch()
    for iteration in range(2):
        journal.record(iteration_metrics(iteration))
    another = Journal(str(tmp_path), SETTINGS)  # in place of one that died; its learner goes on
    another.record(iteration_metrics(2))
    assert len(list((tmp_path / "records").iterdir())) == 6
    another.begin(1)
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == names[:2]


def test_records_are_written_whole(journal, tmp_path):
    latents, scores = torch.arange(24.0).reshape(2, 3, 2, 2), torch.tensor([0.5, 0.25])
    preferences = StepPreferences(
        step=0,
        x_t=latents,
        winner=latents + 1,
        loser=latents + 2,
        reference_mean=latents + 3,
        winner_score=scores,
        loser_score=scores - 1,
        ranked_winner_score=scores,
        reference_log_prob_winner=scores,
        reference_log_prob_loser=scores,
        tie=torch.tensor([False, True]),
        guidance_accepted=None,
        guidance_move=None,
    )
    batch = SampleBatch(iteration=4, samples=(6, 7), prompts=("a red circle", "ein blauer Stern 🌟"))
    journal.save_records(4, 1, records_table([preferences], batch, scores, policy_version=4))
    (file,) = (tmp_path / "records").iterdir()
    assert file.name == "iteration_000004_worker_001.parquet"
    frame = pd.read_parquet(file)
    assert list(frame["prompt"]) == list(batch.prompts) and list(frame["row"]) == [6, 7]
    assert np.array_equal(np.stack(frame["loser"]).reshape(2, 3, 2, 2), latents.numpy() + 2)
    assert frame["guidance_move"].isna().all() and list(frame["tie"]) == [False, True]


def test_an_iteration_that_ray_asks_for_again_is_written_once(journal, tmp_path):
    for iteration in (0, 1, 1):
        journal.record(iteration_metrics(iteration))
    assert [metrics["iteration"] for metrics in journal.since(0)] == [0, 1]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_learner_that_does_not_see_the_checkpoints_drops_nothing(journal, tmp_path):
    for iteration in range(3):
        journal.record(iteration_metrics(iteration))
    checkpoints_of_run(SETTINGS, tmp_path).save(2, {"position.json": b"2"})
    with pytest.raises(ValueError, match=r"iteration 0, but iteration_000002 is in .*: its node does not see"):
        journal.begin(0)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    journal.begin(2)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
