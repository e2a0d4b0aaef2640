"""The held-out evaluation: base against aligned, on the same prompts and the same noise."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from actors.imaging import Images, draw_images
from actors.weights import WeightTicket
from pipeline.config import RewardSettings, RunSettings
from pipeline.images import before_after_grid
from pipeline.prompts import load_held_out_prompts
from pipeline.statistics import PairedComparison, compare_paired

PICTURED_PAIRS = 12


@dataclass(frozen=True)
class Evaluation:
    """Paired comparisons by reward, and the images they were made from."""

    comparisons: dict[str, PairedComparison]
    prompts: list[str]
    base: Images
    aligned: Images

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
        """The first pairs, base beside aligned, under their prompts."""
        base, aligned = (
            [Image.fromarray(image) for image in images[:PICTURED_PAIRS]] for images in (self.base, self.aligned)
        )
        return before_after_grid(base, aligned, self.prompts[: len(base)])


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
    return Evaluation(comparisons, [prompts[index % len(prompts)] for index in range(count)], base, aligned)


def _label(reward: RewardSettings, rewards: Sequence[RewardSettings]) -> str:
    """The reward's name, with its path where two share a name."""
    shared = sum(other.name == reward.name for other in rewards) > 1
    return f"{reward.name} ({reward.path})" if shared else reward.name
