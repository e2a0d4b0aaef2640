"""No secret in what a run leaves behind: settings with one are refused, texts redacted, and a whole run is searched."""

import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from job_runs import REPOSITORY, FinishedJob
from secret_search import assert_no_secret_shows, files_left_behind
from settings import miniature_values

from actors.failure import RunFailedError, explain_failure, note_failure
from jobs.quiet import one_readable_message
from pipeline.config_loading import load_settings, parse_settings
from pipeline.redacted_errors import errors_without_secrets
from pipeline.rewards.base import RewardError
from pipeline.run_description import describe_run
from pipeline.run_folder import CONFIG_FILE
from pipeline.secrets import redact, redact_values

pytest_plugins = ["model_fixtures", "job_fixtures"]

SECRET = "hunter2-hunter2"
MODEL = Path("models/demo")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> str:
    """A secret in the environment, as trackers and clouds want theirs."""
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    return SECRET


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:hunter2@host:8000/score", "http://***@host:8000/score"),
        ("s3://KEY:hunter2@bucket/runs: denied", "s3://***@bucket/runs: denied"),
        ("at https://:hunter@2@host/", "at https://***@host/"),
        ("https://host/score?size=3&api_key=hunter2#top", "https://host/score?size=3&api_key=***#top"),
        ("'https://a/b?X-Amz-Signature=hunter2' and more", "'https://a/b?X-Amz-Signature=***' and more"),
        ("https://a/b?access_token=hunter2&x=1", "https://a/b?access_token=***&x=1"),
    ],
)
def test_what_is_secret_in_a_url_is_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8000/score",
        "http://host:8000/mail/a@b?monkey=1&keyword=red",
        "hf://datasets/owner/name@refs/convert/parquet/a.parquet",
        "abfss://container@account.dfs.core.windows.net/runs",
        "a prompt: a red cat @ 10:30, http://a b:c@d",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_values_of_secret_variables_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"A_TOKEN": SECRET, "B_SECRET": f"{SECRET}-longer", "C_PATH": "/usr/bin", "D_KEY": "short"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert redact(f"{SECRET} {SECRET}-longer /usr/bin short") == "*** *** /usr/bin short"
    assert redact_values({"a": [SECRET, 1], "b": (None, True)}) == {"a": ["***", 1], "b": [None, True]}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"output_dir": "s3://KEY:hunter2@bucket/runs"}, r"output_dir is a URI with credentials .*AWS_ACCESS_KEY_ID"),
        (
            {"reward": {"name": "http", "path": "http://user:hunter2@host/score"}},
            r"reward.path='http://\*\*\*@host/score' holds a secret.* ~/.netrc",
        ),
        (
            {"reward": [{"name": "clip"}, {"name": "http", "path": "http://host/score?token=hunter2"}]},
            r"reward.1.path='http://host/score\?token=\*\*\*' holds a secret",
        ),
        ({"model": {"path": f"/models/{SECRET}"}}, r"model.path='/models/\*\*\*' holds the value of .* WANDB_API_KEY,"),
    ],
)
def test_settings_that_hold_a_secret_are_refused_without_showing_it(sections: dict, message: str, planted: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        parse_settings(miniature_values(MODEL, **sections))
    assert "hunter2" not in str(refusal.value)


def test_a_secret_in_the_settings_does_not_show_when_another_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    values = miniature_values(MODEL, output_dir=["s3://KEY:hunter2@bucket/runs"])
    with pytest.raises(SystemExit) as exit_information, one_readable_message():
        parse_settings(values)
    assert "output_dir" in str(exit_information.value) and "hunter2" not in str(exit_information.value)


def test_the_command_in_environment_json_is_redacted(tmp_path: Path, planted: str) -> None:
    command = ["jobs/align.py", f"--token={planted}", "http://user:hunter2@proxy"]
    describe_run(parse_settings(miniature_values(MODEL)), tmp_path, {"command": command})
    shown = json.loads((tmp_path / "environment.json").read_text(encoding="utf-8"))
    assert shown["command"] == ["jobs/align.py", "--token=***", "http://***@proxy"]
    assert load_settings(tmp_path / CONFIG_FILE) == parse_settings(miniature_values(MODEL))


def test_what_a_failure_leaves_behind_is_redacted(tmp_path: Path, planted: str) -> None:
    """As when a server repeats in its answer what it was sent."""
    cause = ConnectionError(f"denied for {planted} by http://user:hunter2@proxy:3128")
    explained = explain_failure(cause, journal=None)
    assert str(explained) == "ConnectionError: denied for *** by http://***@proxy:3128"
    failure = RunFailedError("the run failed")
    failure.__cause__ = cause
    kept = note_failure(failure, tmp_path).read_text(encoding="utf-8")
    assert "ConnectionError: denied for ***" in kept and "hunter2" not in kept


def cleaned(error: Exception, cause: BaseException | None = None) -> Exception:
    """What comes out of a process in which `error` is raised."""
    with pytest.raises(Exception) as caught, errors_without_secrets():  # noqa: PT011  whatever it is
        raise error from cause
    return caught.value


class StrangeError(RewardError):
    """As those of libraries are: its text is its own, one of its attributes cannot be set, and one is a container."""

    def __init__(self, secret: str) -> None:
        super().__init__("no score")
        vars(self)["reason"] = secret
        self.details = {"told": [secret, 3], "by": (secret,), "inner": ValueError(secret)}

    @property
    def reason(self) -> str:
        return str(vars(self)["reason"])

    def __str__(self) -> str:
        return f"no score for {self.details['by'][0]}, {self.reason}"


def test_errors_leave_a_process_without_secrets_and_of_their_own_class(planted: str) -> None:
    error = StrangeError(planted)
    error.add_note(f"asked as {planted}")
    found = cleaned(error, ConnectionError(f"denied for {planted}"))
    assert found is error and str(error) == "no score for ***, ***"
    assert error.details["told"] == ["***", 3] and str(error.details["inner"]) == "***"
    shown = "".join(traceback.format_exception(found))
    assert "ConnectionError: denied for ***" in shown and "asked as ***" in shown and planted not in shown


@pytest.mark.parametrize(
    "error",
    [
        OSError("models/x is no folder"),
        OSError(28, "No space left on device"),
        FileNotFoundError(2, "No such file", "/mnt/a", None, "/mnt/b"),
        TimeoutError("timed out"),
        RewardError("no score", 3, {"a": 1}),
        ExceptionGroup("several", [ValueError("one"), OSError(5, "two")]),
    ],
    ids=repr,
)
def test_errors_without_secrets_stay_as_they_are(error: Exception, planted: str) -> None:
    before = ("".join(traceback.format_exception_only(error)), error.args)
    assert cleaned(error) is error
    assert ("".join(traceback.format_exception_only(error)), error.args) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda secret: OSError(f"no folder {secret}"),
        lambda secret: OSError(5, f"cannot read with {secret}", f"/mnt/{secret}", None, f"/to/{secret}"),
        lambda secret: ExceptionGroup("several", [ValueError(secret), OSError(5, secret)]),
        lambda secret: SyntaxError("no", ("file", 1, 1, secret)),
    ],
)
def test_errors_of_every_shape_lose_their_secrets(make: Callable[[str], Exception], planted: str) -> None:
    error = make(planted)
    assert planted in "".join(traceback.format_exception(error))
    found = cleaned(error)
    assert planted not in "".join(traceback.format_exception(found))
    assert type(found) is type(error) or isinstance(found, RuntimeError)


