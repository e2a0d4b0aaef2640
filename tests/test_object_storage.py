"""Run folders in a bucket: an S3 server on loopback holds what a disk would, and a run is taken up from there."""

import json
import re
import shutil
import time
from functools import partial
from pathlib import Path
from threading import Thread

import boto3
import numpy as np
import pytest
import yaml
from eventually import PATIENCE_S, wait_until
from job_runs import ITERATIONS, REPOSITORY, FinishedJob, write_run_config
from moto.server import ThreadedMotoServer
from run_folders import write_run_folder
from s3_server import Bucket
from settings import miniature_settings, miniature_values

from actors.cluster import ClusterInfo
from actors.failure import RunFailedError
from actors.journal import Journal
from jobs.align import main, resume_settings
from jobs.status import main as show_status
from pipeline.bucket_lock import Rhythm, held_alone_in_bucket
from pipeline.checkpoint_store import CheckpointStore, FoundCheckpoint
from pipeline.object_storage import ONLY_ADDED_TO, Mirror, exists, folder_to_read, read_text, working_folder
from pipeline.patience import NO_PATIENCE, Patience, StorageError

pytest_plugins = ["model_fixtures", "job_fixtures", "s3_server"]


def keys(prefix: str) -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
    return sorted(entry["Key"].removeprefix(prefix) for entry in found if not entry["Key"].endswith("/"))


def damage(key: str) -> None:
    boto3.client("s3").put_object(Bucket="bucket", Key=key, Body=b"damaged")


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_checkpoints_in_a_bucket_are_those_on_a_disk(bucket):
    boto3.client("s3").put_object(Bucket="bucket", Key="kept/config.yaml", Body=b"")
    store = CheckpointStore(f"{bucket}/kept/checkpoints", keep=2)
    assert store.newest() == FoundCheckpoint(None, None)
    for iteration in (1, 2, 3):
        store.save(iteration, {"a": bytes([iteration])})
    assert store.newest() == FoundCheckpoint("iteration_000003", {"a": b"\3"})
    assert keys("kept/checkpoints/") == [
        f"iteration_00000{iteration}/{name}" for iteration in (2, 3) for name in ("a", "manifest.json")
    ]
    damage("kept/checkpoints/iteration_000003/a")
    assert store.newest().files == {"a": b"\2"}
    store.save(3, {"a": b"\3"})
    assert store.newest().files == {"a": b"\3"}


def test_what_changed_is_pushed_and_what_a_resumed_run_needs_is_fetched(bucket, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, {"config.yaml": "seed: 1", "prompts/train.txt": "a cat", "records/0": "", ".half": "", ".a/b": ""})
    mirror = Mirror(here, f"{bucket}/pushed", NO_PATIENCE)
    mirror.push()
    assert keys("pushed/") == ["config.yaml", "prompts/train.txt", "records/0"]
    boto3.client("s3").delete_object(Bucket="bucket", Key="pushed/config.yaml")
    write(here, {"prompts/train.txt": "a dog"})
    mirror.push()
    assert keys("pushed/") == ["prompts/train.txt", "records/0"], "a file that stayed as it was is not copied again"
    Mirror(there, f"{bucket}/pushed", NO_PATIENCE, leave_out=ONLY_ADDED_TO).fetch()
    assert [path.name for path in there.rglob("*") if path.is_file()] == ["train.txt"]
    assert (there / "prompts" / "train.txt").read_text() == "a dog"


def fail_in(location: str) -> None:
    with working_folder(location, 0) as folder:
        write(folder, {"error.log": "division", "tensorboard/events": "the journal's"})
        raise ZeroDivisionError


def test_a_working_folder_leaves_what_was_done_even_if_it_fails(bucket):
    location = f"{bucket}/working"
    with pytest.raises(ZeroDivisionError):
        fail_in(location)
    assert keys("working/") == ["error.log"]
    assert exists(location) and read_text(f"{location}/error.log") == "division"
    assert not exists(f"{bucket}/nowhere")
    with working_folder(location, 0) as folder:
        assert (folder / "error.log").read_text() == "division"


