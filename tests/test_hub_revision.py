"""A run goes on with the weights that it began with, whatever becomes of its model on the hub."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from clip_checkpoints import COMMIT, OfflineHub
from miniature import write_pipeline
from settings import miniature_settings, miniature_values
from torch import nn

from actors.cluster import ClusterInfo
from jobs import align, compare
from pipeline.adapter import BareAdapter
from pipeline.comparison.model_commit import at_one_commit
from pipeline.comparison.plan import Plan, make_plan
from pipeline.comparison.settings import ComparisonSettings
from pipeline.config import LoraSettings, ModelSettings, RunSettings, SamplingSettings
from pipeline.config_loading import parse_as
from pipeline.decoder import LatentDecoder
from pipeline.encoder import LatentEncoder
from pipeline.evaluation.command_line import settings_from
from pipeline.hub_revision import at_its_commit
from pipeline.model_card import adapter_card
from pipeline.policy import Policy
from pipeline.preflight import check_model, check_run
from pipeline.scheduler import load_scheduler
from pipeline.training_record import TRAINING_FILE, training_record

HUB_ID, NEWER = "some/model", "f" * 40
CPU = torch.device("cpu")
CLUSTER = ClusterInfo("started", "", "", "", 1, {}, "")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as it was."""
    return write_pipeline(tmp_path_factory.mktemp("before"), seed=0)


@pytest.fixture
def hub(before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OfflineHub:
    """A hub that has the model as it was."""
    hub = OfflineHub(monkeypatch, tmp_path / "hub")
    hub.add(HUB_ID, *before.iterdir())
    return hub


def change(hub: OfflineHub, tmp_path: Path) -> None:
    """Another network, another autoencoder, another parametrisation under the same id."""
    hub.add(HUB_ID, *write_pipeline(tmp_path / "after", "v_prediction", seed=1, width=16).iterdir(), commit=NEWER)


def equal(one: nn.Module, other: nn.Module) -> bool:
    tensors, others = one.state_dict(), other.state_dict()
    return tensors.keys() == others.keys() and all(
        tensor.shape == others[name].shape and torch.equal(tensor, others[name]) for name, tensor in tensors.items()
    )


def test_a_pinned_model_stays_what_it_was(hub: OfflineHub, before: Path, tmp_path: Path) -> None:
    pinned = at_its_commit(ModelSettings(path=HUB_ID))
    assert pinned.revision == COMMIT
    change(hub, tmp_path)
    assert at_its_commit(pinned) == pinned
    assert at_its_commit(ModelSettings(path=HUB_ID)).revision == NEWER

    def policy_of(model: ModelSettings) -> Policy:
        return Policy.load(model, None, SamplingSettings(num_steps=4), seed=0)

    on_disk = ModelSettings(path=str(before))
    policy, expected = policy_of(pinned), policy_of(on_disk)
    assert equal(policy.unet, expected.unet) and equal(policy.text_encoder, expected.text_encoder)
    assert not equal(policy_of(ModelSettings(path=HUB_ID)).unet, expected.unet), "nothing has changed on this hub"
    assert load_scheduler(HUB_ID, COMMIT).config.prediction_type == "epsilon"
    assert load_scheduler(HUB_ID).config.prediction_type == "v_prediction"
    decoders = [LatentDecoder.load(path, CPU, torch.float32, 1, revision=at) for path, at in places(before)]
    assert equal(decoders[0].vae, decoders[1].vae)
    encoders = [LatentEncoder.load(path, CPU, torch.float32, revision=at) for path, at in places(before)]
    assert equal(encoders[0].vae, encoders[1].vae)
    adapters = [BareAdapter.make(path, LoraSettings(), at).adapter_parameters() for path, at in places(before)]
    assert {name: value.shape for name, value in adapters[0].items()} == {
        name: value.shape for name, value in adapters[1].items()
    }


def places(before: Path) -> tuple[tuple[str, str | None], ...]:
    return (HUB_ID, COMMIT), (str(before), None)


def test_a_run_looks_its_commit_up_once_and_keeps_it(
    hub: OfflineHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[RunSettings] = []

    def carry_out(settings: RunSettings, run_directory: Path, *_: Any) -> None:
        begun.append(settings)
        run_directory.mkdir(parents=True, exist_ok=True)
        (run_directory / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))

    monkeypatch.setattr(align, "carry_out", carry_out)
    monkeypatch.setattr("actors.cluster.connect", lambda *_, **__: CLUSTER)
    monkeypatch.setattr("actors.crew.check_room", lambda _: None)
    config = tmp_path / "run.yaml"
    values = miniature_values(Path(HUB_ID), name="run", output_dir=str(tmp_path))
    config.write_text(yaml.safe_dump(values | {"model": {"path": HUB_ID}}))
    align.main(["--config", str(config)])
    change(hub, tmp_path)
    monkeypatch.setattr("pipeline.prompt_sets.load_prompt_sets", lambda _: None)
    align.main(["--resume", str(tmp_path / "run")])
    assert [settings.model.revision for settings in begun] == [COMMIT, COMMIT]


class BegunError(Exception):
    """The comparison would begin now."""


@pytest.mark.parametrize("commit", [NEWER, "1" * 40, "12345e" + "6" * 34])
def test_all_runs_of_a_comparison_have_one_commit(
    hub: OfflineHub, before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str
) -> None:
    hub.add(HUB_ID, *before.iterdir(), commit=commit)
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(miniature_values(Path(HUB_ID)) | {"model": {"path": HUB_ID}}))
    values = {
        "name": "comparison",
        "base": str(base),
        "variants": [{"label": "one"}, {"label": "two", "overrides": ["method.beta=3"]}],
        "seeds": [0],
        "budget": {"unit": "trajectories", "amount": 8},
    }
    plan = make_plan(parse_as(ComparisonSettings, values), tmp_path / "comparison")
    begun: list[Plan] = []

    def begin(plan: Plan, *_: Any) -> None:
        begun.append(plan)
        raise BegunError

    monkeypatch.setattr(compare, "make_and_evaluate", begin)
    with pytest.raises(BegunError):
        compare.run(plan, resumes=False)
    (pinned,) = begun
    assert [cell.settings.model.revision for cell in pinned.cells] == [commit, commit]
    assert at_one_commit(pinned) == pinned


