"""Arrows point down: each floor imports only from the floors below it. Oracle: the imports parsed from the source."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FLOORS = [
    ["core"],
    ["data", "models", "losses", "solvers"],
    ["curvature", "optim", "messages", "replica"],
    ["training", "flatness", "critical", "linear", "width", "landscape"],
    ["report"],
    ["experiments"],
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
FILES = sorted([*ROOT.glob("jflat/**/*.py"), *ROOT.glob("experiments/**/*.py")])


def package_of(path):
    """The floor's name of a source file; '' for jflat/__init__.py, the table of contents."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "experiments":
        return "experiments"
    return "" if parts[1] == "__init__" else parts[1]


def imported_packages(source):
    """(package, module) of each import of this project, anywhere in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrows"
            modules = [f"{node.module}.{a.name}" for a in node.names] if node.module == "jflat" else [node.module]
        else:
            continue
        for module in modules:
            parts = module.split(".")
            if parts[0] == "experiments":
                yield "experiments", module
            elif parts[0] == "jflat":
                yield parts[1] if len(parts) > 1 else "", module


def violations(package, source):
    for target, module in imported_packages(source):
        if target != package and LEVEL[target] >= LEVEL[package]:
            yield f"{package} -> {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path):
    package = package_of(path)
    if package:
        assert list(violations(package, path.read_text())) == []


def test_the_test_sees_upward_and_sideways_arrows():
    assert list(violations("core", "from jflat.optim import sam")) == ["core -> jflat.optim"]
    assert list(violations("curvature", "def f():\n    import jflat.optim")) == ["curvature -> jflat.optim"]
    assert list(violations("optim", "from jflat import curvature, core")) == ["optim -> jflat.curvature"]


def test_flax_and_matplotlib_stay_in_their_rooms():
    for path in FILES:
        if package_of(path) == "experiments":
            continue
        tree = ast.parse(path.read_text())
        everywhere = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
        at_top = [ast.unparse(n) for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        if package_of(path) != "models":
            assert not any("flax" in line for line in everywhere), path
        if package_of(path) != "report":
            assert not any("matplotlib" in line for line in everywhere), path
        assert not any("matplotlib" in line for line in at_top), path