def test_what_a_bucket_refuses_at_the_end_stays_on_this_disk(bucket, monkeypatch):
    location = f"{bucket}/refused"
    with pytest.raises(StorageError) as refused:
        lose_the_store_in(location, monkeypatch)
    _, _, folder = str(refused.value).partition("what is missing there stays in ")
    assert (Path(folder) / "adapter" / "weights").read_text() == "learnt"
    shutil.rmtree(folder)


def lose_the_store_in(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_folder(location, 0) as folder:
        write(folder, {"adapter/weights": "learnt"})
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")


def test_a_path_is_its_own_working_folder(tmp_path):
    with working_folder(str(tmp_path), 0) as folder:
        assert folder == tmp_path


def test_a_bucket_that_does_not_exist_is_refused(bucket):
    assert not exists("s3://none/runs")
    folder = working_folder("s3://none/runs", 60)
    with pytest.raises(ValueError, match=r"s3://none/runs cannot be used: .* must lie in a bucket that exists"):
        folder.__enter__()


def test_a_journal_keeps_the_bucket_up_to_date(bucket, tmp_path):
    write(tmp_path, {"config.yaml": "seed: 1"})
    journal = Journal(str(tmp_path), miniature_settings(Path("a-model"), name="journal", output_dir=bucket))
    journal.begin(0)
    for iteration in range(2):
        journal.record({"iteration": iteration, "reward": 0.5})
        lines = read_text(f"{bucket}/journal/metrics.jsonl").splitlines()
        assert [json.loads(line)["iteration"] for line in lines] == list(range(iteration + 1))
    journal.save_grid(2, np.zeros((4, 8, 8, 3), dtype=np.uint8))
    assert {key.split("/")[0] for key in keys("journal/")} == {"config.yaml", "metrics.jsonl", "samples", "tensorboard"}


def test_a_journal_pushes_nothing_that_lies_there_already(bucket, tmp_path):
    """An error of the run's past would look younger than the environment in which it was taken up."""
    location = f"{bucket}/taken-up"
    write(tmp_path / "past", {"error.log": "division", "environment.json": "{}", "config.yaml": "seed: 1"})
    Mirror(tmp_path / "past", location, NO_PATIENCE).push()
    Mirror(tmp_path / "present", location, NO_PATIENCE).fetch()
    times = {key: boto3.client("s3").head_object(Bucket="bucket", Key=f"taken-up/{key}") for key in keys("taken-up/")}
    time.sleep(1.1)  # the store's clock has seconds
    write(tmp_path / "present", {"environment.json": "{} "})
    settings = miniature_settings(Path("a-model"), name="taken-up", output_dir=bucket, tracking=[])
    Journal(str(tmp_path / "present"), settings).begin(0)
    changed = {
        key
        for key, before in times.items()
        if boto3.client("s3").head_object(Bucket="bucket", Key=f"taken-up/{key}")["LastModified"]
        != before["LastModified"]
    }
    assert changed == {"environment.json"}


def test_a_copy_of_a_run_in_a_bucket_is_taken_up_where_it_lies(bucket, tmp_path):
    values = miniature_values(Path("a-model"), name="copied", output_dir=f"{bucket}/runs")
    write(tmp_path / "mine", {"config.yaml": yaml.safe_dump(values)})
    settings, location = resume_settings(f"{tmp_path / 'mine'}/")
    assert (settings.location, location) == (str(tmp_path / "mine"), str(tmp_path / "mine"))


def test_a_store_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    write(tmp_path, {"config.yaml": ""})
    with pytest.raises(StorageError, match="could not write into s3://bucket/run, tried again for 0 s"):
        Mirror(tmp_path, "s3://bucket/run", NO_PATIENCE).push()
    with pytest.raises(ValueError, match=r"s3://bucket/run cannot be used: .*Could not connect"):
        exists("s3://bucket/run")


def test_a_store_that_is_down_for_a_while_is_waited_for(bucket, tmp_path, monkeypatch, caplog):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, {"config.yaml": "seed: 1"})
    # Another server of the same objects, which the other tests do not miss.
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    mirror = Mirror(here, f"{bucket}/waited", Patience(PATIENCE_S))
    mirror.push()
    server.stop()
    write(here, {"checkpoints/0": "weights"})
    back = ThreadedMotoServer(ip_address=host, port=port, verbose=False)
    pushing = Thread(target=mirror.push)
    pushing.start()
    try:
        told = f"could not write into {bucket}/waited: "
        wait_until(lambda: any(m.startswith(told) and "trying again in" in m for m in caplog.messages))
        back.start()
        pushing.join()
        Mirror(there, f"{bucket}/waited", NO_PATIENCE).fetch()
    finally:
        back.stop()
    assert (there / "checkpoints" / "0").read_text() == "weights" and (there / "config.yaml").is_file()


