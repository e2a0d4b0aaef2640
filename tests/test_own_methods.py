"""Methods of one's own, `module:Class`: what is refused, where they are found, and the example in a whole run."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from in_process import align_in_process
from job_runs import REPOSITORY, run_align
from policies import make_policy
from run_folders import write_run_folder
from scorers import ProjectionScorer
from settings import miniature_settings, miniature_values

from actors.weights import checksum_of
from pipeline.claims.arms import tailorpo_settings
from pipeline.config import RunSettings
from pipeline.config_loading import dump_settings, parse_settings
from pipeline.environment import checksum_of_module
from pipeline.learning import Learner
from pipeline.methods import create_method, method_class
from pipeline.own_classes import look_in_the_working_directory
from pipeline.preflight import check_run, own_modules
from pipeline.prompts import SampleBatch
from pipeline.records import latent_column
from pipeline.report.history import read_run
from pipeline.run_description import describe_run

pytest_plugins = ["model_fixtures"]

EXAMPLE_FILE = REPOSITORY / "examples" / "methods" / "reward_weighted.py"
EXAMPLE = "reward_weighted:RewardWeighted"

BATCH = SampleBatch(iteration=0, samples=(0, 1), prompts=("a red circle", "a small blue star"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder a job is started in, with the example; what is imported from it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE_FILE, tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


def example_values(model: Path) -> dict:
    return miniature_values(
        model,
        name="weighted",
        method={"name": EXAMPLE, "temperature": 0.5},
        rollout={"trajectories": 4, "batch_size": 2},
        learner={"minibatch_size": 8, "micro_batch_size": 3},
    )


@pytest.fixture
def example_settings(miniature_model: Path) -> RunSettings:
    look_in_the_working_directory()
    return parse_settings(example_values(miniature_model))


# Where it is found


def test_the_configuration_has_the_settings_of_the_method(folder: Path, example_settings: RunSettings) -> None:
    method = example_settings.method
    assert (method.name, method.temperature, method.title) == (EXAMPLE, 0.5, "Reward-weighted")
    assert example_settings.learner.learning_rate == 1e-3
    assert example_settings.model_copy(update={"seed": 3}).method == method
    assert parse_settings(yaml.safe_load(dump_settings(example_settings))) == example_settings
    assert pickle.loads(pickle.dumps(example_settings)) == example_settings
    assert (
        type(create_method(example_settings)) is method_class(EXAMPLE) is sys.modules["reward_weighted"].RewardWeighted
    )
    assert own_modules(example_settings) == [folder / "reward_weighted.py"]


def test_the_folder_of_a_run_is_read_without_importing_what_lies_around(folder: Path, miniature_model: Path) -> None:
    """A report may be made of somebody else's run: only starting or resuming one looks beside the installed modules."""
    (folder / "eager.py").write_text("raise RuntimeError('imported')")
    run = write_run_folder(folder / "theirs", [0.1, 0.2])
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"method": {"name": "eager:Mine"}}))
    with pytest.raises(ValueError, match=r"there is no module eager; only jobs that make runs look for eager\.py"):
        read_run(run)
    look_in_the_working_directory()
    with pytest.raises(ValueError, match="importing eager failed with RuntimeError: imported"):
        read_run(run)


DERIVED = """
from typing import ClassVar
from pipeline.method_settings import MethodSettings, TailorPOSettings
from pipeline.methods.tailorpo import TailorPO

class Halved(TailorPO):
    def loss(self, policy, rows):
        terms = super().loss(policy, rows)
        return type(terms)(terms.losses / 2, terms.diagnostics)

class Settings(TailorPOSettings):
    factor: float = 0.5

    @property
    def title(self):
        return "Scaled"

class Scaled(Halved):
    settings_class: ClassVar[type[MethodSettings]] = Settings
"""


