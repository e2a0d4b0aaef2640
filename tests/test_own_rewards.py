"""Rewards of one's own, `module:Class`: what is refused, and where they are found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from job_runs import REPOSITORY, run_align
from run_folders import write_run_folder
from settings import miniature_settings, miniature_values

from actors.cluster import ClusterInfo
from actors.reward import RewardActor
from pipeline.preflight import check_rewards, check_run, own_modules
from pipeline.report.history import read_run
from pipeline.report.writing import write_report
from pipeline.rewards import Reward, load_reward, reward_class
from pipeline.scoring import RewardError

pytest_plugins = ["model_fixtures"]

EXAMPLES = REPOSITORY / "examples" / "rewards"
EXAMPLE = "mirror_symmetry:MirrorSymmetry"
CPU = torch.device("cpu")

COMPLETE = """
from pipeline.rewards import Reward

class {name}(Reward):
    name, differentiable, needs_path, licence = "mine", False, False, "none"
    {changes}

    @classmethod
    def load(cls, path, device, dtype):
        return cls()

    def score(self, images, prompts):
        return images.mean(dim=(1, 2, 3)) * {factor}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder a job is started in; what is imported from it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")) or module == EXAMPLE.split(":")[0]:
            del sys.modules[module]


def write(path: Path, name: str = "Mine", changes: str = "", factor: str = "1") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(COMPLETE.format(name=name, changes=changes, factor=factor), encoding="utf-8")


def test_a_module_of_the_working_directory_is_found_by_its_name(folder: Path) -> None:
    write(folder / "my_rewards.py")
    write(folder / "package" / "inner.py", "Inner")
    (folder / "package" / "__init__.py").touch()
    assert reward_class("my_rewards:Mine") is reward_class("my_rewards:Mine")
    assert issubclass(reward_class("package.inner:Inner"), Reward)
    settings = miniature_settings(
        folder, reward={"name": "my_rewards:Mine"}, evaluation={"rewards": [{"name": "package.inner:Inner"}]}
    )
    assert own_modules(settings) == [folder / "my_rewards.py", folder / "package"]


def test_nothing_is_imported_unless_it_is_named(folder: Path) -> None:
    (folder / "jpeg_compressibility.py").write_text("raise RuntimeError('imported')")
    assert reward_class("jpeg_compressibility").name == "jpeg_compressibility"


def test_the_folder_of_a_run_is_read_without_importing_what_it_was_trained_on(folder: Path) -> None:
    """A report may be made of somebody else's run: only starting or resuming one imports the modules it names."""
    (folder / "eager.py").write_text("raise RuntimeError('imported')")
    run = write_run_folder(folder / "theirs", [0.1, 0.2], reward={"name": "eager:Mine"})
    write_report([run], folder / "report")
    assert "eager:Mine" in (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "eager" not in sys.modules
    with pytest.raises(ValueError, match="importing eager failed with RuntimeError: imported"):
        check_rewards(read_run(run).settings)


def test_a_folder_is_no_package_because_there_are_modules_in_it(folder: Path) -> None:
    """Else the folder of somebody else's run, under the working directory, could bring its own code."""
    write(folder / "runs" / "theirs" / "inner.py", "Inner")
    (folder / "runs" / "theirs" / "__init__.py").touch()
    with pytest.raises(ValueError, match=r"reward 'runs.theirs.inner:Inner': runs is a folder without __init__\.py"):
        reward_class("runs.theirs.inner:Inner")
    assert not any(module.startswith("runs") for module in sys.modules)


def test_an_installed_module_is_not_replaced_by_a_file_of_the_working_directory(folder: Path) -> None:
    write(folder / "colorsys.py")
    with pytest.raises(ValueError, match=r"python3\.\d+/colorsys.py has no class Mine; its rewards: none"):
        reward_class("colorsys:Mine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("differentiable = None", "must declare the class attribute differentiable of type bool; got None"),
        ("name = 3", "must declare the class attribute name of type str; got 3"),
        ("held_out_only = 'no'", "must declare the class attribute held_out_only of type bool; got 'no'"),
        ("scale = 0.0", "declares scale=0.0; it must be a positive number"),
        ("scale = 'wide'", "declares scale='wide'; it must be a positive number"),
    ],
)
def test_a_class_that_does_not_describe_itself_is_refused(folder: Path, changes: str, message: str) -> None:
    write(folder / "undescribed.py", changes=changes)
    with pytest.raises(ValueError, match=f"reward 'undescribed:Mine' {message}"):
        reward_class("undescribed:Mine")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class Mine: pass", "is no subclass of pipeline.rewards.base.Reward"),
        ("Mine = 3", "is no subclass of pipeline.rewards.base.Reward"),
        (
            "from pipeline.rewards import Reward\nclass Mine(Reward): pass",
            "does not define load, score; pipeline.rewards.base",
        ),
        ("from pipeline.rewards import Reward\nclass Yours(Reward): pass", "has no class Mine; its rewards: Yours"),
        ("1 / 0", "importing broken failed with ZeroDivisionError: division by zero"),
        ("import nowhere_to_be_found", "importing broken failed with ModuleNotFoundError: No module named 'nowhere_to"),
        ("def", "importing broken failed with SyntaxError"),
    ],
)
def test_what_is_no_reward_is_refused(folder: Path, source: str, message: str) -> None:
    (folder / "broken.py").write_text(source, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"reward 'broken:Mine'.*{message}"):
        reward_class("broken:Mine")


