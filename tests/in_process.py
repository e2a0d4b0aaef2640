"""The plain loop that the actors must agree with: the same pipeline functions, one process, no Ray."""

import asyncio

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.adapter import flatten_adapter, load_flat_adapter
from pipeline.config import RunSettings
from pipeline.decoder import LatentDecoder
from pipeline.devices import resolve_device, resolve_dtype
from pipeline.learning import Learner
from pipeline.methods import create_method
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch, load_train_prompts, plan_batch
from pipeline.reward_set import InProcessRewardSet, RewardSet, WeightedScorer
from pipeline.rewards import load_reward
from pipeline.scoring import InProcessScorer, LatentScorer
from pipeline.weighting import Normalisation


def load_scorer(settings: RunSettings) -> InProcessScorer:
    """Decoder and reward of a run with one reward."""
    rewards = load_reward_set(settings).rewards
    (reward,) = rewards.rewards
    return InProcessScorer(LatentScorer(rewards.decoder, reward))


def load_reward_set(settings: RunSettings) -> InProcessRewardSet:
    """Decoder and rewards of a run, where its model is and as precise."""
    device, dtype = resolve_device(settings.model.device), resolve_dtype(settings.model.dtype)
    decoder = LatentDecoder.load(settings.model.path, device, dtype, settings.reward_actors.decode_chunk)
    rewards = [load_reward(reward.name, reward.path, device, dtype, reward.scale) for reward in settings.rewards]
    return InProcessRewardSet(RewardSet(decoder, rewards))


def load_policy(settings: RunSettings) -> Policy:
    """A fresh policy of a run."""
    return Policy.load(settings.model, settings.lora, settings.sampling, settings.seed)


def roll_out(policy: Policy, scorer: InProcessScorer, settings: RunSettings, iteration: int) -> pa.Table:
    """All records of an iteration of a run with one reward, one batch after another."""
    method = create_method(settings)
    tables = [
        asyncio.run(method.collect(policy, scorer, batch, iteration)) for batch in batches_of(settings, iteration)
    ]
    return pa.concat_tables(tables)


def roll_out_several(
    policy: Policy, rewards: InProcessRewardSet, normalisation: Normalisation, settings: RunSettings, iteration: int
) -> pa.Table:
    """All records of an iteration of a run with several rewards, one batch after another."""
    method, tables = create_method(settings), []
    for batch in batches_of(settings, iteration):
        scorer = WeightedScorer(rewards, normalisation)
        table = asyncio.run(method.collect(policy, scorer, batch, iteration))
        tables.append(scorer.with_components(table, batch, settings))
    return pa.concat_tables(tables)


def batches_of(settings: RunSettings, iteration: int) -> list[SampleBatch]:
    """What an iteration rolls out."""
    prompts, size = load_train_prompts(settings.prompts.train), settings.samples_per_batch
    count = settings.batches_per_iteration
    return [plan_batch(prompts, settings.seed, iteration, number, size, count) for number in range(count)]


def align_in_process(settings: RunSettings) -> list[NDArray[np.float32]]:
    """Run every iteration; return the adapter as it was published, versions 0 to `iterations`."""
    scorer = load_scorer(settings) if len(settings.rewards) == 1 else load_reward_set(settings)
    behaviour, learner = load_policy(settings), Learner(load_policy(settings), settings)
    behaviour.freeze()
    published = [flatten_adapter(learner.policy)]
    normalisations = [learner.normaliser.current]
    for iteration in range(settings.iterations):
        version = max(0, iteration - settings.rollout.max_staleness)
        load_flat_adapter(behaviour, published[version])
        if isinstance(scorer, InProcessRewardSet):
            table = roll_out_several(behaviour, scorer, normalisations[version], settings, iteration)
        else:
            table = roll_out(behaviour, scorer, settings, iteration)
        learner.learn(table, iteration)
        published.append(flatten_adapter(learner.policy))
        normalisations.append(learner.normaliser.current)
    return published
