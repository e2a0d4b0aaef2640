"""Pytest plugin: an S3 server on loopback with an empty bucket, and an environment in which clients find it."""

import os
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer


class Bucket(str):
    """The URI of a bucket, whose server can go away and come back with all that it had."""

    server: ThreadedMotoServer

    def come_back(self) -> None:
        """Answer at the same address as before."""
        host, port = self.server.get_host_and_port()
        self.server = ThreadedMotoServer(ip_address=host, port=port, verbose=False)
        self.server.start()

    def go_away(self) -> None:
        """Refuse connections."""
        self.server.stop()


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    """The URI of the bucket; processes that are started while it lives find it too."""
    bucket = Bucket("s3://bucket")
    bucket.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    bucket.server.start()
    host, port = bucket.server.get_host_and_port()
    environment = dict(os.environ)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "anybody",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield bucket
    os.environ.clear()
    os.environ.update(environment)
    bucket.go_away()