def test_a_missing_module_says_where_it_was_looked_for(folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"there is no module missing.one; put missing/one.py into .*{folder}"):
        reward_class("missing.one:Mine")


@given(name=st.text(alphabet="ab.:/ -9", max_size=8).map(lambda text: f"{text}:"))
def test_a_name_that_is_no_path_to_a_class_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not of the form module:Class"):
        reward_class(name)


def test_preflight_refuses_it_before_anything_starts(folder: Path, miniature_model: Path) -> None:
    write(folder / "my_rewards.py", changes="needs_path = True")
    guided = miniature_settings(miniature_model, reward={"name": "my_rewards:Mine"}, method={"guidance": {}})
    with pytest.raises(ValueError, match="guidance needs a differentiable reward, and 'mine' is not"):
        check_run(guided)
    with pytest.raises(ValueError, match=r"reward 'mine' needs reward\.path"):
        check_run(miniature_settings(miniature_model, reward={"name": "my_rewards:Mine"}))


# The example


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> type[Reward]:
    monkeypatch.chdir(EXAMPLES)
    return reward_class(EXAMPLE)


def test_the_example_prefers_symmetric_pictures(example: type[Reward]) -> None:
    reward = load_reward(EXAMPLE, None, CPU, torch.float32, scale=0.2)
    left = torch.rand(1, 3, 4, 2, generator=torch.Generator().manual_seed(0))
    symmetric = torch.cat([left, left.flip(-1)], dim=-1)
    halves = torch.cat([torch.zeros(1, 3, 4, 2), torch.ones(1, 3, 4, 2)], dim=-1)
    assert reward.score(torch.cat([symmetric, halves]), ["a", "b"]).tolist() == [0.0, -1.0]
    assert (reward.scale, example.scale) == (0.2, 0.05)


def test_a_reward_actor_scores_with_the_example_and_differentiates_it(
    example: type[Reward], miniature_model: Path
) -> None:
    threads = torch.get_num_threads()
    actor = RewardActor(miniature_settings(miniature_model, reward={"name": EXAMPLE}))
    torch.set_num_threads(threads)
    latents = np.random.default_rng(0).standard_normal((3, 4, 8, 8), dtype=np.float32)
    prompts = ["a", "b", "c"]
    scores, gradients = actor.score_with_gradient(latents, prompts, 0)
    assert np.array_equal(scores, actor.score(latents, prompts, 0)) and (scores < 0).all()
    length = np.linalg.norm(gradients.reshape(3, -1), axis=1)[:, None, None, None]
    assert (actor.score(latents + 0.01 * gradients / length, prompts, 0) > scores).all()


def test_an_own_reward_that_breaks_its_promise_is_named(folder: Path, miniature_model: Path) -> None:
    write(folder / "poisoned.py", factor="float('nan')")
    actor = RewardActor(miniature_settings(miniature_model, reward={"name": "poisoned:Mine"}))
    with pytest.raises(RewardError, match="reward 'mine' returned nan for the prompt 'a'"):
        actor.score(np.zeros((1, 4, 8, 8), np.float32), ["a"], 0)


