"""The held-out evaluation: base against aligned, on the same prompts and the same noise."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from actors.imaging import Images, Scores, draw_images
from actors.weights import WeightTicket
from pipeline.config import RewardSettings, RunSettings
from pipeline.images import before_after_grid
from pipeline.prompts import load_held_out_prompts
from pipeline.statistics import PairedComparison, compare_paired

PICTURED_PAIRS = 12


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


async def evaluate(settings: RunSettings, rollout_fleet: Any, reward_fleet: Any, ticket: WeightTicket) -> Evaluation:
    """Score `evaluation.images` pairs with the trained reward and every reward of `evaluation.rewards`."""
    count, batch_size = settings.evaluation.images, settings.evaluation.batch_size
    prompts = load_held_out_prompts(settings.prompts.held_out)
    rewards = (settings.reward, *settings.evaluation.rewards)
    base_scores, base = await draw_images(rollout_fleet, reward_fleet, prompts, count, batch_size, None, rewards)
    scores, aligned = await draw_images(rollout_fleet, reward_fleet, prompts, count, batch_size, ticket, rewards)
    comparisons = {
        _label(reward, rewards): compare_paired(base_scores[index], scores[index], settings.seed)
        for index, reward in enumerate(rewards)
    }
    drawn = [prompts[index % len(prompts)] for index in range(count)]
    return Evaluation(comparisons, drawn, base, aligned, changes=scores[0] - base_scores[0])


def _label(reward: RewardSettings, rewards: Sequence[RewardSettings]) -> str:
    """The reward's name, with its path where two share a name."""
    shared = sum(other.name == reward.name for other in rewards) > 1
    return f"{reward.name} ({reward.path})" if shared else reward.name
