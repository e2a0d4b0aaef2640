"""Training of the demo: what the losses and helpers compute, and that a killed run continues to the same weights."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from eventually import PATIENCE_S, wait_until
from torch import Tensor, nn

from jobs.make_demo import main
from pipeline.demo.captions import describe, leave_open
from pipeline.demo.degrade import blur
from pipeline.demo.grammar import UNSTATED, parse_prompt
from pipeline.demo.renderer import draw_scenes, random_attributes
from pipeline.demo.train_clip import (
    change_one_attribute,
    is_right,
    masked_contrastive_loss,
    swap_binding,
    swap_objects,
)
from pipeline.demo.train_denoiser import snr_weights
from pipeline.demo.training import LoopConfig, backward_in_threads, fast_precision, train

ROOT = Path(__file__).parents[1]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def learn_the_sum(model: nn.Module, step: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    inputs = torch.randn(8, 3, generator=step)
    loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
    loss.backward()
    return loss.detach(), {}


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_sharing_a_batch_among_threads_changes_no_gradient(shards: int) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(5, 2), torch.randn(10, 5)
    expected = model(inputs).square().mean()
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = backward_in_threads(model, lambda part: model(inputs[part]).square().mean(), 10, shards)
    assert torch.isclose(loss, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None and torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_a_continued_loop_ends_with_the_same_weights(tmp_path: Path) -> None:
    def run(checkpoint: Path, stop_at: int | None) -> nn.Module:
        def stop(step: int, model: nn.Module) -> None:
            if step == stop_at:
                raise KeyboardInterrupt

        torch.manual_seed(0)
        config = LoopConfig(steps=20, learning_rate=0.1, seed=5, warmup_steps=3, checkpoint_every=5)
        return train("test", nn.Linear(3, 1), learn_the_sum, config, checkpoint, stop)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.pt", stop_at=10)
    continued, whole = run(tmp_path / "a.pt", None), run(tmp_path / "b.pt", None)
    for one, other in zip(continued.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("instructions", [set(), {"avx512_bf16"}, {"amx_bf16"}])
def test_bfloat16_is_used_only_where_the_processor_multiplies_it(
    instructions: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True) | {"avx2": True})
    with fast_precision(torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if instructions else torch.float32)


def test_one_attribute_changes_and_is_no_longer_right() -> None:
    rows = random_attributes(300, 0.3, generator())
    changed = change_one_attribute(rows, generator())
    assert ((changed != rows).sum(dim=1) == 1).all()
    assert not is_right(rows, changed).diagonal().any()
    assert is_right(rows, rows).diagonal().all()


def test_exchanges_keep_singles_and_undo_themselves() -> None:
    rows = random_attributes(300, 0.3, generator())
    for exchange in (swap_objects, swap_binding):
        assert torch.equal(exchange(exchange(rows)), rows)
        assert torch.equal(exchange(rows)[rows[:, 0] == 0], rows[rows[:, 0] == 0])


def test_descriptions_state_what_is_left_and_nothing_else() -> None:
    stated = leave_open(random_attributes(200, 0.3, generator()), generator())
    assert (stated == UNSTATED).any()
    texts = describe(stated, generator())
    assert [parse_prompt(text).attributes() for text in texts] == [tuple(row) for row in stated.tolist()]


def test_contrastive_loss_leaves_other_right_pairs_out() -> None:
    similarity = torch.tensor([[2.0, 9.0], [0.0, 1.0]])
    right = torch.tensor([[True, True], [False, True]])
    loss, accuracy = masked_contrastive_loss(similarity, right)
    rows = -torch.log_softmax(torch.tensor([0.0, 1.0]), 0)[1] / 2  # the first row has no negative left
    columns = -torch.log_softmax(torch.tensor([2.0, 0.0]), 0)[0] / 2  # nor has the second column
    assert torch.isclose(loss, 0.5 * (rows + columns)) and accuracy == 1


def test_blur_keeps_flat_images_and_spreads_a_point() -> None:
    flat = torch.full((2, 3, 64, 64), 0.3)
    assert torch.allclose(blur(flat, torch.tensor([0.0, 2.0])), flat, atol=1e-6)
    point = torch.zeros(1, 3, 64, 64)
    point[..., 32, 32] = 1
    spread = blur(point, torch.tensor([1.5]))
    distance = (torch.arange(64.0) - 32) ** 2
    assert spread.sum().item() == pytest.approx(3, rel=1e-4)
    assert (spread[0, 0].sum(0) * distance).sum().item() == pytest.approx(1.5**2, rel=0.02)


def test_snr_weights_follow_min_snr() -> None:
    alphas_cumprod = torch.tensor([0.99, 0.5, 0.1])
    assert torch.allclose(snr_weights(alphas_cumprod), torch.tensor([5 / 99, 1.0, 1.0]))


def test_drawn_images_are_what_training_sees() -> None:
    images = draw_scenes(random_attributes(4, 0.5, generator()), generator())
    assert images.shape == (4, 3, 64, 64) and images.min() >= 0 and images.max() <= 1


def make_demo(folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "jobs.make_demo", "--output", str(folder / "models"), "--work", str(folder / "work")),
        *("--scale", "0.002", "--threads", "1", "--device", "cpu"),
    ]


def start_making(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(make_demo(folder), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_trials_folder_is_not_taken_for_the_real_run(tmp_path: Path) -> None:
    (tmp_path / "scale.txt").write_text("0.01")
    with pytest.raises(ValueError, match=r"was begun with --scale 0.01, and this run has 1; give another --work"):
        main(["--work", str(tmp_path), "--output", str(tmp_path / "models")])


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_make_demo_killed_continues_to_the_models_of_an_undisturbed_run(tmp_path: Path) -> None:
    """In the midst of its stages, of which two run at a time: the second process must not go on by itself."""
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(make_demo(killed), cwd=ROOT, stdout=output, stderr=output)
    wait_until(lambda: (killed / "work" / "judge.pt").exists() or process.poll() is not None, interval_s=0.02)
    helpers = psutil.Process(process.pid).children()
    assert helpers
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: all(has_ended(helper) for helper in helpers), interval_s=0.02)
    assert not (killed / "work" / "decoder.pt").exists(), "the second process went on to its last stage"
    finished = [(folder, start_making(folder)) for folder in (killed, undisturbed)]
    for folder, process in finished:
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, output
        assert ("[judge] continuing at step" in output) == (folder == killed)
    models = killed / "models"
    files = sorted(path.relative_to(models) for path in models.rglob("*.safetensors"))
    assert len(files) == 5
    for file in files:
        assert (models / file).read_bytes() == (undisturbed / "models" / file).read_bytes(), file
    assert "Measured quality" in (models / "demo-clip" / "README.md").read_text()
    assert (models / "demo" / "samples.png").stat().st_size > 0
    assert not [path for path in models.rglob("*.json") if str(tmp_path) in path.read_text()], "the maker's folder"
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".new", ".old"))]
