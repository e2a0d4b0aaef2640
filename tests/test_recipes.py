"""Every file in configs/ passes a dry run, and every recipe for Stable Diffusion v1.5 runs on its miniature."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from clip_checkpoints import OfflineHub
from in_process import load_policy, roll_out
from ray_head import documented_variables
from sd15_hub import fill_hub
from sd15_miniature import miniature_components, published_components

from jobs import compare, make_demo_pairs
from jobs.align import main
from pipeline.adapter import flatten_adapter
from pipeline.comparison.loading import load_comparison
from pipeline.comparison.plan import make_plan
from pipeline.config_loading import load_settings
from pipeline.learning import Learner
from pipeline.method_settings import DiffusionDPOSettings
from pipeline.prompts import ANIMALS
from pipeline.reward_models import RewardModels
from pipeline.scoring import InProcessScorer

REPOSITORY = Path(__file__).parents[1]
CONFIGS = [path for path in sorted((REPOSITORY / "configs").glob("*.yaml")) if not path.stem.startswith("compare_")]
RECIPES = [path for path in CONFIGS if path.stem.startswith("sd15_")]
REWARDS = ("compressibility", "aesthetic", "image_reward", "hpsv2", "pickscore")
COMPARED_METHODS = ("TailorPO-G", "TailorPO", "SPO", "D3PO", "DDPO", "Diffusion-DPO")
COMPARED_REWARDS = ("compressibility", "aesthetic", "ImageReward", "HPSv2", "PickScore")

# The numbers of a recipe that a test cannot afford; all others are the recipe's own.
SMALL = (
    "model.dtype=float32",
    "iterations=1",
    "sampling.num_steps=4",
    "method.trained_steps=[4,3,2]",
    "rollout.trajectories=2",
    "rollout.batch_size=2",
    "learner.minibatch_size=6",
    "learner.micro_batch_size=6",
)


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The hub ids of the recipes lead to small checkpoints."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        fill_hub(OfflineHub(monkeypatch, tmp_path_factory.mktemp("hub")), tmp_path_factory.mktemp("checkpoints"))
        yield


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `jobs/make_demo_pairs.py` makes for the off-line recipes, a few of them."""
    folder = tmp_path_factory.mktemp("pairs")
    make_demo_pairs.main(["--pairs", "4", "--output", str(folder)])
    return folder


def test_there_is_a_recipe_for_every_reward_and_a_guided_one_for_those_with_a_gradient() -> None:
    names = {f"sd15_{reward}" for reward in REWARDS} | {f"sd15_{reward}_guided" for reward in REWARDS[1:]}
    assert {path.stem for path in RECIPES} == names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_the_settings_of_the_paper(path: Path) -> None:
    settings = load_settings(path)
    method, guidance = settings.method, settings.method.guidance
    assert settings.name == path.stem.replace("_", "-")
    assert (settings.iterations * settings.rollout.trajectories, settings.evaluation.images) == (10_000, 6 * 45)
    assert (settings.sampling.num_steps, settings.sampling.eta, settings.sampling.guidance_scale) == (20, 1.0, 5.0)
    assert (method.trained_steps, method.beta, method.reduction) == ((20, 16, 12, 8, 4), 0.1, "mean")
    assert (settings.lora.rank, settings.learning_rate, settings.model.dtype) == (4, 3e-5, "float16")
    assert (guidance is not None) == path.stem.endswith("_guided")
    assert guidance is None or (guidance.eta_min, guidance.eta_max, guidance.delta) == (0.1, 0.2, 0.5)
    assert settings.prompts.train == settings.prompts.held_out == "animals"
    assert 60 < settings.checkpoint.grace_seconds < int(documented_variables()["RAY_JOB_STOP_WAIT_TIME_S"])
    held_out = {reward.name for reward in settings.evaluation.rewards}
    assert held_out and held_out.isdisjoint({reward.name for reward in settings.rewards})


def test_the_held_out_animals_are_others_than_those_trained_on() -> None:
    held_out = (REPOSITORY / "configs" / "sd15_held_out_animals.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(held_out)) == 45 and set(held_out).isdisjoint(ANIMALS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_passes_a_dry_run(
    path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    off_line = isinstance(load_settings(path).method, DiffusionDPOSettings)
    main(["--config", str(path), "--dry-run", *([f"method.data={pairs}"] if off_line else [])])
    plan = yaml.safe_load(capsys.readouterr().out)
    arithmetic = plan.pop("arithmetic")
    assert "extends" not in plan
    assert arithmetic["total_trajectories"] == plan["iterations"] * plan["rollout"]["trajectories"]


def test_the_comparison_of_all_methods_under_all_rewards_passes_a_dry_run(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    text = (REPOSITORY / "configs" / "compare_sd15.yaml").read_text(encoding="utf-8")
    (data,) = set(re.findall(r"'hf://[^']*'", text))
    (tmp_path / "compare.yaml").write_text(text.replace(data, str(pairs)), encoding="utf-8")
    compare.main(["--config", str(tmp_path / "compare.yaml"), "--dry-run"])
    shown = capsys.readouterr().out
    assert "75 runs, of seed 0, 1 and 2 for each variant, after 75 short ones that choose learning rates" in shown
    cells = [f"{method} ({reward})" for reward in COMPARED_REWARDS for method in COMPARED_METHODS]
    left_out = {"TailorPO-G (compressibility)", *(f"Diffusion-DPO ({reward})" for reward in COMPARED_REWARDS[:-1])}
    assert [cell for cell in cells if f"\n{cell} " in shown] == [cell for cell in cells if cell not in left_out]


def test_methods_of_the_comparison_make_as_many_updates_of_as_many_trajectories() -> None:
    plan = make_plan(load_comparison(REPOSITORY / "configs" / "compare_sd15.yaml"), Path("runs"))
    for cell in plan.cells:
        settings = cell.settings
        updates = settings.records_per_iteration / settings.learner.minibatch_size
        assert updates == 20, cell.label
        assert settings.iterations * settings.rollout.trajectories == 10_000, cell.label


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_on_the_miniature_and_its_held_out_rewards_score(path: Path) -> None:
    settings = load_settings(path, SMALL)
    policy, models = load_policy(settings), RewardModels(settings)
    before = flatten_adapter(policy)
    # Nothing is published within an iteration, so one policy can both roll out and learn.
    records = roll_out(policy, InProcessScorer(models.scorer), settings, iteration=0)
    Learner(policy, settings).learn(records, iteration=0)
    after = flatten_adapter(policy)
    assert len(records) == settings.records_per_iteration
    assert np.isfinite(after).all() and not np.array_equal(before, after)

    latents, rewards = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), settings.evaluation.rewards
    measured = models.evaluate(latents, ANIMALS[:2], rewards)
    assert measured.scores.shape == (2, len(rewards)) and np.isfinite(measured.scores).all()
    assert measured.images.shape == (2, 64, 64, 3)


def test_the_miniature_has_the_names_of_the_published_model_and_the_published_one_its_size() -> None:
    with torch.device("meta"):
        published, small = published_components(), miniature_components()
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in published]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]
    for full, tiny in zip(published, small, strict=True):
        assert full.state_dict().keys() == tiny.state_dict().keys()
        assert full.dtype == tiny.dtype == torch.float32
