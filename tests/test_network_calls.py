"""The least work possible: every call of the network and the decoder is counted on the real modules."""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from in_process import load_scorer
from job_runs import REPOSITORY
from peft.tuners.tuners_utils import BaseTunerLayer
from policies import make_policy
from preference_files import pair
from scorers import CountingScorer
from settings import miniature_settings
from torch import nn

from pipeline.arithmetic import run_arithmetic
from pipeline.config import RunSettings
from pipeline.learning import Learner
from pipeline.methods import create_method
from pipeline.policy import Policy
from pipeline.preference_pairs import clean_pairs
from pipeline.prompts import SampleBatch

pytest_plugins = ["model_fixtures"]

BATCH_SIZE = 2
BATCH = SampleBatch(
    iteration=0,
    samples=(0, 1),
    prompts=("a red circle", "a small blue star"),
    data=clean_pairs(pa.Table.from_pylist([pair(1), pair(2)])),
)


@contextmanager
def counted_calls(module: nn.Module, role: str = "") -> Iterator[Counter[str]]:
    """Rows that pass through `module` forwards and backwards; a UNet's by whether its adapter is on."""
    counts: Counter[str] = Counter()
    adapters = [part for part in module.modules() if isinstance(part, BaseTunerLayer)]

    def count(_module: nn.Module, arguments: tuple[torch.Tensor, ...], outputs: object) -> None:
        output = outputs[0] if isinstance(outputs, tuple) else outputs
        assert isinstance(output, torch.Tensor)
        off = {part.disable_adapters for part in adapters}
        assert len(off) <= 1, "part of the adapter was on and part of it off"
        name = role or ("reference" if off == {True} else "policy")
        counts[name] += len(arguments[0])
        if output.requires_grad:
            rows = len(arguments[0])
            output.register_hook(lambda _gradient: counts.update({f"{name} backward": rows}))

    hook = module.register_forward_hook(count)
    try:
        yield counts
    finally:
        hook.remove()


def paper_settings(model: Path, clip: Path, guided: bool, guidance_scale: float = 5.0) -> RunSettings:
    """T = 20 and the paper's five trained steps."""
    return miniature_settings(
        model,
        sampling={"num_steps": 20, "guidance_scale": guidance_scale},
        method={"trained_steps": [20, 16, 12, 8, 4], "guidance": {} if guided else None},
        reward={"name": "clip", "path": str(clip)},
        rollout={"trajectories": BATCH_SIZE, "batch_size": BATCH_SIZE},
        learner={"minibatch_size": 5, "micro_batch_size": 3},
    )


def roll_out(policy: Policy, settings: RunSettings) -> tuple[pa.Table, Counter[str], Counter[str], int]:
    """Records, calls of the network and of the decoder, and the latents that travelled to and from the scorer."""
    inner = load_scorer(settings)
    scorer = CountingScorer(inner)
    with counted_calls(policy.unet) as network, counted_calls(inner.scorer.decoder.vae.decoder, "decoded") as decoder:
        table = asyncio.run(create_method(settings).collect(policy, scorer, BATCH, 0))
    return table, network, decoder, scorer.latents


@pytest.mark.parametrize("guided", [False, True], ids=["TailorPO", "TailorPO-G"])
def test_a_rollout_calls_the_network_and_the_decoder_as_rarely_as_possible(
    miniature_model: Path, miniature_clip: Path, guided: bool
) -> None:
    settings = paper_settings(miniature_model, miniature_clip, guided)
    policy = make_policy(settings, adapter_scale=0.1)
    policy.freeze()
    table, network, decoder, travelled = roll_out(policy, settings)

    branches = 2 * BATCH_SIZE
    guidance = 5 if guided else 0
    expected = {"policy": branches * (25 + 2 * guidance), "reference": branches * 5}
    if guided:
        expected["policy backward"] = branches * guidance
    assert network == expected
    # The winner once more for its gradient: a graph kept from the ranking would have to be that of both candidates.
    assert decoder["decoded"] == BATCH_SIZE * (2 * 5 + 2 * guidance + 1)
    assert decoder["decoded backward"] == BATCH_SIZE * guidance

    plan = run_arithmetic(settings)
    assert plan.policy_calls_per_trajectory + plan.policy_gradient_calls_per_trajectory == network["policy"] // branches
    assert plan.policy_gradient_calls_per_trajectory == network["policy backward"] // branches
    assert plan.reference_calls_per_trajectory == network["reference"] // branches
    assert plan.decoded_images_per_trajectory == decoder["decoded"] // BATCH_SIZE

    latents_of_records = 4 * len(table)
    adapter = sum(value.numel() for value in policy.adapter_parameters().values())
    assert plan.adapter_parameters == adapter
    numbers = (latents_of_records + travelled) * 4 * 8 * 8 + adapter
    assert plan.object_store_bytes_per_iteration == 4 * numbers