def test_an_error_whose_text_is_out_of_reach_is_replaced_and_what_is_behind_it_told(planted: str) -> None:
    class SealedError(Exception):
        def __str__(self) -> str:
            return f"sealed {planted}"

    found = cleaned(ValueError("outer"), SealedError())
    assert str(found) == "outer" and planted not in "".join(traceback.format_exception(found))
    found = cleaned(SealedError(), ValueError(f"inner {planted}"))
    shown = "".join(traceback.format_exception(found))
    assert "RuntimeError: SealedError: sealed ***" in shown and "ValueError: inner ***" in shown
    assert planted not in shown


def test_an_error_that_goes_round_in_a_circle_is_redacted_once(planted: str) -> None:
    first, second = ValueError(planted), ValueError(planted)
    second.__cause__ = first
    assert str(cleaned(first, second)) == "***" and str(second) == "***"


TERMINAL_JOB = """
import logging, os, threading
from jobs.quiet import one_readable_message
with one_readable_message():
    logging.getLogger("pipeline.patience").warning("could not write: %s", os.environ["WANDB_API_KEY"])
    threading.Thread(target=int, args=[os.environ["WANDB_API_KEY"]]).start()
    raise RuntimeError("a defect at http://user:" + os.environ["WANDB_API_KEY"] + "@host/")
"""


def test_neither_lines_nor_a_defect_show_a_secret_on_the_terminal(planted: str) -> None:
    """Of a submitted job it is a file that Ray keeps, and its dashboard shows."""
    job = subprocess.run([sys.executable, "-c", TERMINAL_JOB], cwd=REPOSITORY, capture_output=True, text=True)
    assert job.returncode == 1
    assert "WARNING could not write: ***" in job.stderr
    assert "Traceback" in job.stderr and "RuntimeError: a defect at http://***@host/" in job.stderr
    assert "in a thread: Traceback" in job.stderr and "invalid literal for int() with base 10: '***'" in job.stderr
    assert planted not in job.stdout + job.stderr


@pytest.mark.slow
def test_no_file_of_a_run_and_no_line_it_printed_shows_a_secret_of_its_environment(
    undisturbed_run: tuple[FinishedJob, Path],
) -> None:
    job, folder = undisturbed_run
    logs = Path(json.loads((folder / "environment.json").read_text())["cluster"]["log_directory"])
    files = files_left_behind(folder, logs)
    assert any(path.name.startswith("worker-") for path in files)
    names = {path.name for path in files}
    assert {"config.yaml", "environment.json", "report.html", "metrics.jsonl", "training.json"} <= names
    assert_no_secret_shows(job, files)


@pytest.mark.slow
def test_no_file_of_a_run_is_a_pickle(undisturbed_run: tuple[FinishedJob, Path]) -> None:
    """Neither a bare one, which begins with its protocol, nor an archive as torch.save writes them."""
    for path in undisturbed_run[1].rglob("*"):
        if path.is_file():
            start = path.read_bytes()[:4]
            assert not (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"), path
            assert start != b"PK\x03\x04", path
            assert path.suffix not in (".pkl", ".pickle", ".pt", ".pth", ".bin"), path
