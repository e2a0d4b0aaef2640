"""Preference pairs of the demo world."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from evaluation_rewards import Halves
from torch import Tensor

from jobs.make_demo_pairs import main
from pipeline.config_loading import load_settings
from pipeline.data_files import locate_data
from pipeline.demo.grammar import is_held_out, parse_prompt
from pipeline.demo.pairs import demo_pairs, rewarded_pairs
from pipeline.encoder import decode_images
from pipeline.method_settings import PairMethodSettings
from pipeline.preference_pairs import check_pair_columns, clean_pairs, locate_pairs
from pipeline.rewards import load_reward
from pipeline.rewards.base import NonFiniteScoreError

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


@pytest.mark.parametrize(("name", "path"), [("jpeg_compressibility", None), ("clip", str(MODELS / "demo-clip"))])
def test_both_images_are_right_and_the_reward_prefers_one(name: str, path: str | None) -> None:
    reward = load_reward(name, path, torch.device("cpu"), torch.float32)
    table = rewarded_pairs(64, seed=0, reward=reward)
    assert table.equals(rewarded_pairs(64, seed=0, reward=reward))
    assert not any(is_held_out(parse_prompt(prompt)) for prompt in table["caption"].to_pylist())
    assert 16 < sum(table["label_0"].to_pylist()) < 48
    cleaned = clean_pairs(table)
    assert set(cleaned["fault"].to_pylist()) == {""}
    prompts = cleaned["prompt"].to_pylist()
    judge = load_reward("scene_judge", str(MODELS / "demo-judge"), torch.device("cpu"), torch.float32)
    images = [decode_images(cleaned[column].to_pylist(), 64) for column in ("preferred", "rejected")]
    assert all(judge.score(side, prompts).mean() > 0.9 for side in images)
    # Not always, for the images have been compressed since.
    preferred, rejected = (reward.score(side, prompts) for side in images)
    assert (preferred >= rejected).float().mean() > 0.9


class OnWhite(Halves):
    """1 on a white background, and 0 on any other."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (images[:, :, 0, 0].min(dim=1).values > 0.99).float()


class Indifferent(Halves):
    """The same for all."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.full((len(images),), self.value)


def test_no_pair_is_made_of_two_images_that_the_reward_scores_alike() -> None:
    """Backgrounds differ where the prompt names none."""
    captions = rewarded_pairs(64, seed=0, reward=OnWhite())["caption"].to_pylist()
    assert len(captions) == 64 and not any("background" in caption for caption in captions)


def test_a_reward_that_prefers_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="reward 'halves' prefers none of two right pictures"):
        rewarded_pairs(2, seed=0, reward=Indifferent())
    with pytest.raises(NonFiniteScoreError, match="'halves' returned nan for the prompt"):
        rewarded_pairs(2, seed=0, reward=Indifferent(float("nan")))


def test_the_job_writes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--output", str(tmp_path / "pairs"), "--pairs", "3"])
    assert capsys.readouterr().out == f"3 pairs in {tmp_path / 'pairs'}\n"
    check_pair_columns(locate_data(str(tmp_path / "pairs")))
    with pytest.raises(SystemExit, match="is not empty"):
        main(["--output", str(tmp_path / "pairs")])
    with pytest.raises(SystemExit, match="make at least one"):
        main(["--output", str(tmp_path / "other"), "--pairs", "0"])
    main(["--output", str(tmp_path / "small"), "--pairs", "3", "--reward", "jpeg_compressibility"])
    check_pair_columns(locate_data(str(tmp_path / "small")))
    with pytest.raises(SystemExit, match="did you mean 'jpeg_compressibility'"):
        main(["--output", str(tmp_path / "other"), "--reward", "jpeg"])
    with pytest.raises(SystemExit, match="models/demo-clip without a --reward"):
        main(["--output", str(tmp_path / "other"), "--reward-path", "models/demo-clip"])
    with pytest.raises(SystemExit, match="jpeg_compressibility without --output; name a folder"):
        main(["--reward", "jpeg_compressibility"])
    with pytest.raises(SystemExit, match="scene_judge is a held-out judge, which must not be trained on"):
        main(["--output", str(tmp_path / "other"), "--reward", "scene_judge"])


@pytest.mark.parametrize("prefix", ["", "./"])
def test_pairs_that_have_not_been_made_are_not_looked_for_on_the_hub(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(REPOSITORY / "configs" / "demo_diffusion_dpo.yaml")
    assert isinstance(settings.method, PairMethodSettings)
    monkeypatch.chdir(tmp_path)  # a fresh clone, without runs/
    with pytest.raises(ValueError, match=r"nothing at '.*runs/demo_pairs'.*`python jobs/make_demo_pairs.py`"):
        locate_pairs(prefix + settings.method.data)
    with pytest.raises(ValueError, match=r"nothing at 'runs/small_files'.* --reward NAME --output runs/small_f"):
        locate_pairs("runs/small_files")
    main(["--pairs", "2"])
    assert len(locate_pairs(prefix + settings.method.data).paths) == 1
    (tmp_path / "runs" / "mine.parquet").write_bytes((tmp_path / "runs/demo_pairs/pairs_0000.parquet").read_bytes())
    for one in ("runs/mine.parquet", "runs/m*.parquet"):
        assert len(locate_pairs(one).paths) == 1
