"""A checkpoint of somebody else's that would run code when it is unpickled: it does not, wherever it lies."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
import torch
from settings import miniature_settings

from pipeline.decoder import LatentDecoder
from pipeline.policy import Policy
from pipeline.preflight import check_prompts
from pipeline.prompt_settings import PromptSettings
from pipeline.report.pairs import PAIRS_FILE, read_pairs
from pipeline.rewards import load_reward

pytest_plugins = ["model_fixtures"]

CPU = torch.device("cpu")


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.trace,))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


def poison(directory: Path, name: str, trace: Path) -> None:
    """Put a pickle in the place of the safetensors of a directory."""
    for weights in directory.glob("*.safetensors"):
        weights.unlink()
    torch.save({"weight": Payload(trace)}, directory / name)


def test_the_payload_works(trace: Path, tmp_path: Path) -> None:
    torch.save(Payload(trace), tmp_path / "file.bin")
    torch.load(tmp_path / "file.bin", weights_only=False)
    assert trace.exists()


def load_policy(model: Path) -> None:
    settings = miniature_settings(model)
    Policy.load(settings.model, settings.lora, settings.sampling, settings.seed)


def load_decoder(model: Path) -> None:
    LatentDecoder.load(str(model), CPU, torch.float32, chunk_size=1)


# diffusers and transformers each raise errors of their own.
REFUSED = r"(?i)weights.only|pickle|unable to load weights"


@pytest.mark.parametrize(
    ("load", "part", "name"),
    [
        (load_policy, "unet", "diffusion_pytorch_model.bin"),
        (load_policy, "text_encoder", "pytorch_model.bin"),
        (load_decoder, "vae", "diffusion_pytorch_model.bin"),
    ],
)
def test_a_base_model_runs_no_code(
    load: Callable[[Path], None], part: str, name: str, miniature_model: Path, tmp_path: Path, trace: Path
) -> None:
    model = shutil.copytree(miniature_model, tmp_path / "model")
    poison(model / part, name, trace)
    with pytest.raises((OSError, ValueError, UnpicklingError), match=REFUSED):
        load(model)
    assert not trace.exists()


def test_a_reward_runs_no_code(miniature_clip: Path, tmp_path: Path, trace: Path) -> None:
    clip = shutil.copytree(miniature_clip, tmp_path / "clip")
    poison(clip, "pytorch_model.bin", trace)
    with pytest.raises((OSError, ValueError, UnpicklingError), match=REFUSED):
        load_reward("clip", str(clip), CPU, torch.float32)
    assert not trace.exists()


def test_a_column_of_pickled_objects_is_no_column_of_prompts(tmp_path: Path) -> None:
    """Ray Data writes them; reading them would unpickle them."""
    marked = pa.field("prompt", pa.large_binary(), metadata={"ARROW:extension:name": "ray.data.arrow_pickled_object"})
    table = pa.table([pa.array([b"\x80\x04N."], pa.large_binary())], schema=pa.schema([marked]))
    pq.write_table(table, tmp_path / "prompts.parquet")
    source = {"path": str(tmp_path / "prompts.parquet"), "column": "prompt"}
    with pytest.raises(ValueError, match=r"holds .*, not text"):
        check_prompts(PromptSettings.model_validate({"train": source, "held_out": "demo"}))


def test_pairs_in_a_run_folder_run_no_code(tmp_path: Path, trace: Path) -> None:
    """Where Ray Data is imported, pandas unpickles the columns that it marks."""
    assert ray.data  # which registers the type of such columns
    pickled = pa.array([pickle.dumps(Payload(trace))], pa.large_binary())
    numbers = pa.array([0], pa.int64())
    columns = {"kind": pickled, "measure": pickled, "prompt": pickled, "sample": numbers} | dict.fromkeys(
        ("base", "aligned"), numbers
    )
    marked = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": ""}
    fields = [
        pa.field(name, column.type, metadata=marked if column is pickled else None) for name, column in columns.items()
    ]
    pq.write_table(pa.table(list(columns.values()), schema=pa.schema(fields)), tmp_path / PAIRS_FILE)
    with pytest.raises(ValueError, match="is no table of pairs"):
        read_pairs(tmp_path)
    assert not trace.exists()
    pd.read_parquet(tmp_path / PAIRS_FILE)
    assert trace.exists()