def test_where_a_run_in_a_bucket_stands_is_told_by_its_objects(bucket, tmp_path, capsys, monkeypatch):
    """What is not read is not fetched: of a checkpoint's weights and of what was drawn there is nothing here."""
    location, folder = f"{bucket}/standing", write_run_folder(tmp_path / "run", [1.0, 2.5])
    position = json.dumps({"next_iteration": 2, "policy_version": 2, "seconds": 20.0})
    write(folder, {f"checkpoints/iteration_000002/{name}": position for name in ("position.json", "manifest.json")})
    write(folder, {"checkpoints/iteration_000002/learner.safetensors": "weights", "report.html": "page"})
    Mirror(folder, location, NO_PATIENCE).push()
    show_status([location])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == location and "2 of 24 (128 trajectories)" in lines[1]
    assert re.search(r"it last wrote \d+ s ago", lines[2]) and re.search(r"after iteration 2, \d+ s old", lines[4])
    assert f"python jobs/align.py --resume {location} (goes on after iteration 2)" in lines[6]
    with folder_to_read(location, lambda name: name.endswith("position.json")) as copy:
        assert [path.name for path in copy.rglob("*") if path.is_file()] == ["position.json"]
    with pytest.raises(SystemExit, match=f"{bucket}/nothing is no run folder: it has no config.yaml"):
        show_status([f"{bucket}/nothing"])


