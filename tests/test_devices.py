"""An iteration of TailorPO-G in one process, on every device that is here and in every precision a run may name."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from in_process import load_policy, load_scorer, roll_out
from settings import miniature_settings

from pipeline.adapter import flatten_adapter
from pipeline.config import RunSettings
from pipeline.devices import resolve_device
from pipeline.learning import Learner

pytest_plugins = ["model_fixtures"]

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


def iterate(settings: RunSettings) -> tuple[pa.Table, dict[str, Any], Learner]:
    """The records of an iteration, what learning from them told, and the learner afterwards."""
    behaviour, learner = load_policy(settings), Learner(load_policy(settings), settings)
    behaviour.freeze()
    table = roll_out(behaviour, load_scorer(settings), settings, iteration=0)
    return table, learner.learn(table, 0), learner


def settings_on(device: str, dtype: str, model: Path, clip: Path) -> RunSettings:
    return miniature_settings(
        model,
        model={"path": str(model), "device": device, "dtype": dtype},
        reward={"name": "clip", "path": str(clip)},
        method={"guidance": {}},
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU")
def test_a_gpu_that_torch_cannot_use_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"CUDA_VISIBLE_DEVICES=0,1 gives this process a GPU .* model.device=cpu"):
        resolve_device("auto")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", DEVICES)
def test_an_iteration_starts_at_ln_2_and_moves_a_float32_adapter(
    device: str, dtype: str, miniature_model: Path, miniature_clip: Path
) -> None:
    settings = settings_on(device, dtype, miniature_model, miniature_clip)
    before = flatten_adapter(load_policy(settings))
    table, metrics, learner = iterate(settings)
    assert table.num_rows == settings.records_per_iteration
    assert {str(table.schema.field(name).type.value_type) for name in ("x_t", "winner", "loser")} == {"float"}
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-2) and metrics["skipped_steps"] == 0
    assert {parameter.dtype for parameter in learner.policy.adapter_parameters().values()} == {torch.float32}
    assert {parameter.device.type for parameter in learner.policy.adapter_parameters().values()} == {device}
    assert abs(flatten_adapter(learner.policy) - before).max() > settings.learning_rate / 2


@pytest.mark.parametrize("device", DEVICES)
def test_latents_begin_with_the_same_noise_on_every_device(
    device: str, miniature_model: Path, miniature_clip: Path
) -> None:
    """What the network makes of them afterwards differs by its kernels' rounding, and half precision's by more."""
    tables = [
        iterate(settings_on(*place, miniature_model, miniature_clip))[0]
        for place in (("cpu", "float32"), (device, "bfloat16"))
    ]
    expected, found = (
        table.filter(pc.equal(table["step"], 0))["x_t"].combine_chunks().to_numpy_ndarray() for table in tables
    )
    np.testing.assert_array_equal(found, expected)
