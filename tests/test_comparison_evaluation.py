"""The evaluation of all adapters of a comparison: what it draws, and what it refuses to compare."""

from pathlib import Path
from typing import Any

import pytest
from comparisons import plan_of

from pipeline.comparison.evaluation import check_evaluation_of_all, check_held_out, evaluation_settings
from pipeline.report.evaluation_file import EVALUATION_FILE

TWO_REWARDS = [
    {"label": "JPEG"},
    {"label": "CLIP", "overrides": ["reward={name: clip, path: some/clip, weight: 1, scale: 0.5}"]},
]


def test_all_adapters_are_drawn_alike_and_judged_by_every_reward_that_a_run_names(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, rewards=TWO_REWARDS, evaluation={"images_per_prompt": 3, "seed": 5})
    runs = plan.runs({cell.label: 0.01 for cell in plan.cells})[:3]
    settings = evaluation_settings(plan, runs)
    assert [(adapter.label, adapter.path) for adapter in settings.adapters] == [
        (run.settings.name, str(run.folder / "adapter")) for run in runs
    ]
    assert settings.reward_labels == ("jpeg_compressibility", "clip", "jpeg_incompressibility")
    assert settings.prompts == str(plan.folder / "prompts" / "held_out.txt")
    assert (settings.images_per_prompt, settings.seed) == (3, 5)
    assert settings.sampling == plan.cells[0].settings.sampling
    assert settings.rollout.num_cpus == plan.cells[0].settings.rollout.num_cpus
    # Where the evaluation puts what it finds is where the report looks for it.
    assert (plan.folder / "runs" / settings.adapters[0].label / EVALUATION_FILE).parent == runs[0].folder


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"variants": [{"label": "a"}, {"label": "b", "overrides": ["sampling.guidance_scale=1"]}]},
            "'a' and 'b' differ in sampling",
        ),
        (
            {"variants": [{"label": "a"}, {"label": "b", "overrides": ["prompts.held_out=animals"]}]},
            "'a' and 'b' differ in prompts",
        ),
        (
            {"variants": [{"label": "a"}, {"label": "b", "overrides": ["reward.name=jpeg_incompressibility"]}]},
            "every reward of the comparison is trained on",
        ),
    ],
)
def test_what_cannot_be_held_against_one_base_model_is_refused(
    tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_evaluation_of_all(plan_of(tmp_path, **sections))


def test_held_out_prompts_that_could_not_be_evaluated_are_refused_before_the_first_run(tmp_path: Path) -> None:
    judged = [{"label": "a", "overrides": ["evaluation.rewards=[{name: scene_judge, path: some/judge}]"]}]
    plan = plan_of(tmp_path, variants=judged, evaluation={"images_per_prompt": 1})
    check_held_out(plan, ["a large red circle on a white background", "a small blue star left of a green ring"])
    with pytest.raises(
        ValueError, match=r"held-out prompts, which all variants are evaluated on: .*a photograph of a cat"
    ):
        check_held_out(plan, ["a large red circle on a white background", "a photograph of a cat"])
    with pytest.raises(ValueError, match="there is one prompt: set images_per_prompt to 2"):
        check_held_out(plan, ["a large red circle on a white background"])
