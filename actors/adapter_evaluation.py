"""Base model against adapters on the connected cluster: `jobs/evaluate.py`, and whoever has adapters to compare."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from actors.capacity import WorkerRequest, check_capacity
from actors.crew import resources_of, shut_down, start_pool
from actors.drawing import LoraWorker
from actors.failure import RunFailedError, explain_failure
from actors.imaging import DrawingPlan, draw_and_score
from actors.prompts import read_held_out
from actors.reward import RewardActor
from actors.weights import WeightTicket, checksum_of
from pipeline.evaluation.embedder import first_embedder
from pipeline.evaluation.evaluation import compare_drawn
from pipeline.evaluation.folder import (
    checksum_of_prompts,
    is_evaluated,
    open_folder,
    write_adapter,
    write_text_of_all,
)
from pipeline.evaluation.measured import DrawnImages
from pipeline.evaluation.preflight import check_drawn_prompts, held_out_rewards
from pipeline.evaluation.settings import AdapterEvaluationSettings
from pipeline.lora_file import read_lora
from pipeline.noise import EVALUATION_ITERATION
from pipeline.preflight import warn_of_long_prompts
from pipeline.prompt_settings import PromptColumnSettings
from pipeline.report.evaluation_file import RunEvaluation, read_evaluation
from pipeline.rewards import aspect_labels
from pipeline.rewards.base import NonFiniteImageError, NonFiniteScoreError
from pipeline.secrets import redact


def evaluate_adapters(
    settings: AdapterEvaluationSettings, directory: Path, say: Callable[[str], None]
) -> dict[str, RunEvaluation]:
    """Draw the base model and every adapter on the connected cluster, and compare them.

    Call `pipeline.evaluation.preflight.check_evaluation` first. Everything about an adapter is on the disk, in
    `directory`/label, before the next one is drawn. Called again with the same settings, this goes on where it was
    interrupted; an adapter whose weights have changed is evaluated anew.

    Args:
        directory: the folder of the evaluation; evaluation.md is about all adapters.
        say: told a line whenever a model is through.

    Returns:
        What lies in `directory`/label/evaluation.json, by the label of the adapter.

    Raises:
        ValueError: the folder holds an evaluation with other settings, or a data set's prompts cannot be read or drawn.
        UnscoredAdaptersError: images of some adapters cannot be scored; those of all others are evaluated.
        RunFailedError: an actor or a reward failed; the message is the reason.
    """
    open_folder(settings, directory)
    prompts = read_held_out(settings.prompts)
    check_drawn_prompts(settings, prompts)
    if isinstance(settings.prompts, PromptColumnSettings):
        warn_of_long_prompts(settings.model, prompts)
    buffers = {adapter.label: read_lora(adapter.path).to_buffer() for adapter in settings.adapters}
    pending = {
        label: buffer
        for label, buffer in buffers.items()
        if not is_evaluated(directory, label, _subject(buffer, prompts))
    }
    if pending:
        try:
            _draw_and_compare(settings, prompts, pending, directory, say)
        except UnscoredAdaptersError:
            raise
        except Exception as error:  # what a reward raises may be of any class
            raise explain_failure(error, journal=None) from error
    write_text_of_all(settings, held_out_rewards(settings), directory)
    evaluations = {label: read_evaluation(directory / label) for label in buffers}
    return {label: evaluation for label, evaluation in evaluations.items() if evaluation is not None}


def evaluation_requests(settings: AdapterEvaluationSettings) -> list[WorkerRequest]:
    """The least that must fit on the cluster at once."""
    pools = {"reward_actors": settings.reward_actors, "rollout": settings.rollout}
    return [WorkerRequest(role, pool.min_workers, resources_of(pool)) for role, pool in pools.items()]


def check_room_for_evaluation(settings: AdapterEvaluationSettings) -> None:
    """Refuse an evaluation that the connected cluster can never hold.

    Raises:
        ValueError: the cluster has a fixed size, and the minimum of workers does not fit.
    """
    check_capacity(evaluation_requests(settings))


def cpus_of_evaluation(settings: AdapterEvaluationSettings) -> float:
    """CPUs that both pools at their maximum reserve together."""
    return sum(pool.max_workers * pool.num_cpus for pool in (settings.reward_actors, settings.rollout))


class UnscoredAdaptersError(RunFailedError):
    """Some adapters draw images that cannot be scored, and would do so again.

    Attributes:
        without_images: why, by the label of the adapter, where what it draws is no image.
        without_scores: why, by the label of the adapter, where a reward has no number for an image.
    """

    def __init__(self, without_images: dict[str, str], without_scores: dict[str, str], directory: Path) -> None:
        """Take the reasons, of one adapter at least, and the folder of the evaluation."""
        told = "; ".join(f"{label}: {reason}" for label, reason in (without_images | without_scores).items())
        advice = "mend the reward" if without_scores else "leave out what cannot be evaluated"
        super().__init__(f"{told}; {advice}, and go on with --output {directory}", diverged=not without_scores)
        self.without_images, self.without_scores = without_images, without_scores


@dataclass(frozen=True)
class _Fleets:
    reward: Any
    drawing: Any

    def draw(self, plan: DrawingPlan, ticket: WeightTicket | None) -> DrawnImages:
        return asyncio.run(draw_and_score(self.drawing, self.reward, plan, ticket))

    def dismiss(self) -> None:
        for fleet in (self.drawing, self.reward):
            shut_down(fleet)
            ray.kill(fleet)


def _subject(buffer: NDArray[np.uint8], prompts: list[str]) -> dict[str, str]:
    """What an evaluation is about, beside its settings."""
    return {"adapter_sha256": checksum_of(buffer), "prompts_sha256": checksum_of_prompts(prompts)}


def _draw_and_compare(
    settings: AdapterEvaluationSettings,
    prompts: list[str],
    buffers: dict[str, NDArray[np.uint8]],
    directory: Path,
    say: Callable[[str], None],
) -> None:
    """Evaluate LoRAs, given as buffers of `LoraFile` by label.

    Raises:
        UnscoredAdaptersError: some of them cannot be, after all others were.
    """
    plan = DrawingPlan(
        prompts=prompts,
        count=len(prompts) * settings.images_per_prompt,
        batch_size=settings.batch_size,
        rewards=settings.rewards,
        embedder=settings.embedder or first_embedder(settings.rewards),
    )
    labels, aspects = settings.reward_labels, aspect_labels(settings.rewards, settings.reward_labels)
    without_images: dict[str, str] = {}
    without_scores: dict[str, str] = {}
    fleets = _start_fleets(settings)
    try:
        base = fleets.draw(plan, None)
        say(f"base model: {plan.count} images drawn and scored")
        for number, (label, buffer) in enumerate(buffers.items()):
            subject = _subject(buffer, prompts)
            ticket = WeightTicket(number, EVALUATION_ITERATION, subject["adapter_sha256"], [ray.put(buffer)])
            try:
                aligned = fleets.draw(plan, ticket)
            except NonFiniteScoreError as error:
                reason = redact(f"{type(error).__name__}: {error}")
                (without_images if isinstance(error, NonFiniteImageError) else without_scores)[label] = reason
                say(f"{label}: {reason}")
                continue
            evaluation = compare_drawn(base, aligned, labels, aspects, settings.seed)
            write_adapter(evaluation, labels, aspects, held_out_rewards(settings), subject, directory / label)
            say(f"{label}: {evaluation.verdict}")
    finally:
        fleets.dismiss()
    if without_images or without_scores:
        raise UnscoredAdaptersError(without_images, without_scores, directory)


def _start_fleets(settings: AdapterEvaluationSettings) -> _Fleets:
    reward = start_pool("reward", RewardActor, (settings,), settings.reward_actors, calls_per_worker=1)
    drawing = start_pool("drawing", LoraWorker, (settings,), settings.rollout, calls_per_worker=1)
    for fleet in (reward, drawing):
        fleet.grow.remote()
    return _Fleets(reward, drawing)
