"""The card beside an exported adapter: its lines of Python draw as the run sampled."""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler, PNDMScheduler
from PIL import Image
from policies import make_policy
from settings import miniature_settings

from pipeline.adapter import export_adapter
from pipeline.config_loading import load_settings
from pipeline.model_card import adapter_card
from pipeline.training_record import training_record

pytest_plugins = ["model_fixtures"]

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS, ETA = 4, 0.5


def python_of(page: str) -> str:
    """The one block of Python of a page."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(code)


def test_the_lines_of_the_card_draw_as_the_run_sampled(
    miniature_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = miniature_settings(miniature_model, sampling={"num_steps": STEPS, "guidance_scale": 3.0, "eta": ETA})
    card = adapter_card(settings, 2, "no table")
    export_adapter(make_policy(settings, adapter_scale=0.3), tmp_path / "adapter", card, training_record(settings))
    code = python_of(card)
    assert "guidance_scale=3.0" in code
    # Stable Diffusion v1.5 is published with PNDM, to which eta means nothing.
    loading = f'from_pretrained("{miniature_model}", torch_dtype=torch.float32)'
    assert loading in code
    code = code.replace(loading, loading + "\npipeline.scheduler = PNDM.from_config(pipeline.scheduler.config)")
    monkeypatch.chdir(tmp_path)
    etas, step = [], DDIMScheduler.step

    # diffusers looks at the names of the arguments before it hands eta over.
    @functools.wraps(step)
    def noted(self: DDIMScheduler, *args: Any, eta: float = 0.0, **others: Any) -> Any:
        etas.append(eta)
        return step(self, *args, eta=eta, **others)

    monkeypatch.setattr(DDIMScheduler, "step", noted)
    names: dict[str, Any] = {"PNDM": PNDMScheduler}
    exec(code.replace("path/to/this/directory", "adapter"), names)
    assert etas == [ETA] * STEPS
    assert names["pipeline"].get_list_adapters() == {"unet": ["default_0"]}
    assert Image.open("image.png").size == (names["image"].width, names["image"].height)


def test_the_lines_of_the_readme_draw_with_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    settings = load_settings(Path("configs/demo.yaml"))
    export_adapter(make_policy(settings), tmp_path / "adapter", "card", training_record(settings))
    # The card of such a run has the same lines, but for names.
    code, card = (python_of(page) for page in (Path("README.md").read_text("utf-8"), adapter_card(settings, 24, "")))
    arguments = re.search(r"num_inference_steps=.*?\)", code)
    assert arguments is not None and arguments[0] in card
    assert set(code.splitlines()[:5]) <= set(card.splitlines())
    for written, here in {"runs/demo/adapter": tmp_path / "adapter", "star.png": tmp_path / "star.png"}.items():
        assert written in code
        code = code.replace(written, str(here))
    # The model's weights lie in half precision: an image that is all one colour would be one of overflows.
    exec(code.replace("num_inference_steps=20", "num_inference_steps=4"), {})
    image = Image.open(tmp_path / "star.png")
    assert image.size == (64, 64) and len(image.getcolors(64 * 64) or []) > 100
