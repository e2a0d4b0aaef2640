"""The example of a reward server, in a process of its own, that can be killed and started again."""

from __future__ import annotations

import subprocess
import sys

from job_runs import REPOSITORY
from urllib3.util import parse_url


class ScoringServer:
    """Scores what is posted to `url` by how small a JPEG it makes."""

    def __init__(self) -> None:
        self._start(port=0)

    def __enter__(self) -> ScoringServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL; its port refuses connections from then on."""
        self._process.kill()
        self._process.communicate()

    def start_again(self) -> None:
        """Answer at the same URL as before."""
        port = parse_url(self.url).port
        assert port is not None
        self._start(port)

    def _start(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "examples/rewards/http_server.py", "--port", str(port)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
