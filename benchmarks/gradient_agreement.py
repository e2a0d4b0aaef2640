"""At which trained steps, and in which blocks of the network, do the gradients of different batches agree?

    python -m benchmarks.gradient_agreement [--config configs/demo.yaml] [--iterations 6] [section.key=value ...]

Rolls out with the fresh adapter and takes the gradient of every batch's loss, by trained step and block. The mean
square of such gradients is what they have in common (signal: the mean product of two different ones) and what each has
alone (noise). Their ratio r, with its jackknife standard error, tells which steps and blocks a few thousand pairs can
teach: after n batches the mean gradient's cosine with the true one is about sqrt(n r / (1 + n r)). Writes
results/gradient_agreement.json.
"""

import argparse
import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from pipeline.claims.arms import tailorpo_settings
from pipeline.config import RunSettings
from pipeline.config_loading import load_settings
from pipeline.decoder import LatentDecoder
from pipeline.devices import resolve_device, resolve_dtype
from pipeline.environment import describe_environment
from pipeline.methods import create_method
from pipeline.policy import Policy
from pipeline.prompts import load_train_prompts, plan_batch
from pipeline.rewards import load_reward
from pipeline.run_folder import write_json
from pipeline.scoring import InProcessScorer, LatentScorer

Part = tuple[str, int]
"""A block of the network, and a trained step as the configuration counts it."""

ALL_STEPS = "method.trained_steps=[19,18,17,16,14,12,10]"
ALL_BLOCKS = "lora.blocks=null"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--iterations", type=int, default=6, help="iterations of trajectories that are rolled out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("results/gradient_agreement.json"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    configured = load_settings(options.config, options.overrides)
    settings = load_settings(options.config, [*options.overrides, ALL_STEPS, ALL_BLOCKS])
    gradients = list(batch_gradients(settings, options.iterations))
    trained_blocks = set(configured.lora.blocks or blocks_of(gradients))
    trained_steps = set(tailorpo_settings(configured).trained_steps)

    def within(blocks: set[str], steps: set[int]) -> dict[str, float]:
        return agreement(gradients, lambda block, step: block in blocks and step in steps)

    result = {
        "batches": len(gradients),
        "batch_size": settings.rollout.batch_size,
        "as_configured": within(trained_blocks, trained_steps),
        "by_step": {
            str(step): within(trained_blocks, {step})
            for step in sorted(tailorpo_settings(settings).trained_steps, reverse=True)
        },
        "by_block": {block: within({block}, trained_steps) for block in blocks_of(gradients)},
    }
    for name, value in result.items():
        print(name, value)
    write_json(options.output, {**result, "overrides": options.overrides, "environment": describe_environment()})


def batch_gradients(settings: RunSettings, iterations: int) -> Iterator[dict[Part, Tensor]]:
    """The gradients of the loss of one batch after another, by part, each as one vector."""
    policy = Policy.load(settings.model, settings.lora, settings.sampling, settings.seed)
    parameters = {name: value for name, value in policy.unet.named_parameters() if value.requires_grad}
    scorer, method = load_scorer(settings), create_method(settings)
    assert isinstance(settings.prompts.train, str), "columns of data sets are read by Ray"
    prompts, size = load_train_prompts(settings.prompts.train), settings.samples_per_batch
    count = settings.batches_per_iteration
    for iteration in range(iterations):
        for number in range(count):
            batch = plan_batch(prompts, settings.seed, iteration, number, size, count)
            rows = method.trainable_rows(asyncio.run(method.collect(policy, scorer, batch, iteration)))
            found: dict[Part, list[Tensor]] = defaultdict(list)
            for index in rows["step"].unique().tolist():
                chosen = rows.select(torch.nonzero(rows["step"] == index).flatten())
                losses = method.loss(policy, chosen).losses.sum()
                for name, gradient in zip(
                    parameters, torch.autograd.grad(losses, list(parameters.values())), strict=True
                ):
                    found[block_of(name), settings.sampling.num_steps - index].append(gradient.flatten())
            print(f"iteration {iteration + 1}/{iterations}, batch {number + 1}/{count}", flush=True)
            yield {part: torch.cat(vectors) for part, vectors in found.items()}


def load_scorer(settings: RunSettings) -> InProcessScorer:
    """Decoder and reward in this process.

    Raises:
        ValueError: the run trains on several rewards.
    """
    if len(settings.rewards) > 1:
        raise ValueError(f"this compares gradients of one reward, not of {settings.reward_title}; name one")
    (trained,) = settings.rewards
    device, dtype = resolve_device(settings.model.device), resolve_dtype(settings.model.dtype)
    decoder = LatentDecoder.load(
        settings.model.path, device, dtype, settings.reward_actors.decode_chunk, revision=settings.model.revision
    )
    reward = load_reward(trained.name, trained.path, device, dtype, trained.scale)
    return InProcessScorer(LatentScorer(decoder, reward))


def block_of(parameter: str) -> str:
    """down_blocks.1 of down_blocks.1.attentions.0..."""
    found = re.match(r"\w+_blocks\.\d+|mid_block", parameter)
    assert found is not None, f"{parameter} lies in no block"
    return found[0]


def blocks_of(gradients: list[dict[Part, Tensor]]) -> list[str]:
    """All blocks that have an adapter."""
    return sorted({block for block, _ in gradients[0]})


def agreement(gradients: list[dict[Part, Tensor]], counts: Callable[[str, int], bool]) -> dict[str, float]:
    """Signal over noise of the parts that count, the losses of their steps added up."""
    vectors = []
    for parts in gradients:
        by_block: dict[str, list[Tensor]] = defaultdict(list)
        for (block, step), vector in parts.items():
            if counts(block, step):
                by_block[block].append(vector)
        vectors.append(torch.cat([torch.stack(steps).sum(dim=0) for _, steps in sorted(by_block.items())]))
    products = torch.stack(vectors).double() @ torch.stack(vectors).double().T
    left_out = torch.tensor([_ratio(_without(products, index)) for index in range(len(products))], dtype=torch.float64)
    error = ((len(products) - 1) * left_out.var(unbiased=False)).sqrt()
    return {"signal_over_noise": _ratio(products), "standard_error": float(error)}


def _without(products: Tensor, index: int) -> Tensor:
    kept = [other for other in range(len(products)) if other != index]
    return products[kept][:, kept]


def _ratio(products: Tensor) -> float:
    count, own = len(products), products.diagonal().sum()
    signal = (products.sum() - own) / (count * (count - 1))
    return float(signal / (own / count - signal))


if __name__ == "__main__":
    main()
