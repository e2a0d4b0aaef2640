"""jobs/align.py run as users run it, in a process of its own."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml
from eventually import PATIENCE_S
from settings import miniature_values

REPOSITORY = Path(__file__).resolve().parents[1]
ALIGN, COMPARE = (REPOSITORY / "jobs" / f"{name}.py" for name in ("align", "compare"))

# What tests set for their own process.
NOT_A_USERS = {"RAY_ADDRESS", "PYTHONPATH", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}

# In the environment of a run, as its owner's trackers, clouds and hubs want them; nothing must repeat them.
PLANTED_SECRETS = {
    "WANDB_API_KEY": "planted-0123456789-wandb",
    "AWS_SECRET_ACCESS_KEY": "planted-0123456789-aws",
    "HF_TOKEN": "planted-0123456789-hub",
}

# Emoji, scripts of every kind, and what Markdown, HTML and LaTeX have for marks.
PROMPTS_IN_MANY_SCRIPTS = "tests/prompts_in_many_scripts.txt"

# Guided runs of five iterations that leave a run folder with everything in it.
ITERATIONS = 5


class FinishedJob(NamedTuple):
    """What is left of a process: its exit code, and all that it printed."""

    exit_code: int
    stdout: str
    stderr: str


class RunningJob:
    """A job in a session of its own, with the Ray that it starts."""

    def __init__(
        self,
        *arguments: str | Path,
        directory: Path | None = None,
        script: Path = ALIGN,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in NOT_A_USERS}
        self.process = subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            cwd=directory or REPOSITORY,
            env=environment | dict(variables or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait(self) -> FinishedJob:
        """Wait until it ends by itself."""
        stdout, stderr = self.process.communicate()
        return FinishedJob(self.process.returncode, stdout, stderr)

    def kill(self) -> None:
        """SIGKILL the job and every process that it started, all at once, as a power cut would."""
        victims = [process for process in psutil.process_iter() if _session_of(process) == self.process.pid]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):  # Ray's workers end by themselves once its raylet is killed
                victim.kill()
        psutil.wait_procs(victims, timeout=PATIENCE_S)
        self.process.communicate()


def run_align(
    *arguments: str | Path, directory: Path | None = None, variables: Mapping[str, str] | None = None
) -> FinishedJob:
    """Run the job to its end, with `variables` in its environment."""
    return RunningJob(*arguments, directory=directory, variables=variables).wait()


def write_run_config(directory: Path, model: Path, clip: Path, **sections: Any) -> Path:
    """A configuration file in `directory` whose run folder is `directory`/guided.

    Its paths are relative to the repository, where the job is started: every actor must understand them.
    """
    values = miniature_values(
        Path(os.path.relpath(model, REPOSITORY)),
        name="guided",
        output_dir=str(directory),
        iterations=ITERATIONS,
        reward={"name": "clip", "path": os.path.relpath(clip, REPOSITORY)},
        method={"guidance": {}},
        learner={"ema_decay": 0.9},
        records={"save": True},
        evaluation={"images": 4, "batch_size": 4, "rewards": [{"name": "jpeg_compressibility"}]},
        checkpoint={"grace_seconds": 600},
        prompts={"train": PROMPTS_IN_MANY_SCRIPTS, "held_out": None, "split": {"share": 0.4}},
        **sections,
    )
    config = directory / "guided.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    return config


def _session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None
