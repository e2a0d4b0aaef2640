"""Preference pairs of the demo world."""

from pathlib import Path

import pytest
import torch

from jobs.make_demo_pairs import main
from pipeline.config_loading import load_settings
from pipeline.data_files import locate_data
from pipeline.demo.grammar import is_held_out, parse_prompt
from pipeline.demo.pairs import demo_pairs
from pipeline.encoder import decode_images
from pipeline.method_settings import PairMethodSettings
from pipeline.preference_pairs import check_pair_columns, clean_pairs, locate_pairs
from pipeline.rewards import load_reward

REPOSITORY = Path(__file__).resolve().parents[1]
MODELS = REPOSITORY / "models"


def test_pairs_are_equal_for_equal_seeds_and_of_prompts_that_may_be_trained_on() -> None:
    table = demo_pairs(40, seed=3)
    assert table.equals(demo_pairs(40, seed=3)) and not table.equals(demo_pairs(40, seed=4))
    assert len(table) == 40
    assert not any(is_held_out(parse_prompt(prompt)) for prompt in table["caption"].to_pylist())
    assert 5 < sum(table["label_0"].to_pylist()) < 35


def test_the_judge_sees_which_image_follows_the_prompt() -> None:
    cleaned = clean_pairs(demo_pairs(64, seed=0))
    assert set(cleaned["fault"].to_pylist()) == {""}
    judge = load_reward("scene_judge", str(MODELS / "demo-judge"), torch.device("cpu"), torch.float32, None)
    prompts = cleaned["prompt"].to_pylist()
    preferred, rejected = (
        judge.score(decode_images(cleaned[name].to_pylist(), 64), prompts) for name in ("preferred", "rejected")
    )
    assert preferred.mean() > 0.9 and rejected.mean() < 0.1


def test_the_job_writes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--output", str(tmp_path / "pairs"), "--pairs", "3"])
    assert capsys.readouterr().out == f"3 pairs in {tmp_path / 'pairs'}\n"
    check_pair_columns(locate_data(str(tmp_path / "pairs")))
    with pytest.raises(SystemExit, match="is not empty"):
        main(["--output", str(tmp_path / "pairs")])
    with pytest.raises(SystemExit, match="make at least one"):
        main(["--output", str(tmp_path / "other"), "--pairs", "0"])


@pytest.mark.parametrize("prefix", ["", "./"])
def test_pairs_that_have_not_been_made_are_not_looked_for_on_the_hub(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(REPOSITORY / "configs" / "demo_diffusion_dpo.yaml")
    assert isinstance(settings.method, PairMethodSettings)
    monkeypatch.chdir(tmp_path)  # a fresh clone, without runs/
    with pytest.raises(ValueError, match=r"no folder '.*runs/demo_pairs'.*`python jobs/make_demo_pairs.py`"):
        locate_pairs(prefix + settings.method.data)
    main(["--pairs", "2"])
    assert len(locate_pairs(prefix + settings.method.data).paths) == 1
