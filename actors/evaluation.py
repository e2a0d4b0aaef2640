"""The held-out evaluation: base against aligned, on the same prompts and the same noise."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from actors.imaging import Images, Scores, draw_images
from actors.weights import WeightTicket
from pipeline.config import RunSettings
from pipeline.images import before_after_grid
from pipeline.statistics import PairedComparison, compare_paired

PICTURED_PAIRS = 12

# The row of what a run with several rewards is trained on, above a row for each of them.
WEIGHTED_SUM = "weighted sum"


@dataclass(frozen=True)
class Evaluation:
    """Paired comparisons by reward, and the images they were made from.

    `changes` (N,) is how much the trained reward of each pair changed.
    """

    comparisons: dict[str, PairedComparison]
    prompts: list[str]
    base: Images
    aligned: Images
    changes: Scores

    def as_json(self) -> dict[str, Any]:
        """The numbers, for summary.json."""
        return {name: asdict(comparison) for name, comparison in self.comparisons.items()}

    def table(self) -> str:
        """The numbers as a Markdown table."""
        lines = [
            "| reward | base | aligned | difference | 95 % interval | win rate | pairs |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, row in self.comparisons.items():
            lines.append(
                f"| {name} | {row.base_mean:.4f} | {row.aligned_mean:.4f} | {row.difference:+.4f} | "
                f"[{row.low:+.4f}, {row.high:+.4f}] | {row.win_rate:.3f} | {row.pairs} |"
            )
        return "\n".join(lines)

    def picture(self) -> Image.Image:
        """Base beside aligned, under their prompts: the pairs whose reward changed most, for better or worse.

        Most pairs hardly differ after a short run; the order of the pairs is that of their samples.
        """
        chosen = sorted(np.argsort(-np.abs(self.changes), kind="stable")[:PICTURED_PAIRS].tolist())
        base, aligned = ([Image.fromarray(images[pair]) for pair in chosen] for images in (self.base, self.aligned))
        return before_after_grid(base, aligned, [self.prompts[pair] for pair in chosen])


async def evaluate(
    settings: RunSettings, prompts: list[str], rollout_fleet: Any, reward_fleet: Any, ticket: WeightTicket
) -> Evaluation:
    """Score `evaluation.images` pairs with what is trained on and every reward of `evaluation.rewards`."""
    count, batch_size = settings.evaluation.images, settings.evaluation.batch_size
    rewards = (*settings.rewards, *settings.evaluation.rewards)
    base_scores, base = await draw_images(rollout_fleet, reward_fleet, prompts, count, batch_size, None, rewards)
    scores, aligned = await draw_images(rollout_fleet, reward_fleet, prompts, count, batch_size, ticket, rewards)
    comparisons = {
        label: compare_paired(base_scores[index], scores[index], settings.seed)
        for index, label in enumerate(settings.reward_labels)
    }
    base_sums, sums = (_trained_on(each[: len(settings.rewards)], ticket) for each in (base_scores, scores))
    if ticket.normalisation is not None:
        comparisons = {WEIGHTED_SUM: compare_paired(base_sums, sums, settings.seed)} | comparisons
    drawn = [prompts[index % len(prompts)] for index in range(count)]
    return Evaluation(comparisons, drawn, base, aligned, changes=sums - base_sums)


def _trained_on(scores: Scores, ticket: WeightTicket) -> Scores:
    """Raw scores (K, N) of the rewards that are trained on -> (N,): the one, or the sum as the run weighted it last."""
    return scores[0] if ticket.normalisation is None else ticket.normalisation.combine(scores)
