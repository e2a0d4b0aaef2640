"""The end of a run: what was learnt is exported before anything that may fail."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from comparisons import comparison_values, write_base
from settings import miniature_settings

from actors import alignment
from actors.failure import root_cause
from actors.fleet import start_fleet
from actors.reward import RewardActor
from actors.reward_trial import try_rewards
from actors.weights import start_weight_store
from pipeline.adapter import CARD_FILE, flatten_adapter
from pipeline.comparison.evaluation import evaluation_to_come
from pipeline.comparison.plan import make_plan
from pipeline.comparison.settings import ComparisonSettings
from pipeline.config_loading import parse_as
from pipeline.evaluation.settings import AdapterEvaluationSettings
from pipeline.policy import Policy


def test_a_reward_that_the_evaluation_alone_needs_is_loaded_before_the_run(ray_session, miniature_model, tmp_path):
    judge = {"name": "clip", "path": str(tmp_path / "damaged")}
    settings = miniature_settings(miniature_model, evaluation={"images": 2, "rewards": [judge]})
    (tmp_path / "damaged").mkdir()
    fleet = start_fleet("reward", RewardActor, actor_args=(settings,), actor_options={"num_cpus": 0})
    crew: Any = SimpleNamespace(reward_fleet=fleet)
    with pytest.raises(ValueError, match="damaged"):
        alignment.try_evaluation_rewards(settings, crew)
    alignment.try_evaluation_rewards(miniature_settings(miniature_model, evaluation={"images": 2}), crew)
    ray.get(fleet.shutdown.remote())


def test_a_reward_of_a_comparison_that_cannot_be_loaded_is_met_before_its_first_run(
    ray_session, miniature_model, miniature_clip, tmp_path
):
    (tmp_path / "damaged").mkdir()
    with pytest.raises(ValueError, match=r"could not load its rewards: (?s:.*)damaged"):
        try_rewards(evaluation_by(tmp_path / "damaged", miniature_model, tmp_path))
    try_rewards(evaluation_by(miniature_clip, miniature_model, tmp_path))


def evaluation_by(clip: Path, model: Path, directory: Path) -> AdapterEvaluationSettings:
    """What ends a comparison of miniature runs, by the reward that they are trained on and one more."""
    (directory / clip.name).mkdir(exist_ok=True)
    rewards = [{"name": "clip", "path": str(clip)}]
    values = comparison_values(write_base(directory / clip.name, model, evaluation={"images": 0, "rewards": rewards}))
    return evaluation_to_come(make_plan(parse_as(ComparisonSettings, values), directory))


@pytest.mark.parametrize("illness", [RuntimeError("the judge is ill"), KeyError("a red circle")])
def test_an_evaluation_that_fails_costs_no_adapter(
    ray_session, miniature_model: Path, tmp_path: Path, monkeypatch, illness: Exception
):
    async def fail(*_: Any) -> None:
        raise illness

    monkeypatch.setattr(alignment, "evaluate", fail)
    settings = miniature_settings(miniature_model, evaluation={"images": 2})
    learnt = flatten_adapter(Policy.load(settings.model, settings.lora, settings.sampling, settings.seed)) + 1.0
    store = start_weight_store()
    store.publish.remote(3, 3, learnt)
    ticket = ray.get(store.current.remote())
    crew: Any = SimpleNamespace(rollout_fleet=None, reward_fleet=None)
    # Whatever class a reward's fault is of: `align` reports what is a RuntimeError.
    with pytest.raises(RuntimeError) as ended:
        alignment._conclude(settings, ["a red circle"], crew, tmp_path, ticket)
    assert root_cause(ended.value) is illness
    assert (tmp_path / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    assert "The run made none." in (tmp_path / "adapter" / CARD_FILE).read_text(encoding="utf-8")
    assert not (tmp_path / "summary.json").exists()
