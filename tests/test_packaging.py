"""The shape of the repository: floors, file and function sizes, pins, licence."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"pipeline": 0, "actors": 1, "jobs": 2}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70

PRODUCT_FILES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def top_level_imports(source: str, package: str) -> set[str]:
    """First names of everything that a module of `package` imports, wherever in the module it does so.

    A relative import counts as `package`, and so does importlib.import_module or __import__ of a literal name.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(package if node.level else (node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names |= {str(arg.value).split(".")[0] for arg in node.args if isinstance(arg, ast.Constant)}
    return names


def floor_faults(source: str, floor: str) -> set[str]:
    """Imports that point upwards, and Ray in pipeline/."""
    higher = {name for name, height in FLOORS.items() if height > FLOORS[floor]}
    forbidden = higher | {"tests", "benchmarks"} | ({"ray"} if floor == "pipeline" else set())
    return top_level_imports(source, floor) & forbidden


def long_functions(source: str) -> list[str]:
    functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno + 1 > MAX_FUNCTION_LINES]


def project_table() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(*, dev: bool) -> list[Requirement]:
    """What users install, extras included, or with `dev` what developers do."""
    table = project_table()
    extras = table["optional-dependencies"]
    lines = table["dependencies"] + [line for name in extras if dev or name != "dev" for line in extras[name]]
    return [Requirement(line) for line in lines]


def pins() -> dict[str, str]:
    """Canonical package name to pinned version.

    Raises:
        ValueError: a line that is no exact pin.
    """
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)", line)
        if match is None:
            raise ValueError(f"constraints.txt: {line!r} is not NAME==VERSION without a local suffix")
        found[canonicalize_name(match[1])] = match[2]
    return found


@pytest.mark.parametrize("path", PRODUCT_FILES, ids=relative)
def test_nothing_imports_upwards(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    assert floor_faults(path.read_text(encoding="utf-8"), floor) == set()


def test_every_floor_is_looked_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in PRODUCT_FILES} == FLOORS.keys()


@pytest.mark.parametrize(
    ("source", "floor", "found"),
    [
        ("import ray.data", "pipeline", {"ray"}),
        ("def f():\n    from ray import data", "pipeline", {"ray"}),
        ("import importlib\nimportlib.import_module('ray.train')", "pipeline", {"ray"}),
        ("from actors.fleet import Fleet", "pipeline", {"actors"}),
        ("import jobs.align", "actors", {"jobs"}),
        ("import ray\nfrom pipeline import noise\nfrom . import fleet", "actors", set()),
        ("from actors import fleet\nimport pipeline.noise", "jobs", set()),
    ],
)
def test_upward_imports_are_seen(source: str, floor: str, found: set[str]) -> None:
    assert floor_faults(source, floor) == found


@pytest.mark.parametrize("path", [*PRODUCT_FILES, *TEST_FILES], ids=relative)
def test_files_are_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", PRODUCT_FILES, ids=relative)
def test_functions_are_small(path: Path) -> None:
    assert long_functions(path.read_text(encoding="utf-8")) == []


def test_a_long_function_is_seen() -> None:
    body = "    pass\n"
    assert long_functions("def f():\n" + body * (MAX_FUNCTION_LINES - 1)) == []
    assert long_functions("async def f():\n" + body * MAX_FUNCTION_LINES) == ["f"]


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    pinned = pins()
    for requirement in requirements(dev=True):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is missing from constraints.txt"
        assert requirement.specifier.contains(Version(pinned[name])), f"{requirement} excludes {pinned[name]}"


def test_every_imported_package_is_required() -> None:
    distributions = packages_distributions()
    required = {
        dev: {canonicalize_name(requirement.name) for requirement in requirements(dev=dev)} for dev in (False, True)
    }
    own = FLOORS.keys() | {path.stem for path in TEST_FILES} | {"tests", "benchmarks"}
    standard_or_own = sys.stdlib_module_names | own
    for path in [*PRODUCT_FILES, *TEST_FILES]:
        package = path.relative_to(ROOT).parts[0]
        for name in top_level_imports(path.read_text(encoding="utf-8"), package) - standard_or_own:
            providers = {canonicalize_name(distribution) for distribution in distributions.get(name, [])}
            assert providers & required[path in TEST_FILES], (
                f"{relative(path)} imports {name}, which pyproject.toml does not require"
            )


def test_developers_have_every_extra() -> None:
    extras = {name: set(lines) for name, lines in project_table()["optional-dependencies"].items()}
    assert all(lines <= extras["dev"] for lines in extras.values())


def test_an_extra_is_imported_where_a_run_asks_for_it_alone() -> None:
    """Nothing but its own file, and the check before a run, may need it; a base installation lacks it."""
    for path in PRODUCT_FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            ast.unparse(node).split()[1].split(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert path.name in ("wandb_tracker.py", "mlflow_tracker.py") or not names & {"wandb", "mlflow"}, relative(path)


def test_constraints_name_no_place() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|--index|--find-links|file:|@ ", text)


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    headings = ["Apache License", "Version 2.0, January 2004", "9. Accepting Warranty", "END OF TERMS AND CONDITIONS"]
    positions = [text.find(heading) for heading in headings]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert project_table()["license"] == "Apache-2.0"