def test_guidance_scale_one_halves_every_call(miniature_model: Path, miniature_clip: Path) -> None:
    settings = paper_settings(miniature_model, miniature_clip, guided=True, guidance_scale=1.0)
    policy = make_policy(settings)
    policy.freeze()
    _, network, _, _ = roll_out(policy, settings)
    assert network == {
        "policy": BATCH_SIZE * 35,
        "policy backward": BATCH_SIZE * 5,
        "reference": BATCH_SIZE * 5,
    }


@pytest.mark.parametrize("inner_epochs", [1, 2])
def test_the_learner_calls_the_network_once_a_pair_and_the_reference_never(
    miniature_model: Path, miniature_clip: Path, inner_epochs: int
) -> None:
    settings = paper_settings(miniature_model, miniature_clip, guided=False)
    settings = settings.model_copy(
        update={"learner": settings.learner.model_copy(update={"inner_epochs": inner_epochs})}
    )
    policy = make_policy(settings, adapter_scale=0.1)
    table, _, _, _ = roll_out(policy, settings)
    assert not any(table["tie"].to_pylist())
    learner = Learner(policy, settings)
    with counted_calls(policy.unet) as network:
        learner.learn(table, 0)
    calls = 2 * BATCH_SIZE * 5 * inner_epochs
    assert network == {"policy": calls, "policy backward": calls}

    plan = run_arithmetic(settings)
    assert plan.learner_calls_per_trajectory == network["policy"] // (2 * BATCH_SIZE)
    assert plan.records_per_iteration == len(table)
    assert plan.optimiser_steps_per_iteration == learner.optimiser.steps_taken


@pytest.mark.parametrize(
    ("name", "policy_calls", "reference_calls", "images", "learner_calls"),
    # D3PO's two trajectories share x_T, so the two calls of the first step are one.
    [
        ("d3po", 39, 39, 2, 40),
        ("ddpo", 20, 0, 1, 20),
        ("spo", 65, 16, 64, 16),
        # Its two images are two trajectories, which nobody samples.
        ("diffusion_dpo", 0, 2, 0, 2),
        # The example of a method of one's own.
        ("reward_weighted:RewardWeighted", 20, 0, 1, 20),
    ],
)
def test_other_methods_call_the_network_as_rarely_as_possible(
    miniature_model: Path,
    miniature_clip: Path,
    name: str,
    policy_calls: int,
    reference_calls: int,
    images: int,
    learner_calls: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Calls for each sample, which is a pair of trajectories of D3PO and one trajectory of the others."""
    monkeypatch.syspath_prepend(REPOSITORY / "examples" / "methods")
    monkeypatch.delitem(sys.modules, "reward_weighted", raising=False)
    trajectories = BATCH_SIZE * (2 if name in ("d3po", "diffusion_dpo") else 1)
    own_settings = {"spo": {"min_probability_gap": 0.0}, "diffusion_dpo": {"data": "nowhere"}}
    settings = miniature_settings(
        miniature_model,
        sampling={"num_steps": 20, "guidance_scale": 1.0},
        method={"name": name} | own_settings.get(name, {}),
        reward={"name": "clip", "path": str(miniature_clip)},
        rollout={"trajectories": trajectories, "batch_size": trajectories},
        learner={"minibatch_size": 2 if name == "diffusion_dpo" else 8, "micro_batch_size": 3},
    )
    policy = make_policy(settings, adapter_scale=0.1)
    table, network, decoder, travelled = roll_out(policy, settings)
    assert network["policy"] == BATCH_SIZE * policy_calls
    assert network["reference"] == BATCH_SIZE * reference_calls
    assert decoder["decoded"] == BATCH_SIZE * images

    learner = Learner(policy, settings)
    with counted_calls(policy.unet) as learning:
        learner.learn(table, 0)
    calls = BATCH_SIZE * learner_calls
    assert learning == {"policy": calls, "policy backward": calls}

    plan = run_arithmetic(settings)
    assert plan.policy_calls_per_trajectory == network["policy"] / trajectories
    assert plan.reference_calls_per_trajectory == network["reference"] / trajectories
    assert plan.decoded_images_per_trajectory == decoder["decoded"] / trajectories
    assert plan.learner_calls_per_trajectory == calls / trajectories
    tensors = sum(isinstance(field.type, pa.FixedShapeTensorType) for field in table.schema)
    latents = tensors * len(table) + travelled
    assert plan.object_store_bytes_per_iteration == 4 * (latents * 4 * 8 * 8 + plan.adapter_parameters)
