"""Ray's fake cloud, whose nodes are raylets of this machine, with a folder for each of them.

In one folder, a node that comes or goes would take away what the others have unpacked there: a run's code.
"""

import tempfile
from functools import partial
from typing import Any
from unittest.mock import patch

import ray._private.parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class FakeCloud(FakeMultiNodeProvider):
    """Puts the folders of its nodes into `folder` of its configuration."""

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        # Ray's own provider has no setting for it.
        folder = tempfile.mkdtemp(dir=self.provider_config["folder"])
        in_its_folder = partial(ray._private.parameter.RayParams, temp_dir=folder)
        with self.lock, patch("ray._private.parameter.RayParams", in_its_folder):
            super()._create_node_with_resources_and_labels(*arguments)