@pytest.mark.slow
def test_a_run_in_a_bucket_is_taken_up_from_there(
    bucket: str,
    ray_session: ClusterInfo,
    undisturbed_run: tuple[FinishedJob, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As if a run had been killed in its last iteration, while the checkpoint was written, and its disk were lost."""
    finished, location = undisturbed_run[1], f"{bucket}/runs/bucketed"
    Mirror(finished, location, NO_PATIENCE).push()
    for key in keys("runs/bucketed/"):
        if key.startswith(("adapter", "evaluation", "summary", "report")):
            boto3.client("s3").delete_object(Bucket="bucket", Key=f"runs/bucketed/{key}")
    damage(f"runs/bucketed/checkpoints/iteration_{ITERATIONS:06d}/learner.safetensors")
    monkeypatch.chdir(REPOSITORY)
    main(["--resume", location])
    assert f"adapter in {location}/adapter, report in {location}/report.html" in capsys.readouterr().out
    expected, found = (
        [(line["iteration"], line["adapter_sha256"]) for line in map(json.loads, text.splitlines())]
        for text in ((finished / "metrics.jsonl").read_text(), read_text(f"{location}/metrics.jsonl"))
    )
    assert found == expected and len(found) == ITERATIONS
    made = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    assert set(keys("runs/bucketed/")) >= made


@pytest.mark.slow
def test_a_run_whose_bucket_goes_away_stops_and_is_taken_up_when_it_is_back(
    bucket: Bucket,
    ray_session: ClusterInfo,
    undisturbed_run: tuple[FinishedJob, Path],
    miniature_model: Path,
    miniature_clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It leaves everything there that the run on a disk leaves on that."""
    config, location = write_run_config(tmp_path, miniature_model, miniature_clip), f"{bucket}/begun/guided"
    monkeypatch.chdir(REPOSITORY)
    # The driver that ends cannot say so any more.
    quick = partial(held_alone_in_bucket, rhythm=Rhythm(silence=1.0))
    monkeypatch.setattr("pipeline.object_storage.held_alone_in_bucket", quick)
    outage = Thread(target=go_away_after_a_checkpoint, args=(bucket, f"{location}/checkpoints/iteration_000002"))
    outage.start()
    with pytest.raises(SystemExit) as stopped:
        main(["--config", str(config), f"output_dir={bucket}/begun", "checkpoint.retry_seconds=1"])
    outage.join()
    told = f"{capsys.readouterr().err}{stopped.value.code}"
    assert f"continue with: python jobs/align.py --resume {location}" in told
    assert "tried again for 1 s" in told and "what is missing there stays in" in told
    bucket.come_back()
    assert not exists(f"{location}/adapter")

    main(["--resume", location])
    on_disk, in_bucket = (
        [(line["iteration"], line["adapter_sha256"]) for line in map(json.loads, text.splitlines())]
        for text in ((undisturbed_run[1] / "metrics.jsonl").read_text(), read_text(f"{location}/metrics.jsonl"))
    )
    assert in_bucket == on_disk and len(in_bucket) == ITERATIONS
    assert not (tmp_path / "guided").exists()
    expected = {
        *("config.yaml", "environment.json", "prompts.json", "log.jsonl", "report.html", "summary.json"),
        *("adapter/pytorch_lora_weights.safetensors", "before_after.png", "samples/iteration_000000.png"),
        *(f"checkpoints/iteration_{ITERATIONS:06d}/manifest.json", "records/iteration_000000_worker_000.parquet"),
    }
    found = keys("begun/guided/")
    assert expected <= set(found) and any(key.startswith("tensorboard/") for key in found)


def go_away_after_a_checkpoint(bucket: Bucket, checkpoint: str) -> None:
    wait_until(lambda: exists(f"{checkpoint}/manifest.json"))
    bucket.go_away()


@pytest.mark.slow
def test_a_run_in_a_bucket_can_be_resumed_before_its_first_iteration(
    bucket: str, ray_session: ClusterInfo, miniature_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed while the actors are asked for; before that, another one was killed that left an empty folder."""
    boto3.client("s3").put_object(Bucket="bucket", Key="early/miniature/", Body=b"")
    config = tmp_path / "config.yaml"
    values = miniature_values(miniature_model, name="miniature", output_dir=f"{bucket}/early")
    config.write_text(yaml.safe_dump(values))
    found: list[str] = []

    def be_killed(*_: object) -> None:
        found.extend(keys("early/miniature/"))
        raise RunFailedError("killed")

    monkeypatch.setattr("actors.alignment.align", be_killed)
    with pytest.raises(SystemExit):
        main(["--config", str(config)])
    assert {"config.yaml", "environment.json", "prompts.json"} <= set(found)
    settings, location = resume_settings(f"{bucket}/early/miniature")
    assert (settings.name, location) == ("miniature", f"{bucket}/early/miniature")


def test_records_that_are_made_again_leave_the_bucket(bucket, tmp_path):
    settings = miniature_settings(Path("a-model"), name="records", output_dir=bucket, records={"save": True})
    names = [
        f"records/iteration_{iteration:06d}_worker_{rank:03d}.parquet" for iteration in (0, 1, 2) for rank in (0, 1)
    ]
    write(tmp_path, dict.fromkeys(names, "two learners'"))
    Mirror(tmp_path, f"{bucket}/records", NO_PATIENCE).push()
    for name in names:
        (tmp_path / name).unlink()  # as on the disk of the machine that takes the run up
    Journal(str(tmp_path), settings).begin(1)
    assert [key for key in keys("records/") if key.startswith("records/")] == names[:2]


def test_a_run_that_is_there_already_is_not_begun_anew(bucket: str, miniature_model: Path, tmp_path: Path) -> None:
    boto3.client("s3").put_object(Bucket="bucket", Key="runs/taken/config.yaml", Body=b"")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(miniature_values(miniature_model, name="taken", output_dir=f"{bucket}/runs")))
    with pytest.raises(
        SystemExit, match="s3://bucket/runs/taken exists; continue it by --resume s3://bucket/runs/taken"
    ):
        main(["--config", str(config)])