def test_a_method_may_be_derived_from_one_that_exists(folder: Path, miniature_model: Path) -> None:
    look_in_the_working_directory()
    (folder / "derived.py").write_text(DERIVED)
    plain = miniature_settings(miniature_model)
    halved = miniature_settings(miniature_model, method={"name": "derived:Halved", "trained_steps": [4, 2]})
    assert (halved.method.name, halved.method.trained_steps) == ("derived:Halved", (4, 2))
    scaled = miniature_settings(miniature_model, method={"name": "derived:Scaled", "trained_steps": [4], "factor": 2})
    assert (scaled.method.title, scaled.method.factor) == ("Scaled", 2.0)
    policy = make_policy(plain, 0.2)
    table = asyncio.run(create_method(halved).collect(policy, ProjectionScorer(), BATCH, 0))
    losses = [
        create_method(one).loss(policy, create_method(one).trainable_rows(table)).losses for one in (plain, halved)
    ]
    assert torch.equal(losses[1], losses[0] / 2)
    with pytest.raises(ValueError, match=r"method\.name='derived:Halved': the claims are about TailorPO"):
        tailorpo_settings(halved)


def test_a_module_that_changed_while_a_run_was_interrupted_is_told_of(
    folder: Path, example_settings: RunSettings, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        describe_run(example_settings, folder, {})
    assert not caplog.records
    module = folder / "reward_weighted.py"
    module.write_text(module.read_text(encoding="utf-8") + "# changed", encoding="utf-8")
    describe_run(example_settings, folder, {})
    assert "reward_weighted.py is not what this run was made with so far" in caplog.text
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert environment["own_modules"] == {"reward_weighted.py": checksum_of_module(module)}


# What is refused

COMPLETE = """
from typing import ClassVar
from pipeline.method_settings import MethodSettings
from pipeline.methods.base import Method

class Settings(MethodSettings):
    paper: ClassVar[str] = "none"
    steps: int = 3

    @property
    def title(self):
        return "Mine"

    def trained_grid_steps(self, num_steps):
        return (0,)

    def work(self, num_steps):
        raise NotImplementedError

class Mine(Method):
    settings_class = Settings
    diagnostic_names = ()

    async def collect(self, policy, scorer, batch, policy_version):
        raise NotImplementedError

    def loss(self, policy, rows):
        raise NotImplementedError

    def rollout_metrics(self, table):
        return {}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("class Mine(Method)", "class Mine(object)", r"is no subclass of pipeline\.methods\.base\.Method"),
        ("class Mine(Method)", "class Yours(Method)", "has no class Mine; its methods: Yours"),
        ("    def loss", "    def lose", r"does not define loss; pipeline\.methods\.base\.Method says what they do"),
        (
            "settings_class = Settings",
            "settings_class = dict",
            "must declare settings_class, a subclass of .*; got <cla",
        ),
        ("    settings_class = Settings\n", "", "must declare settings_class, a subclass of .*; got None"),
        ("    def work", "    def rest", "the settings of method 'mine:Mine' do not define work"),
        (
            '    paper: ClassVar[str] = "none"\n',
            "",
            "Settings of method 'mine:Mine' must declare the class attribute paper",
        ),
        (
            "    diagnostic_names = ()\n",
            "",
            "Mine of method 'mine:Mine' must declare the class attribute diagnostic_na",
        ),
        ("from pipeline.methods", "1 / 0\nfrom pipeline.methods", "importing mine failed with ZeroDivisionError"),
    ],
)
def test_what_is_no_method_is_refused(folder: Path, miniature_model: Path, old: str, new: str, message: str) -> None:
    look_in_the_working_directory()
    assert COMPLETE.count(old) == 1
    (folder / "mine.py").write_text(COMPLETE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        miniature_settings(miniature_model, method={"name": "mine:Mine"})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"stepz": 2}, r"^unknown setting method\.stepz; did you mean steps\? Known here: name, steps$"),
        ({"steps": "many"}, r"^method\.steps='many': Input should be a valid integer"),
        ({"steps": "x", "stepz": 2}, r"(?s)method\.steps='x'.*\n.*method\.stepz"),
    ],
)
def test_settings_that_do_not_hold_are_named(folder: Path, miniature_model: Path, section: dict, message: str) -> None:
    look_in_the_working_directory()
    (folder / "mine.py").write_text(COMPLETE)
    assert miniature_settings(miniature_model, method={"name": "mine:Mine"}).method.steps == 3
    with pytest.raises(ValueError, match=message):
        miniature_settings(miniature_model, method={"name": "mine:Mine"} | section)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "return (0,)",
            "return (0, num_steps)",
            r"method 'mine:Mine' trains the steps \[4\] of a grid that has those from 0",
        ),
        (
            "    steps: int = 3",
            "    needs_gradient: ClassVar[bool] = True",
            "^method 'mine:Mine' needs a differentiable reward, and 'jpeg_compressibility' is not; choose another r",
        ),
    ],
)
def test_preflight_refuses_what_cannot_run(
    folder: Path, miniature_model: Path, old: str, new: str, message: str
) -> None:
    look_in_the_working_directory()
    assert COMPLETE.count(old) == 1
    (folder / "mine.py").write_text(COMPLETE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        check_run(miniature_settings(miniature_model, method={"name": "mine:Mine"}))


# The example


@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=2, unique=True), st.floats(0.1, 10))
def test_weights_are_a_softmax_of_the_rewards(rewards: list[float], temperature: float) -> None:
    first, second = (math.exp((reward - max(rewards)) / temperature) for reward in rewards)
    module = load_example()
    weights = module.reward_weights({3: rewards[0], 8: rewards[1]}, temperature)
    expected = {3: 2 * first / (first + second), 8: 2 * second / (first + second)}
    assert weights == pytest.approx(expected, rel=1e-4, abs=1e-6)


def load_example() -> ModuleType:
    """The module, as a configuration that names it has it."""
    look_in_the_working_directory()
    method_class(EXAMPLE)
    return sys.modules["reward_weighted"]


def test_the_loss_is_the_weighted_likelihood_of_the_steps_that_were_taken(example_settings: RunSettings) -> None:
    policy, method = make_policy(example_settings, 0.2), create_method(example_settings)
    table = asyncio.run(method.collect(policy, ProjectionScorer(), BATCH, 0))
    assert (latent_column(table, "x_s")[:-2] == latent_column(table, "x_t")[2:]).all()
    rows = method.trainable_rows(table)
    assert rows["weight"].mean().item() == pytest.approx(1, abs=1e-6)
    terms = method.loss(policy, rows)
    transition = policy.transition
    for row, (step, prompt) in enumerate(zip(rows["step"].tolist(), rows.prompts, strict=True)):
        x_t, x_s = (rows[name][row : row + 1] for name in ("x_t", "x_s"))
        mean, std = transition.mean_std(policy.predict(x_t, step, [prompt]), x_t, step)
        log_prob = torch.distributions.Normal(mean, std).log_prob(x_s).mean()
        assert terms.losses[row].item() == pytest.approx(-(rows["weight"][row] * log_prob).item(), rel=1e-3)


def test_a_step_of_the_learner_makes_the_better_trajectory_likelier(example_settings: RunSettings) -> None:
    policy = make_policy(example_settings)
    four = SampleBatch(iteration=0, samples=(0, 1, 2, 3), prompts=("a red circle",) * 4)
    table = asyncio.run(create_method(example_settings).collect(policy, ProjectionScorer(), four, 0))
    learner = Learner(policy, example_settings)
    before = learner.method.loss(policy, learner.method.trainable_rows(table)).losses.mean().item()
    metrics = learner.learn(table, 0)
    after = learner.method.loss(policy, learner.method.trainable_rows(table)).losses.mean().item()
    assert after < before
    assert metrics["weight"] == pytest.approx(1, abs=1e-6) and metrics["optimiser_steps"] == 2


@pytest.mark.slow
def test_a_job_runs_the_example_as_one_process_does(
    folder: Path, miniature_model: Path, example_settings: RunSettings
) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump(example_values(miniature_model)), encoding="utf-8")
    job = run_align("--config", "run.yaml", directory=folder)
    assert job.exit_code == 0, job.stderr
    run = folder / "runs" / "weighted"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    published = align_in_process(example_settings)
    assert [line["adapter_sha256"] for line in lines] == [checksum_of(adapter) for adapter in published[1:]]
    assert not np.array_equal(published[0], published[-1])
    environment = json.loads((run / "environment.json").read_text())
    assert environment["own_modules"] == {"reward_weighted.py": checksum_of_module(EXAMPLE_FILE)}
    assert "Reward-weighted" in (run / "report.html").read_text(encoding="utf-8")
    assert "arXiv:2302.12192" in (run / "adapter" / "README.md").read_text(encoding="utf-8")
