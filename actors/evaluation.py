"""The held-out evaluation at the end of a run: base against aligned, on the same prompts and the same noise."""

import asyncio
from typing import Any

from actors.imaging import DrawingPlan, draw_and_score
from actors.weights import WeightTicket
from pipeline.config import RunSettings
from pipeline.evaluation.embedder import first_embedder
from pipeline.evaluation.evaluation import Evaluation, compare_drawn
from pipeline.rewards import aspect_labels

# The row of what a run with several rewards is trained on, above a row for each of them.
WEIGHTED_SUM = "weighted sum"


async def evaluate(
    settings: RunSettings, prompts: list[str], rollout_fleet: Any, reward_fleet: Any, ticket: WeightTicket
) -> Evaluation:
    """Score `evaluation.images` pairs with what is trained on and every reward of `evaluation.rewards`."""
    # No learner is left that would need a place before them.
    await asyncio.gather(reward_fleet.grow.remote(), rollout_fleet.grow.remote())
    rewards = (*settings.rewards, *settings.evaluation.rewards)
    plan = DrawingPlan(
        # Two images of a prompt tell what the noise does, which is the yardstick for measures of reward hacking.
        prompts=prompts[: max(1, settings.evaluation.images // 2)],
        count=settings.evaluation.images,
        batch_size=settings.evaluation.batch_size,
        rewards=rewards,
        embedder=first_embedder(rewards),
    )
    base = await draw_and_score(rollout_fleet, reward_fleet, plan, None)
    aligned = await draw_and_score(rollout_fleet, reward_fleet, plan, ticket)
    trained = len(settings.rewards)
    sums = None
    if ticket.normalisation is not None:
        before, after = (ticket.normalisation.combine(drawn.scores[:, :trained].T) for drawn in (base, aligned))
        sums = (WEIGHTED_SUM, before, after)
    return compare_drawn(base, aligned, settings.reward_labels, evaluation_aspects(settings), settings.seed, sums)


def evaluation_aspects(settings: RunSettings) -> tuple[str, ...]:
    """Labels of what the evaluation's rewards tell apart, such as the attributes that the demo's judge reads."""
    return aspect_labels((*settings.rewards, *settings.evaluation.rewards), settings.reward_labels)
