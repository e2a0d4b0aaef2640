"""Pairs of images on their way from files to a learner, over Ray Data and the actors of a run."""

import asyncio
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from in_process import load_policy, load_scorer
from preference_files import pair, write_pairs
from settings import miniature_settings

from actors.cluster import ClusterInfo
from actors.crew import start_crew
from actors.inputs import check_same_pairs, inputs_of_run, save_inputs
from actors.preference_data import read_preferences
from actors.training import train
from actors.weights import checksum_of
from pipeline.adapter import flatten_adapter
from pipeline.config import RunSettings
from pipeline.learning import Learner
from pipeline.method_settings import DiffusionDPOSettings
from pipeline.methods import create_method

pytest_plugins = ["model_fixtures"]


@pytest.fixture(autouse=True)
def connected(ray_session: ClusterInfo) -> None:
    """Ray Data runs on it."""


def run_settings(model: Path, data: Path) -> RunSettings:
    """Two iterations of two batches of three pairs; a pass over five pairs ends within the first."""
    return miniature_settings(
        model,
        method={"name": "diffusion_dpo", "data": str(data)},
        rollout={"trajectories": 12, "batch_size": 6, "num_cpus": 0.1},
        learner={"minibatch_size": 3, "micro_batch_size": 2, "learning_rate": 1e-3, "num_cpus": 0.1},
    )


def align_in_process(settings: RunSettings, batches: list[list]) -> list[str]:
    """What a run learns, without actors: the adapter after each iteration, as its checksum."""
    behaviour, learner, scorer = load_policy(settings), Learner(load_policy(settings), settings), load_scorer(settings)
    behaviour.freeze()
    method, adapters = create_method(settings), []
    for iteration, of_iteration in enumerate(batches):
        tables = [asyncio.run(method.collect(behaviour, scorer, batch, iteration)) for batch in of_iteration]
        learner.learn(pa.concat_tables(tables), iteration)
        adapters.append(checksum_of(flatten_adapter(learner.policy)))
    return adapters


@pytest.mark.slow
def test_a_run_on_actors_equals_one_process_and_is_resumed_with_the_same_pairs(
    miniature_model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "pairs"
    data.mkdir()
    write_pairs(data / "a.parquet", [pair(1), pair(2, label_0=0.5), pair(3)])
    write_pairs(data / "b.parquet", [pair(4, label_0=0.0), pair(5), pair(6)])
    settings, run = run_settings(miniature_model, data), tmp_path / "run"
    run.mkdir()

    inputs = inputs_of_run(settings, run)
    save_inputs(inputs, settings, run)
    stated = json.loads((run / "preferences.json").read_text())
    assert (stated["rows"], stated["pairs"], stated["left_out"]) == (6, 5, {"tie": 1})
    batches = [[inputs.batches.batch(iteration, number) for number in range(2)] for iteration in range(2)]
    order = [prompt for of_iteration in batches for batch in of_iteration for prompt in batch.prompts]
    assert set(order[:5]) == set(order[5:10]) == {f"prompt {number}" for number in (1, 3, 4, 5, 6)}
    of_fourth = next(b for of_iteration in batches for b in of_iteration if "prompt 4" in b.prompts)
    preferred = of_fourth.data.filter(pc.equal(of_fourth.data["prompt"], "prompt 4"))["preferred"]
    assert preferred.to_pylist()[0] == pair(4)["jpg_1"]

    crew = start_crew(settings, run)
    try:
        train(settings, inputs, crew, run)
    finally:
        crew.dismiss()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["reward"] for line in lines] == [None, None] and all(line["pairs"] == 6 for line in lines)
    assert [line["adapter_sha256"] for line in lines] == align_in_process(settings, batches)

    assert inputs.statement is not None
    check_same_pairs(inputs.statement, run)
    with pytest.raises(ValueError, match=r"the pairs of .* are not those that the run began with"):
        check_same_pairs(inputs.statement | {"sha256": "of other pairs"}, run)


def test_faulty_pairs_are_left_out_and_a_wrong_label_is_told_in_one_line(tmp_path: Path) -> None:
    rows = [pair(1), pair(2, jpg_1=b"no image"), pair(3), pair(4, label_0=0.7)]
    file = write_pairs(tmp_path / "a.parquet", rows)
    found = read_preferences(DiffusionDPOSettings(data=str(file), max_rows=3))
    assert len(found.places) == 2 and found.statement["left_out"] == {"unreadable": 1}
    assert found.rows((1, 0))["prompt"].to_pylist() == ["prompt 3", "prompt 1"]
    with pytest.raises(ValueError, match=r"cannot be read as Parquet: label_0 is 0\.7; it must be 1, 0, 0\.5"):
        read_preferences(DiffusionDPOSettings(data=str(file)))
