"""Which commit on the hub a run's model is."""

from pathlib import Path

from transformers.utils.hub import cached_file, extract_commit_hash

from pipeline.config import ModelSettings

INDEX = "model_index.json"
"""What every pipeline on the hub has."""


def at_its_commit(model: ModelSettings) -> ModelSettings:
    """A hub id with the commit that its revision is at this moment, where the hub cannot be reached that of the cache.

    A directory of this machine has none and stays as it is.

    Raises:
        OSError: neither the hub nor its cache has it, which `preflight.check_model` says in time.
    """
    if Path(model.path).is_dir():
        return model
    file = cached_file(model.path, INDEX, revision=model.revision)
    return model.model_copy(update={"revision": extract_commit_hash(file, None)})
