"""Nothing in the sources reads a pickle, runs text as code, or imports what no configuration names."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pipeline", "actors", "jobs", "benchmarks", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

PICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
HARMLESS_PARTS = {"UnpicklingError", "PickleError"}

# The loader of a library that can run code -> what it must be told, in so many words.
MUST_SAY = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
    "AutoConfig.from_pretrained": ("trust_remote_code", False),
}
NEVER_SAID = {("weights_only", False), ("allow_pickle", True), ("use_safetensors", False), ("trust_remote_code", True)}
NEVER_SAID |= {("shell", True)}
NEVER_CALLED = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load", "torch.package"}
NEVER_CALLED |= {"yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "pd.read_pickle"}
# Where Ray Data is imported, it unpickles the columns that Ray Data marks.
NEVER_CALLED |= {"pd.read_parquet", "pandas.read_parquet"}

# Torch's own format, of tensors alone, where the stages of make_demo.py keep their place; benchmarks of their own.
WRITES_TORCH_FILES = {"pipeline/demo/training.py", "pipeline/demo/train_denoiser.py"}

# The registries of rewards and methods, whose values are their own; and what a configuration names.
IMPORTS_BY_NAME = {"pipeline/rewards/__init__.py", "pipeline/methods/__init__.py", "pipeline/own_classes.py"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def unsafe_calls(source: str) -> list[str]:
    """What is unsafe in a module, each with its line."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            faults += [f"{node.lineno}: imports {name}" for name in _pickling_imports(node)]
        elif isinstance(node, ast.Attribute) and node.attr in PICKLERS:
            faults.append(f"{node.lineno}: uses {ast.unparse(node)}")
        elif isinstance(node, ast.Call):
            faults += [f"{node.lineno}: {fault}" for fault in _call_faults(node)]
    return faults


def _pickling_imports(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if PICKLERS & set(alias.name.split("."))]
    names = [alias.name for alias in node.names]
    if PICKLERS & set((node.module or "").split(".")):
        return [name for name in names if name not in HARMLESS_PARTS]
    # `load` by itself would hide whose it is.
    bare = {"torch", "numpy", "yaml"} & {node.module}
    return [name for name in names if name in PICKLERS or (bare and name.startswith(("load", "full_", "unsafe_")))]


def _call_faults(node: ast.Call) -> list[str]:
    called = ast.unparse(node.func).replace("numpy.", "np.")
    said = {(word.arg, word.value.value) for word in node.keywords if isinstance(word.value, ast.Constant)}
    faults = [f"{called}({word}={value})" for word, value in sorted(said & NEVER_SAID)]
    if called in NEVER_CALLED:
        faults.append(f"calls {called}")
    if called in MUST_SAY and MUST_SAY[called] not in said:
        faults.append("{} without {}={}".format(called, *MUST_SAY[called]))
    return faults


def calls(source: str, *names: str) -> bool:
    """Whether a module calls a function by one of these names."""
    nodes = ast.walk(ast.parse(source))
    return any(isinstance(node, ast.Call) and ast.unparse(node.func) in names for node in nodes)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_source_makes_an_unsafe_call(path: Path) -> None:
    assert unsafe_calls(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import pickle", "1: imports pickle"),
        ("from ray import cloudpickle", "1: imports cloudpickle"),
        ("import ray.cloudpickle as p", "1: imports ray.cloudpickle"),
        ("from pickle import loads", "1: imports loads"),
        ("from torch import load", "1: imports load"),
        ("import ray\nray.cloudpickle.loads(x)", "2: uses ray.cloudpickle"),
        ("torch.load(f)", "1: torch.load without weights_only=True"),
        ("torch.load(f, weights_only=False)", "1: torch.load(weights_only=False)"),
        ("numpy.load(f)", "1: np.load without allow_pickle=False"),
        ("AutoConfig.from_pretrained(f)", "1: AutoConfig.from_pretrained without trust_remote_code=False"),
        ("Model.from_pretrained(f, use_safetensors=False)", "1: Model.from_pretrained(use_safetensors=False)"),
        ("yaml.load(f, Loader=yaml.Loader)", "1: calls yaml.load"),
        ("subprocess.run(c, shell=True)", "1: subprocess.run(shell=True)"),
        ("eval(text)", "1: calls eval"),
        ("pd.read_parquet(f)", "1: calls pd.read_parquet"),
    ],
)
def test_unsafe_calls_are_seen(source: str, fault: str) -> None:
    assert fault in unsafe_calls(source)


def test_safe_ones_are_let_through() -> None:
    source = "from pickle import UnpicklingError\nfrom safetensors.torch import load\nmodel.eval()\nyaml.safe_load(f)\n"
    assert unsafe_calls(source + "torch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)") == []


def test_a_run_writes_no_torch_files_and_imports_by_name_only_what_it_must() -> None:
    product = [path for path in SOURCES if relative(path).split("/")[0] in ("pipeline", "actors", "jobs")]
    texts = {relative(path): path.read_text(encoding="utf-8") for path in product}
    assert {name for name, text in texts.items() if calls(text, "torch.save")} <= WRITES_TORCH_FILES
    assert {name for name, text in texts.items() if calls(text, "import_module", "spec_from_file_location")} == (
        IMPORTS_BY_NAME
    )
