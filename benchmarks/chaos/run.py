"""A run of jobs/align.py in a process of its own, which can be killed and taken up again."""

import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any


class AlignJob:
    """`jobs/align.py` on a cluster; `metrics` are read from the run folder, as any onlooker could."""

    def __init__(self, config: Path, overrides: list[str], run_directory: Path, address: str) -> None:
        """Start the run."""
        self.run_directory = run_directory
        self._environment = {**os.environ, "RAY_ADDRESS": address}
        self._log = run_directory.with_suffix(".log").open("ab")
        folder = [f"output_dir={run_directory.parent}", f"name={run_directory.name}"]
        self._start("--config", str(config), *overrides, *folder)

    def kill_driver(self) -> None:
        """SIGKILL the driver, and take the run up again."""
        self._process.kill()
        self._process.wait()
        self._start("--resume", str(self.run_directory))

    def metrics(self) -> list[dict[str, Any]]:
        """Metrics of the iterations done so far."""
        return self._objects("metrics.jsonl")

    def told(self, begin: float, end: float) -> str:
        """What fleets, journal and driver said between two moments, in seconds since 1970: each once."""
        return "; ".join(dict.fromkeys(text for _, text in self.lines(begin, end))) or "nothing"

    def lines(self, begin: float, end: float) -> list[tuple[float, str]]:
        """The first words of every line of the log between two moments, and how many seconds after the first it was."""
        found = []
        for line in self._objects("log.jsonl"):
            seconds = datetime.fromisoformat(line["time"]).timestamp() - begin
            if 0 <= seconds <= end - begin and line["message"] != "the iteration is done":
                who = f"{line['worker']} " * (line["role"] == "fleet")
                found.append((seconds, who + re.split("[:,]", line["message"])[0]))
        return found

    def is_running(self) -> bool:
        """Whether the driver lives."""
        return self._process.poll() is None

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            RuntimeError: the run failed, with the end of what it printed.
        """
        if self._process.wait() != 0:
            raise RuntimeError(f"the run failed:\n{Path(self._log.name).read_text(encoding='utf-8')[-3000:]}")

    def stop(self) -> None:
        """End the driver, if it lives."""
        if self.is_running():
            self._process.kill()
            self._process.wait()

    def _objects(self, name: str) -> list[dict[str, Any]]:
        path = self.run_directory / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def _start(self, *arguments: str) -> None:
        command = [sys.executable, "jobs/align.py", *arguments]
        self._process = subprocess.Popen(
            command, env=self._environment, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