def test_a_directory_of_this_machine_has_no_revision(before: Path) -> None:
    model = ModelSettings(path=str(before))
    assert at_its_commit(model) == model
    with pytest.raises(ValueError, match=r"model.revision 'main' is of a hub id, and model.path '.*' is a directory"):
        check_model(ModelSettings(path=str(before), revision="main"))


def test_a_revision_that_is_not_there_is_named(hub: OfflineHub) -> None:
    with pytest.raises(ValueError, match=r"'some/model' is neither .* can be reached at the revision 'v9'"):
        check_model(ModelSettings(path=HUB_ID, revision="v9"))
    check_run(miniature_settings(Path(HUB_ID), model={"path": HUB_ID, "revision": COMMIT}))


def test_an_adapter_says_of_which_commit_it_is_and_an_evaluation_takes_that(tmp_path: Path) -> None:
    settings = miniature_settings(Path(HUB_ID), model={"path": HUB_ID, "revision": COMMIT})
    assert f'from_pretrained("{HUB_ID}", revision="{COMMIT}", torch_dtype' in adapter_card(settings, 1, "")
    (tmp_path / TRAINING_FILE).write_text(training_record(settings).model_dump_json())

    def model_of(*adapters: Path) -> ModelSettings:
        return settings_from([str(adapter) for adapter in adapters], "demo", None, ["clip"], None, 1, []).model

    assert (model_of(tmp_path).path, model_of(tmp_path).revision) == (HUB_ID, COMMIT)
    other = tmp_path / "other"
    other.mkdir()
    newer = training_record(settings).model_copy(update={"base_revision": NEWER})
    (other / TRAINING_FILE).write_text(newer.model_dump_json())
    with pytest.raises(ValueError, match=rf"different models \({HUB_ID} at {COMMIT}, {HUB_ID} at {NEWER}\); choose"):
        model_of(tmp_path, other)
