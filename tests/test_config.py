"""Settings: every check names the value and the fix, overrides, and YAML that comes back unchanged."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from settings import miniature_settings, miniature_values

from pipeline.config import RunSettings
from pipeline.config_loading import dump_settings, load_settings, parse_settings, sections_of

MODEL = Path("some/model")


def write(directory: Path, values: Any) -> Path:
    path = directory / "run.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


def test_defaults_are_the_papers_and_d3pos() -> None:
    run = parse_settings({"name": "x", "model": {"path": "m"}, "reward": {"name": "jpeg_compressibility"}})
    assert run.sampling.model_dump() == {"num_steps": 20, "eta": 1.0, "guidance_scale": 5.0}
    method = run.method
    assert (method.trained_steps, method.beta, method.reduction) == ((20, 16, 12, 8, 4), 0.1, "mean")
    assert (method.ratio_clip, method.min_gap, method.guidance) == (None, 0.0, None)
    learner = run.learner
    assert (run.learning_rate, learner.betas, learner.weight_decay) == (3e-5, (0.9, 0.999), 1e-4)
    assert (learner.epsilon, learner.max_grad_norm, run.lora.rank) == (1e-8, 1.0, 4)
    assert run.lora.target_modules == ("to_q", "to_k", "to_v", "to_out.0")
    guided = miniature_settings(MODEL, method={"guidance": {}}).method.guidance
    assert guided is not None
    assert (guided.eta_min, guided.eta_max, guided.delta) == (0.1, 0.2, 0.5)


def test_what_follows_from_the_settings() -> None:
    run = miniature_settings(
        MODEL, sampling={"num_steps": 20}, method={"trained_steps": [20, 16, 12, 8, 4]}, learner={"minibatch_size": 40}
    )
    assert run.trained_grid_steps == (0, 4, 8, 12, 16)
    assert run.records_per_iteration == 40


@pytest.mark.parametrize(
    ("budget", "iterations", "seconds", "over"),
    [(None, 1, 1e9, False), (None, 2, 0.0, True), (10.0, 1, 9.9, False), (10.0, 1, 10.0, True), (10.0, 2, 0.0, True)],
)
def test_a_run_is_over_by_its_iterations_or_by_its_time(
    budget: float | None, iterations: int, seconds: float, over: bool
) -> None:
    assert miniature_settings(MODEL, budget_seconds=budget).is_over(iterations, seconds) == over


def test_every_setting_has_its_sentence() -> None:
    def sentences(section: type[Any]) -> None:
        for name, field in section.model_fields.items():
            nested = sections_of(field.annotation)
            assert nested or field.description, f"{section.__name__}.{name}"
            for kind in nested:
                sentences(kind)

    sentences(RunSettings)


@pytest.mark.parametrize(
    ("sections", "unknown", "nearest"),
    [
        ({"iteration": 3}, "iteration", "iterations"),
        ({"rollout": {"batchsize": 8}}, "rollout.batchsize", "batch_size"),
        ({"method": {"trained_step": [4]}}, "method.trained_step", "trained_steps"),
        ({"method": {"guidance": {"etamax": 1}}}, "method.guidance.etamax", "eta_max"),
        ({"evaluation": {"rewards": [{"name": "clip", "pth": "x"}]}}, "evaluation.rewards.0.pth", "path"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(sections: dict[str, Any], unknown: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown setting {unknown}; did you mean {nearest}\? Known here: "):
        miniature_settings(MODEL, **sections)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"method": {"trained_steps": []}}, r"trained_steps is empty"),
        ({"method": {"trained_steps": [5, 2]}}, r"trained_steps has \[5\], outside the grid of 4 steps; use 2 to 4"),
        ({"method": {"trained_steps": [4, 0]}}, r"trained_steps has \[0\], outside the grid"),
        ({"method": {"trained_steps": [4, 1]}}, r"trained_steps includes 1, the last step.*; drop it"),
        ({"method": {"trained_steps": [2, 4]}}, r"trained_steps is \[2, 4\]; list each step once.*descending"),
        ({"method": {"trained_steps": [4, 4]}}, r"list each step once"),
        ({"method": {"guidance": {"eta_min": 0.3, "eta_max": 0.2}}}, r"eta_min=0.3 is above eta_max=0.2"),
        ({"method": {"beta": 0}}, r"method.beta=0: Input should be greater than 0"),
        ({"method": {"ratio_clip": 1}}, r"method.ratio_clip=1: Input should be less than 1"),
        (
            {"method": {"name": "xpo"}},
            r"method.name='xpo' is unknown; known are 'tailorpo', 'd3po'",
        ),
        ({"method": {"name": "diffusion_dpo"}}, r"setting method.data is missing"),
        (
            {
                "method": {"name": "diffusion_dpo", "data": "pairs"},
                "reward": [{"name": "jpeg_compressibility"}, {"name": "clip"}],
            },
            r"Diffusion-DPO learns from its data set and weighs no rewards; leave one",
        ),
        ({"method": {"name": "ddpo", "prompt_history": 3}}, r"prompt_history_min=16 is above prompt_history=3"),
        (
            {"method": {"name": "d3po"}, "rollout": {"trajectories": 9, "batch_size": 3}},
            r"=3 is no multiple of 2",
        ),
        ({"method": {"reduction": "max"}}, r"method.reduction='max': Input should be 'mean' or 'sum'"),
        ({"sampling": {"eta": 0}}, r"sampling.eta=0: Input should be greater than 0"),
        ({"sampling": {"guidance_scale": 0.5}}, r"sampling.guidance_scale=0.5: .*greater than or equal to 1"),
        ({"sampling": {"num_steps": 1}}, r"sampling.num_steps=1: .*greater than or equal to 2"),
        ({"rollout": {"trajectories": 10}}, r"trajectories=10 is no multiple of rollout.batch_size=4; 8 is"),
        ({"rollout": {"trajectories": 2}}, r"trajectories=2 is no multiple of rollout.batch_size=4; 4 is"),
        ({"rollout": {"min_workers": 3, "max_workers": 2}}, r"min_workers=3 is above max_workers=2; raise max_workers"),
        ({"reward_actors": {"min_workers": 2}}, r"min_workers=2 is above max_workers=1"),
        (
            {"rollout": {"timeout_seconds": 60}, "reward_actors": {"timeout_seconds": 60}},
            r"rollout.timeout_seconds=60 is not above reward_actors.timeout_seconds=60",
        ),
        (
            {"model": {"path": "m", "device": "cuda"}},
            r"model.device=cuda, but rollout.num_gpus, reward_actors.num_gpus, ",
        ),
        ({"rollout": {"num_gpus": 1.5}}, r"num_gpus=1.5 is neither a share of one GPU nor a whole number"),
        ({"learner": {"num_cpus": 0}}, r"num_cpus=0 and num_gpus=0 reserve nothing for the learner"),
        (
            {"learner": {"num_workers": 2, "num_gpus": 0.5}},
            r"num_workers=2 with num_gpus=0.5 may share a GPU, over which NCCL",
        ),
        ({"learner": {"minibatch_size": 6}}, r"makes 16 records .* learner.minibatch_size=6 does not divide"),
        ({"output_dir": "s3://key:secret@bucket/runs"}, r"output_dir is a URI with credentials or options"),
        ({"learner": {"num_workers": 4, "min_workers": 2}}, r"which 3 workers of learner.num_workers=4 cannot share"),
        ({"learner": {"num_workers": 2, "min_workers": 4}}, r"min_workers=4 is above num_workers=2; raise num_workers"),
        ({"learner": {"num_workers": 3}}, r"makes 16 records .* 3 workers of learner.num_workers=3 cannot share"),
        ({"learner": {"learning_rate": "fast"}}, r"learner.learning_rate='fast': Input should be a valid number"),
        ({"learner": {"learning_rate": float("inf")}}, r"learner.learning_rate=inf: Input should be a finite number"),
        ({"learner": {"ema_decay": 1.0}}, r"learner.ema_decay=1.0: Input should be less than 1"),
        ({"learner": {"betas": [0.9, 1.0]}}, r"learner.betas.1=1.0: Input should be less than 1"),
        ({"evaluation": {"images": 1}}, r"evaluation.images=1 gives no interval"),
        ({"model": {"path": "m", "dtype": "int8"}}, r"model.dtype='int8': Input should be 'float32'"),
        ({"lora": {"target_modules": []}}, r"lora.target_modules=\[\]: .*at least 1"),
        ({"reward": {"scale": 0}}, r"reward.scale=0: Input should be greater than 0"),
        ({"method": 3}, r"method=3: Input should be a valid dictionary"),
    ],
)
def test_a_value_that_cannot_work_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings(miniature_values(MODEL, **sections))


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="unknown setting") as caught:
        parse_settings({"name": "x", "iterations": 0, "sed": 1})
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "setting model is missing; give it in the file or as model=..." in lines
    assert "setting reward is missing; give it in the file or as reward=..." in lines
    assert any(line.startswith("unknown setting sed; did you mean seed?") for line in lines)
    assert any(line.startswith("iterations=0:") for line in lines)


def test_settings_cannot_be_changed_once_they_are_checked() -> None:
    run = miniature_settings(MODEL)
    with pytest.raises(ValueError, match="frozen"):
        run.rollout.batch_size = 3


def test_overrides_change_the_file(tmp_path: Path) -> None:
    overrides = [
        "rollout.batch_size=2",
        "method.guidance.eta_max=0.7",
        "method.trained_steps=[3, 2]",
        "learner.learning_rate=2e-4",
        "learner.ema_decay=null",
        "name=a name with = and . in it",
        "model.compile=true",
    ]
    run = load_settings(write(tmp_path, miniature_values(MODEL, learner={"ema_decay": 0.5})), overrides)
    assert run.rollout.batch_size == 2
    assert run.method.guidance is not None
    assert (run.method.guidance.eta_max, run.method.guidance.eta_min) == (0.7, 0.1)
    assert run.method.trained_steps == (3, 2)
    assert run.learner.learning_rate == 2e-4
    assert run.learner.ema_decay is None
    assert run.name == "a name with = and . in it"
    assert run.model.compile is True


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.batch_size", r"'rollout.batch_size' is not of the form section.key=value"),
        ("=3", r"is not of the form"),
        ("seed.more=3", r"seed is a value, not a section"),
        ("rollout.batch_size=[1", r"value that is no valid YAML"),
        ("rollout.batchsize=3", r"did you mean batch_size\?"),
        ("rollouts.batch_size=3", r"unknown setting rollouts; did you mean rollout\?"),
        ("rollout.batch_size=eight", r"rollout.batch_size='eight': Input should be a valid integer"),
    ],
)
def test_an_override_that_cannot_work_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_settings(write(tmp_path, miniature_values(MODEL)), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no settings"), ("- a\n- b\n", "holds no settings"), ("a: [1\n", "is no valid YAML")],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_settings(write(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no configuration file .*nowhere\.yaml"):
        load_settings(tmp_path / "nowhere.yaml")


SEVERAL = [{"name": "clip", "path": "a", "scale": 0.5}, {"name": "jpeg_compressibility", "weight": -0.3}]


def test_one_reward_is_a_mapping_and_several_are_a_list() -> None:
    one, several = miniature_settings(MODEL), miniature_settings(MODEL, reward=SEVERAL)
    assert [reward.name for reward in one.rewards] == ["jpeg_compressibility"]
    assert one.rewards == (one.reward,) == miniature_settings(MODEL, reward=[one.reward.model_dump()]).rewards
    assert [reward.weight for reward in several.rewards] == [1.0, -0.3]
    assert (several.reward_normalisation, several.trained_reward_labels) == ("scale", ("clip", "jpeg_compressibility"))


def test_rewards_that_share_a_name_are_told_apart_by_their_paths() -> None:
    clips = [{"name": "clip", "path": path} for path in "ab"]
    run = miniature_settings(MODEL, reward=clips, evaluation={"rewards": [{"name": "clip", "path": "c"}]})
    assert run.reward_labels == ("clip (a)", "clip (b)", "clip (c)")
    assert run.trained_reward_labels == ("clip (a)", "clip (b)")


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([], "reward is an empty list; name at least one reward"),
        (3, r"reward=3: Input should be a valid dictionary"),
        ([{"name": "clip"}, 3], r"reward.1=3: Input should be a valid dictionary"),
        ([{"path": "x"}, SEVERAL[1]], r"setting reward.0.name is missing; give it in the file or as reward.0.name=..."),
        ([{"name": "clip", "wight": 1}], r"unknown setting reward.0.wight; did you mean weight\?"),
        ([{"name": "clip", "weight": 0}, SEVERAL[1]], r"'clip' has weight=0; to watch a reward, put it under evaluat"),
        ([{"name": "clip", "weight": float("nan")}], r"reward.0.weight=nan: Input should be a finite number"),
        ({"name": "clip", "weight": 2}, r"'clip' has weight=2.0 and nothing to be weighed against; drop it"),
        ([{"name": "clip", "weight": 2}], r"'clip' has weight=2.0 and nothing to be weighed against"),
        ([SEVERAL[1], SEVERAL[1]], r"'jpeg_compressibility' with path None is listed twice; list it once"),
    ],
)
def test_rewards_that_make_no_sum_are_refused(rewards: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings(miniature_values(MODEL) | {"reward": rewards})


def test_running_statistics_need_several_rewards() -> None:
    with pytest.raises(ValueError, match="reward_normalisation=running needs several rewards"):
        miniature_settings(MODEL, reward_normalisation="running")
    assert miniature_settings(MODEL, reward=SEVERAL, reward_normalisation="running").rewards


def test_overrides_reach_into_a_list(tmp_path: Path) -> None:
    path = write(tmp_path, miniature_values(MODEL, reward=SEVERAL))
    run = load_settings(path, ["reward.1.weight=0.7", "reward.0={name: jpeg_incompressibility}"])
    assert [(reward.name, reward.weight) for reward in run.rewards] == [
        ("jpeg_incompressibility", 1.0),
        ("jpeg_compressibility", 0.7),
    ]
    for override in ("reward.2.weight=1", "reward.weight=1", "reward.-1.weight=1"):
        with pytest.raises(ValueError, match=r"is no place in a list of 2; they count from 0"):
            load_settings(path, [override])


FLOATS = st.floats(1e-12, 1e6, allow_subnormal=False)
GUIDANCE = st.none() | st.fixed_dictionaries(
    {"eta_min": st.floats(1e-6, 1), "eta_max": st.floats(1, 9), "delta": FLOATS}
)


@given(
    name=st.text(min_size=1).filter(lambda text: text.isprintable()),
    learning_rate=FLOATS,
    beta=FLOATS,
    guidance=GUIDANCE,
    scale=st.none() | FLOATS,
    steps=st.sets(st.integers(2, 30), min_size=1, max_size=6),
    seed=st.integers(0, 2**63),
    several=st.booleans(),
    modules=st.lists(st.text(alphabet="abc_.0", min_size=1), min_size=1, max_size=3),
)
@settings(max_examples=50, deadline=None)
def test_a_dumped_configuration_loads_unchanged(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    learning_rate: float,
    beta: float,
    guidance: dict[str, float] | None,
    scale: float | None,
    steps: set[int],
    seed: int,
    several: bool,
    modules: list[str],
) -> None:
    run = miniature_settings(
        MODEL,
        name=name,
        seed=seed,
        sampling={"num_steps": 30},
        method={"trained_steps": sorted(steps, reverse=True), "beta": beta, "guidance": guidance},
        learner={"learning_rate": learning_rate, "minibatch_size": 8 * len(steps)},
        reward=[SEVERAL[0], {"name": "jpeg_compressibility", "scale": scale}] if several else {"scale": scale},
        lora={"target_modules": modules},
        evaluation={"rewards": [{"name": "clip", "path": "somewhere"}]},
    )
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(dump_settings(run), encoding="utf-8")
    assert load_settings(path) == run


def test_a_method_that_compares_iterations_takes_no_unit_that_moves() -> None:
    method = {"name": "ddpo"}
    assert len(miniature_settings(MODEL, reward=SEVERAL, method=method).rewards) == 2
    with pytest.raises(ValueError, match="DDPO compares the rewards of several iterations; use reward_normalisation=s"):
        miniature_settings(MODEL, reward=SEVERAL, reward_normalisation="running", method=method)
