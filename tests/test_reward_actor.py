"""RewardActor: what it answers is what the pipeline's scorer answers; no score that is not a number leaves it."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import load_scorer
from settings import miniature_settings
from transformers import CLIPModel

from actors.reward import RewardActor
from pipeline.config import RewardSettings, RunSettings
from pipeline.scoring import RewardError

pytest_plugins = ["model_fixtures"]

PROMPTS = ["a red circle", "a small blue star left of a green ring", "a white square"]


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """An actor sets the threads of its process, which is this one here."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def settings(miniature_model: Path, miniature_clip: Path) -> RunSettings:
    return miniature_settings(
        miniature_model, reward={"name": "clip", "path": str(miniature_clip)}, reward_actors={"decode_chunk": 2}
    )


@pytest.fixture
def latents() -> np.ndarray:
    """(3, 4, 8, 8) float32, read-only as what Ray hands over."""
    values = np.random.default_rng(3).standard_normal((3, 4, 8, 8), dtype=np.float32)
    values.flags.writeable = False
    return values


def test_scores_and_gradients_are_those_of_the_pipeline(settings, latents):
    actor, scorer = RewardActor(settings), load_scorer(settings).scorer
    tensor = torch.from_numpy(latents.copy())
    assert actor.ready()
    assert np.array_equal(actor.score(latents, PROMPTS, 0), scorer.score(tensor, PROMPTS, 0).numpy())
    scores, gradients = actor.score_with_gradient(latents, PROMPTS, 0)
    expected_scores, expected_gradients = scorer.score_with_gradient(tensor, PROMPTS, 0)
    assert np.array_equal(scores, expected_scores.numpy()) and np.array_equal(gradients, expected_gradients.numpy())
    assert gradients.shape == (3, 4, 8, 8) and gradients.dtype == scores.dtype == np.float32


def test_rewards_that_are_tried_are_not_kept(settings, miniature_clip):
    actor = RewardActor(settings)
    held = dict(actor.models._loaded)
    actor.try_loading([*settings.rewards, RewardSettings(name="clip_score", path=str(miniature_clip))])
    assert actor.models._loaded == held
    with pytest.raises(ValueError, match="no-such-folder"):
        actor.try_loading([RewardSettings(name="clip", path="no-such-folder")])


def test_evaluation_scores_the_same_images_with_every_reward(settings, latents):
    actor, scorer = RewardActor(settings), load_scorer(settings).scorer
    jpeg = RewardSettings(name="jpeg_compressibility")
    measures = actor.evaluate(latents, PROMPTS, [settings.reward, jpeg], embedder=settings.reward)
    scores, images = measures.scores, measures.images
    assert scores.shape == (3, 2) and scores.dtype == np.float32
    assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8
    np.testing.assert_allclose(scores[:, 0], actor.score(latents, PROMPTS, 0), rtol=1e-5)
    assert measures.statistics.shape == (3, 4) and measures.aspects.shape == (3, 0)
    np.testing.assert_allclose(np.linalg.norm(measures.embeddings, axis=1), np.ones(3), rtol=1e-5)
    decoded = scorer.decoder.decode(torch.from_numpy(latents.copy()))
    assert np.abs(images / 255 - decoded.permute(0, 2, 3, 1).numpy()).max() <= 0.5 / 255 + 1e-6
    assert len(set(scores[:, 1])) > 1 and (scores[:, 1] < 0).all()


def test_images_need_no_reward(settings, latents):
    measures = RewardActor(settings).evaluate(latents, PROMPTS, [])
    assert measures.scores.shape == measures.embeddings.shape == (3, 0) and measures.images.shape == (3, 16, 16, 3)


def test_a_reward_that_is_not_a_number_is_named_with_its_prompt(settings, latents, miniature_clip, tmp_path):
    broken = tmp_path / "clip"
    shutil.copytree(miniature_clip, broken)
    model = CLIPModel.from_pretrained(broken)
    with torch.no_grad():
        model.logit_scale.fill_(torch.nan)
    model.save_pretrained(broken)
    poisoned = RewardSettings(name="clip", path=str(broken))
    actor = RewardActor(settings.model_copy(update={"reward": poisoned}))
    for call in (
        lambda: actor.score(latents, PROMPTS, 0),
        lambda: actor.score_with_gradient(latents, PROMPTS, 0),
        lambda: actor.evaluate(latents, PROMPTS, [poisoned]),
    ):
        with pytest.raises(RewardError, match="reward 'clip' returned nan for the prompt 'a red circle'"):
            call()


def test_a_handle_of_the_actors_costs_no_torch():
    """Fleets and Ray Data's tasks import these modules, many processes of them at once."""
    modules = "actors.dataset, actors.journal, actors.reward, actors.rollout"
    code = f"import sys, {modules}; print({{'torch', 'diffusers', 'transformers'}} & {{*sys.modules}})"
    repository = Path(__file__).resolve().parents[1]
    finished = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "set()"
