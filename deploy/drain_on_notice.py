#!/usr/bin/env python3
"""Tell Ray that this node is about to be taken back, as soon as the cloud says so.

    python drain_on_notice.py {aws,gcp,now} [--node-id ID] [--service URL]

Runs beside Ray on every spot node; Ray itself does not listen for such notices. On AWS a notice comes two minutes
before the end, on Google Cloud 30 seconds. The node then takes no new work, and what runs on it is replaced elsewhere
while it finishes. `now` asks no cloud: for a pod that Kubernetes is about to stop.

Needs Ray and nothing else, for it is copied to nodes on which no other code of this project lies.
"""

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import ray

logger = logging.getLogger("drain_on_notice")

POLL_S = 2.0
TIMEOUT_S = 5.0
# What Google Cloud and, by default, Kubernetes leave a machine or a pod.
GRACE_S = 30.0


class Source(NamedTuple):
    """Where notices come from.

    Attributes:
        service: address of the machine's metadata service.
        seconds_left: asks it; None while there is no notice.
    """

    service: str
    seconds_left: Callable[[str], float | None]


def main() -> int:
    """Wait for the notice, drain the node, end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=SOURCES)
    parser.add_argument("--node-id", help="Ray's id of the node; that of this machine unless given")
    parser.add_argument("--service", help="another metadata service than the cloud's")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    source = SOURCES[options.source]
    node_id = options.node_id or node_of_this_machine()
    logger.info("node %s: waiting for a notice from %s", node_id, options.source)
    left = wait_for_notice(source.seconds_left, options.service or source.service)
    logger.info("node %s: it will be taken back in %.0f s", node_id, left)
    return drain(node_id, left)


def node_of_this_machine() -> str:
    """The id of the node whose Ray runs here."""
    with ray.init(address="auto", logging_level=logging.WARNING, log_to_driver=False):
        node_id: str = ray.get_runtime_context().get_node_id()
    return node_id


def wait_for_notice(seconds_left: Callable[[str], float | None], service: str) -> float:
    """Ask until there is a notice; seconds until the end. A service that does not answer is asked again."""
    answering = True
    while True:
        try:
            left = seconds_left(service)
        except (URLError, TimeoutError, ConnectionError) as error:
            # HTTPError is a URLError: a service that has trouble of its own.
            if answering:
                logger.warning("%s does not answer (%s); it is asked every %.0f s", service, error, POLL_S)
            answering = False
        else:
            if left is not None:
                return left
            answering = True
        time.sleep(POLL_S)


def aws_seconds_left(service: str) -> float | None:
    """EC2's instance action, by the second version of its metadata service, which wants a token."""
    ask_for_token = Request(
        f"{service}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    )
    token = read(ask_for_token)
    try:
        action = json.loads(
            read(
                Request(f"{service}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token})
            )
        )
    except HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            return None
        raise
    end = datetime.fromisoformat(action["time"].replace("Z", "+00:00"))
    return max(0.0, (end - datetime.now(UTC)).total_seconds())


def gcp_seconds_left(service: str) -> float | None:
    """Compute Engine's word that the machine is being preempted; it does not say when, which is in 30 seconds."""
    preempted = read(Request(f"{service}/computeMetadata/v1/instance/preempted", headers={"Metadata-Flavor": "Google"}))
    return GRACE_S if preempted.strip() == "TRUE" else None


def read(request: Request) -> str:
    """The answer's text."""
    with urlopen(request, timeout=TIMEOUT_S) as answer:
        text: str = answer.read().decode()
    return text


SOURCES = {
    "aws": Source("http://169.254.169.254", aws_seconds_left),
    "gcp": Source("http://metadata.google.internal", gcp_seconds_left),
    "now": Source("", lambda _: GRACE_S),
}


def drain(node_id: str, seconds_left: float) -> int:
    """Have Ray take no new work to the node, asked again while there is time; the exit status of Ray's own command."""
    end = time.monotonic() + seconds_left
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "notice from the cloud"]
    command += ["--deadline-remaining-seconds", str(int(seconds_left))]
    while (status := subprocess.run(command, check=False).returncode) and time.monotonic() < end:
        logger.warning("Ray did not take the notice; it is told again")
        time.sleep(POLL_S)
    return status


if __name__ == "__main__":
    sys.exit(main())
