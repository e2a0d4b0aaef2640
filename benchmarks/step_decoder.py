"""Does a small decoder order candidates as the model's own does, and what does it save?

    python -m benchmarks.step_decoder reward_actors.step_decoder=DIR [--config configs/demo.yaml] [section.key=value]

Rolls out TailorPO without guidance in this process, with the fresh adapter. Every pair of candidates is scored twice:
decoded by the model's own decoder, whose order the rollout follows, and by the AutoencoderTiny in DIR. Reports, by the
diffusion time at which candidates were predicted, the share of pairs that both put in the same order (a tie counts one
half) with its 95 % interval over prompts, and the seconds of both in all. Writes results/step_decoder.json.
"""

import argparse
import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.claims.intervals import interval_over_prompts
from pipeline.claims.order import disagreement
from pipeline.config import RunSettings
from pipeline.config_loading import load_settings
from pipeline.environment import describe_environment
from pipeline.methods import create_method
from pipeline.policy import Policy
from pipeline.preflight import check_run
from pipeline.prompts import load_train_prompts, plan_batch
from pipeline.reward_models import RewardModels
from pipeline.run_folder import write_json
from pipeline.scoring import LatentScorer


class BothDecoders:
    """A scorer that follows the exact decoder, and keeps what the small one makes of the same candidates."""

    def __init__(self, exact: LatentScorer, small: LatentScorer) -> None:
        self._scorers = {"exact": exact, "small": small}
        self.seconds = dict.fromkeys(self._scorers, 0.0)
        self.gaps: dict[int, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        self.prompts: dict[int, list[str]] = defaultdict(list)

    async def score(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        """Latents (2B, C, H, W), first all of one draw and then all of the other, or finished ones (B, C, H, W)."""
        if timestep == 0:
            return self._scorers["exact"].score(latents, prompts, timestep)
        scores = {}
        for name, scorer in self._scorers.items():
            begun = time.perf_counter()
            scores[name] = scorer.score(latents, prompts, timestep)
            self.seconds[name] += time.perf_counter() - begun
            first, second = scores[name].chunk(2)
            self.gaps[timestep][name].append(first - second)
        self.prompts[timestep] += prompts[: len(prompts) // 2]
        return scores["exact"]

    async def score_with_gradient(
        self, latents: Tensor, prompts: Sequence[str], timestep: int
    ) -> tuple[Tensor, Tensor]:
        """Nobody asks for it: nothing is guided."""
        raise AssertionError("guidance is off")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--iterations", type=int, default=4, help="iterations of trajectories that are rolled out")
    parser.add_argument("--output", type=Path, default=Path("results/step_decoder.json"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    settings = load_settings(options.config, [*options.overrides, "method.guidance=null"])
    torch.set_num_threads(settings.reward_actors.threads)
    result = measure(settings, options.iterations)
    for name, value in result.items():
        print(name, value)
    write_json(options.output, {**result, "overrides": options.overrides, "environment": describe_environment()})


def measure(settings: RunSettings, iterations: int) -> dict[str, Any]:
    """Roll out, and compare the orders.

    Raises:
        ValueError: the settings name no step_decoder, or do not hold.
    """
    if settings.reward_actors.step_decoder is None:
        raise ValueError("name the small decoder: reward_actors.step_decoder=DIRECTORY_OR_HUB_ID")
    check_run(settings)
    exact_settings = settings.model_copy(
        update={"reward_actors": settings.reward_actors.model_copy(update={"step_decoder": None})}
    )
    scorer = BothDecoders(RewardModels(exact_settings).scorer, RewardModels(settings).scorer)
    policy = Policy.load(settings.model, settings.lora, settings.sampling, settings.seed)
    policy.freeze()
    assert isinstance(settings.prompts.train, str), "columns of data sets are read by Ray"
    method, prompts = create_method(settings), load_train_prompts(settings.prompts.train)
    size, count = settings.samples_per_batch, settings.batches_per_iteration
    for iteration in range(iterations):
        for number in range(count):
            batch = plan_batch(prompts, settings.seed, iteration, number, size, count)
            asyncio.run(method.collect(policy, scorer, batch, iteration))
    return {
        "by_timestep": {str(timestep): agreement(scorer, timestep, settings.seed) for timestep in sorted(scorer.gaps)},
        "seconds": scorer.seconds,
    }


def agreement(scorer: BothDecoders, timestep: int, seed: int) -> dict[str, Any]:
    """How often both decoders put pairs of candidates predicted at a time in the same order."""
    exact, small = (np.asarray(torch.cat(gaps)) for gaps in scorer.gaps[timestep].values())
    agreed = 1 - disagreement(exact, small)
    interval = interval_over_prompts(agreed, scorer.prompts[timestep], seed)
    return {"agree": interval, "pairs": len(agreed)}


if __name__ == "__main__":
    main()
