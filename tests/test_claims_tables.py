"""The tables of the claims on disk: JSON, page and picture; what is made already is not made again."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from in_process import batches_of, load_policy, load_scorer
from PIL import Image
from settings import miniature_settings, miniature_values

from actors import claims
from actors.claims import align_arm, check_folders, make_table
from actors.cluster import ClusterInfo
from jobs.claims import main, parse_arguments
from pipeline.claims import TABLES
from pipeline.claims.arms import strength_arms
from pipeline.claims.guided import guidance_rows, measure_guidance
from pipeline.claims.page import claims_page
from pipeline.claims.plan import ClaimsPlan
from pipeline.claims.table_files import read_table, write_table
from pipeline.config import RunSettings
from pipeline.config_loading import dump_settings

pytest_plugins = ["model_fixtures"]

SHARE = {"mean": 0.25, "low": 0.125, "high": 0.5}
CHANGE = {"base_mean": 1.0, "aligned_mean": 1.5, "difference": 0.5, "low": -0.25, "high": 1.0, "pairs": 8}
ARM_ROW = {
    "trained_steps": [20, 14, 7],
    "trajectories": 64,
    "network_calls_per_trajectory": 29.0,
    "optimiser_steps": 12,
    "train_seconds": 10.2,
    "rewards": {"clip": CHANGE, "judge": CHANGE},
}
ROWS: dict[str, list[dict[str, Any]]] = {
    "order": [
        {"remaining_steps": step, "disagree": SHARE, "final_disagree": SHARE, "pairs": 8} for step in (20, 16, 12, 8, 4)
    ],
    "guidance": [{"remaining_steps": step, "raised": SHARE, "move": SHARE, "samples": 8} for step in (20, 16, 4)],
    "steps": [ARM_ROW | {"label": label, "raised": None, "move": None} for label in ("3 steps", "5 steps")],
    "strength": [ARM_ROW | {"label": label, "raised": 0.875, "move": 0.1} for label in ("none", "0.1 to 0.2")],
}


def result(name: str) -> dict[str, Any]:
    return {"configuration": "demo", "seed": 5, "num_steps": 20, "rows": ROWS[name], "seconds": 3.2}


def test_every_table_has_its_section_and_its_numbers() -> None:
    page = claims_page({name: result(name) for name in TABLES})
    assert page.count("\n## ") == len(TABLES)
    assert page.count("Made from `demo` with seed 5, in 3 s.") == len(TABLES)
    assert "| 16 | 0.250 [0.125, 0.500] | 0.146 | 0.250 [0.125, 0.500] | 8 |" in page
    assert "| 20 | 0.250 [0.125, 0.500] | 0.83 | 0.250 [0.125, 0.500] | 8 |" in page
    changed = "+0.5000 [-0.2500, +1.0000]"
    assert f"| 3 steps | 20, 14, 7 | {changed} | {changed} |  |  | 64 | 29 | 12 | 10 |" in page
    assert f"| 0.1 to 0.2 | 20, 14, 7 | {changed} | {changed} | 0.875 | 0.100 | 64 | 29 | 12 | 10 |" in page


def test_the_papers_shares_stand_beside_a_grid_of_twenty_steps_alone() -> None:
    assert "| 0.83 |" not in claims_page({"guidance": result("guidance") | {"num_steps": 40}})


def test_a_table_comes_back_and_page_and_picture_grow_with_the_tables(tmp_path: Path) -> None:
    assert read_table(tmp_path, "order") is None
    widths = []
    for name in TABLES[:2]:
        write_table(tmp_path, name, result(name), {"samples": 8})
        found = read_table(tmp_path, name)
        assert found is not None and found["inputs"] == {"samples": 8} and found["rows"] == ROWS[name]
        assert "torch" in found["environment"]["packages"]
        picture = Image.open(tmp_path / "claims.png")
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50
        widths.append(picture.width)
    assert widths[1] == 2 * widths[0]
    assert (tmp_path / "claims.md").read_text().count("\n## ") == 2


@pytest.fixture
def arm_settings(tmp_path: Path) -> RunSettings:
    return miniature_settings(
        Path("some/model"), method={"guidance": {}}, output_dir=str(tmp_path), evaluation={"images": 4}
    )


def test_a_finished_run_is_read_and_not_made_again(arm_settings: RunSettings, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(claims, "describe_and_align", lambda *_: pytest.fail("the run is finished"))
    (arm,) = strength_arms(arm_settings, iterations=2, factors=[2.0])
    folder = tmp_path / "miniature-claims-strength-2"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_settings(arm.settings))
    lines = [{"iteration": n, "step_accepted": [0.5, 1.0], "step_move": [0.1, 0.3]} for n in range(2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"trajectories": 16, "train_seconds": 3.0, "evaluation_seconds": 1.0, "evaluation": {"clip": CHANGE}}
    (folder / "summary.json").write_text(json.dumps(summary | {"last_iteration": {"optimiser_steps": 4}}))
    row = align_arm(arm)
    assert (row["label"], row["trained_steps"], row["optimiser_steps"]) == ("0.2 to 0.4", [4, 2], 4)
    assert row["raised"] == pytest.approx(0.75) and row["move"] == pytest.approx(0.2)
    assert row["rewards"] == {"clip": CHANGE} and row["network_calls_per_trajectory"] == 4 + 2 + 2 + 2 + 2 + 2


def test_a_folder_of_another_run_is_refused_and_left_as_it_is(arm_settings: RunSettings, tmp_path: Path) -> None:
    plan, longer = (ClaimsPlan(arm_settings, 8, iterations, ("order", "strength")) for iterations in (2, 3))
    folder = tmp_path / "miniature-claims-strength-4"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_settings(plan.runs("strength")[-1]))
    check_folders(plan)
    with pytest.raises(ValueError, match=r"strength-4 holds a run with other settings; move it away, or give another"):
        check_folders(longer)
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_the_job_knows_the_tables_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_arguments(["--config", "x.yaml", "--tables", "steps,order", "seed=1"]).tables == ("order", "steps")
    with pytest.raises(SystemExit):
        parse_arguments(["--config", "x.yaml", "--tables", "orders"])
    assert "there is no table 'orders'" in capsys.readouterr().err


def test_a_fault_of_the_users_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: there is no configuration file"):
        main(["--config", str(tmp_path / "nowhere.yaml")])


@pytest.mark.slow
def test_the_fleets_measure_what_one_process_measures(
    ray_session: ClusterInfo, miniature_model: Path, miniature_clip: Path, tmp_path: Path, capsys
) -> None:
    values = miniature_values(
        miniature_model,
        sampling={"num_steps": 6},
        reward={"name": "clip", "path": str(miniature_clip)},
        rollout={"min_workers": 1, "max_workers": 2},
        learner={"minibatch_size": 4},
    )
    plan = ClaimsPlan(RunSettings.model_validate(values), samples=8, iterations=1, tables=("guidance",))
    plan.check()
    make_table(plan, "guidance", tmp_path)
    found = read_table(tmp_path, "guidance")
    make_table(plan, "guidance", tmp_path)
    assert "guidance: made already" in capsys.readouterr().out

    settings = plan.measured("guidance")
    policy, scorer = load_policy(settings), load_scorer(settings)
    policy.freeze()
    tables = [
        asyncio.run(measure_guidance(policy, scorer, batch, settings.seed, settings.method, reward_scale=1.0))
        for batch in batches_of(settings, 0)
    ]
    assert found is not None and found["rows"] == guidance_rows(pa.concat_tables(tables), 6, settings.seed)