# On Ray


@pytest.mark.slow
def test_a_job_finds_the_module_in_the_folder_it_is_started_in(folder: Path, miniature_model: Path) -> None:
    shutil.copy(EXAMPLES / "mirror_symmetry.py", folder)
    values = miniature_values(
        miniature_model,
        name="mirrored",
        iterations=1,
        reward={"name": EXAMPLE},
        method={"guidance": {}},
        evaluation={"images": 2},
    )
    (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    job = run_align("--config", "run.yaml", directory=folder)
    assert job.exit_code == 0, job.stderr
    summary = json.loads((folder / "runs" / "mirrored" / "summary.json").read_text())
    assert -1 < summary["evaluation"][EXAMPLE]["base_mean"] < 0
    assert summary["last_iteration"]["reward"] < 0


SCORE_ON_A_CLUSTER = """
import ray
from pathlib import Path
from actors.cluster import connect
from pipeline.own_classes import own_module_path
from pipeline.rewards import reward_class

@ray.remote
def scale() -> float:
    from pipeline.rewards import reward_class
    return reward_class("mirror_symmetry:MirrorSymmetry").scale, str(Path.cwd())

reward_class("mirror_symmetry:MirrorSymmetry")
info = connect(own_modules=[own_module_path("mirror_symmetry:MirrorSymmetry")])
assert info.mode == "joined"
found, directory = ray.get(scale.remote())
assert directory != str(Path.cwd()), "the worker sees the driver's folder, so nothing was tested"
print(found)
"""


@pytest.mark.slow
def test_a_driver_on_a_cluster_sends_the_module_along(folder: Path, ray_session) -> None:
    shutil.copy(EXAMPLES / "mirror_symmetry.py", folder)
    assert float(run_on_a_cluster(SCORE_ON_A_CLUSTER, folder, ray_session).splitlines()[-1]) == 0.05


SETTINGS_ON_A_CLUSTER = """
import ray, sys
from pathlib import Path
from actors.cluster import connect
from pipeline.config_loading import load_settings
from pipeline.own_classes import look_in_the_working_directory
from pipeline.preflight import own_modules

@ray.remote
def method_of(settings) -> str:
    return type(settings.method).__name__, settings.method.temperature, str(Path.cwd())

look_in_the_working_directory()
settings = load_settings(Path(sys.argv[1]))
assert connect(own_modules=own_modules(settings)).mode == "joined"
*found, directory = ray.get(method_of.remote(settings))
assert directory != str(Path.cwd()), "the worker sees the driver's folder, so nothing was tested"
print(*found)
"""


@pytest.mark.slow
def test_the_settings_of_a_method_of_ones_own_reach_the_workers_of_a_cluster(
    folder: Path, miniature_model: Path, ray_session
) -> None:
    shutil.copy(REPOSITORY / "examples" / "methods" / "reward_weighted.py", folder)
    values = miniature_values(miniature_model, method={"name": "reward_weighted:RewardWeighted", "temperature": 2.0})
    (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    printed = run_on_a_cluster(SETTINGS_ON_A_CLUSTER, folder, ray_session, "run.yaml")
    assert printed.splitlines()[-1] == "RewardWeightedSettings 2.0"


def run_on_a_cluster(script: str, folder: Path, cluster: ClusterInfo, *arguments: str) -> str:
    """What a driver prints that is started in `folder` with `arguments` and joins the cluster."""
    environment = os.environ | {
        "RAY_ADDRESS": cluster.address,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
    }
    finished = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


JOURNAL_ON_A_CLUSTER = """
from pathlib import Path
import ray
from settings import miniature_settings
from actors.cluster import connect
from actors.journal import start_journal

assert connect().mode == "joined"
Path("runs/mine").mkdir(parents=True)
journal = start_journal(Path("runs/mine"), miniature_settings(Path("a-model"), tracking=[]))
ray.get(journal.begin.remote(0))
"""


@pytest.mark.slow
def test_a_driver_on_a_cluster_finds_what_its_journal_writes(folder: Path, ray_session) -> None:
    """Actors there work in a copy of the driver's folder."""
    run_on_a_cluster(JOURNAL_ON_A_CLUSTER, folder, ray_session)
    assert (folder / "runs" / "mine" / "metrics.jsonl").is_file()
