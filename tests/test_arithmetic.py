"""The arithmetic of the paper's own setting, by hand; the network itself is counted in test_network_calls."""

from pathlib import Path

import pytest
from settings import miniature_settings

from pipeline.arithmetic import run_arithmetic

pytest_plugins = ["model_fixtures"]


def test_a_run_of_the_papers_setting(miniature_model: Path) -> None:
    settings = miniature_settings(
        miniature_model,
        iterations=100,
        sampling={"num_steps": 20},
        method={"trained_steps": [20, 16, 12, 8, 4], "guidance": {}},
        rollout={"trajectories": 100, "batch_size": 2},
        learner={"minibatch_size": 50, "inner_epochs": 2},
    )
    plan = run_arithmetic(settings)
    assert plan.trajectories_per_iteration == 100
    assert plan.total_trajectories == 10_000
    assert plan.records_per_iteration == 500
    assert (plan.policy_calls_per_trajectory, plan.policy_gradient_calls_per_trajectory) == (30, 5)
    assert plan.reference_calls_per_trajectory == 5
    assert plan.decoded_images_per_trajectory == 21
    assert plan.learner_calls_per_trajectory == 10
    assert plan.network_calls_per_iteration == 100 * (30 + 5 + 5 + 10)
    assert plan.total_network_calls == 500_000
    assert plan.optimiser_steps_per_iteration == 20
    assert plan.total_optimiser_steps == 2000
    # A record holds 4 latents; a trajectory sends 16 latents to be scored, and 5 more that come back as gradients.
    latents = 4 * 500 + 100 * (16 + 2 * 5)
    assert plan.object_store_bytes_per_iteration == 4 * (latents * 4 * 8 * 8 + plan.adapter_parameters)
    # At once: all records, two batches of two with two candidates and their gradients, three adapters.
    latents = 4 * 500 + 2 * 2 * 4
    assert plan.object_store_bytes_at_once == 4 * (latents * 4 * 8 * 8 + 3 * plan.adapter_parameters)


def test_with_overlap_two_iterations_of_records_lie_in_the_object_store(miniature_model: Path) -> None:
    strict, overlapping = (
        run_arithmetic(miniature_settings(miniature_model, rollout={"max_staleness": staleness}))
        for staleness in (0, 1)
    )
    records = 4 * 4 * 8 * 8 * 4 * strict.records_per_iteration
    assert overlapping.object_store_bytes_at_once - strict.object_store_bytes_at_once == records


def test_guidance_is_what_its_extra_work_is_counted_for(miniature_model: Path) -> None:
    plain, guided = (
        run_arithmetic(miniature_settings(miniature_model, method={"trained_steps": [4, 2], "guidance": guidance}))
        for guidance in (None, {})
    )
    assert (plain.policy_calls_per_trajectory, guided.policy_calls_per_trajectory) == (6, 8)
    assert (plain.policy_gradient_calls_per_trajectory, guided.policy_gradient_calls_per_trajectory) == (0, 2)
    assert (plain.decoded_images_per_trajectory, guided.decoded_images_per_trajectory) == (5, 9)
    assert plain.reference_calls_per_trajectory == guided.reference_calls_per_trajectory == 2


@pytest.mark.parametrize("rank", [1, 8])
def test_the_adapter_grows_with_its_rank(miniature_model: Path, rank: int) -> None:
    one = run_arithmetic(miniature_settings(miniature_model, lora={"rank": 1})).adapter_parameters
    assert run_arithmetic(miniature_settings(miniature_model, lora={"rank": rank})).adapter_parameters == rank * one
