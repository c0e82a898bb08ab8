"""The house rules that a reader relies on: which way imports point, file lengths, nothing pickled."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fmtt", "data", "train")
LONGEST = 300

BELOW = {  # package of fmtt -> the parts of fmtt that it may import, besides itself
    "base": set(),
    "flow": {"base"},
    "models": {"base", "flow"},
    "rewards": {"base", "flow", "models"},
    "steering": {"base", "flow", "models"},
    "baselines": {"base", "flow", "models", "rewards", "steering"},
    "evaluation": {"base", "flow", "models", "rewards", "steering", "baselines"},
    "pipeline": {"base", "flow", "models", "rewards", "steering"},
    "assets": set(),
}
TOP = {"", "__main__", "cli"}  # the public names and the command line may import all of fmtt
FACADE = {"fmtt"}


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sources(*PACKAGES)}


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under ``if TYPE_CHECKING:``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from (inner for branch in node.orelse for inner in (branch, *runtime_nodes(branch)))
            continue
        yield node
        yield from runtime_nodes(node)


def imports_of(name: str, path: Path) -> set[str]:
    """The modules that a file imports when it runs, ``from package import module`` resolved to the module."""
    found = set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in runtime_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            anchor = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*anchor, *([node.module] if node.module else [])])
            submodules = {f"{source}.{alias.name}" for alias in node.names}
            found |= {module if module in MODULES else source for module in submodules}
    return found


def part(module: str) -> str:
    """Which part of fmtt a module belongs to: ``fmtt.flow.ode`` to flow, ``fmtt.types`` to base."""
    head = module.split(".")[1] if "." in module else ""
    return head if head in BELOW or head in TOP else "base"


GRAPH = {name: imports_of(name, path) for name, path in MODULES.items()}


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_imports_point_one_way(name: str) -> None:
    own = name.split(".")[0]
    allowed_packages = PACKAGES[: PACKAGES.index(own) + 1]
    for target in GRAPH[name]:
        package = target.split(".")[0]
        assert package not in PACKAGES or package in allowed_packages, f"{name} imports {target}"
        if own == package == "fmtt" and part(name) not in TOP:
            assert target not in FACADE, f"{name} imports the package's own public face"
            assert part(target) in BELOW[part(name)] | {part(name)}, f"{name} imports {target}"


def test_no_import_cycles() -> None:
    inside = {name: {target for target in targets if target in MODULES} for name, targets in GRAPH.items()}
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize("path", sources(*PACKAGES, "tests"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_enough_to_read(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{lines} lines; split it by noun"


def keyword(call: ast.Call, name: str) -> object:
    """The constant given for a keyword of a call, or None."""
    values = [k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)]
    return values[0] if values else None


def unsafe_calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called == "torch.load" and keyword(node, "weights_only") is not True:
            yield f"line {node.lineno}: torch.load without weights_only=True"
        if called in ("np.load", "numpy.load") and keyword(node, "allow_pickle") is True:
            yield f"line {node.lineno}: {called} with allow_pickle=True"
        if called in ("eval", "exec", "__import__", "yaml.load", "yaml.unsafe_load"):
            yield f"line {node.lineno}: {called}"


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_nothing_is_unpickled_or_executed(name: str) -> None:
    roots = {target.split(".")[0] for target in GRAPH[name]}
    picklers = roots & {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    assert not picklers, f"{name} imports {picklers}"
    assert not list(unsafe_calls(MODULES[name]))


def test_the_checks_see_what_they_look_for(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text("import torch\ntorch.load('x')\neval('1')\ntorch.load('x', weights_only=True)\n")
    assert [line.split(":")[0] for line in unsafe_calls(file)] == ["line 2", "line 3"]
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import train\nelse:\n    import data\n"
        "def late():\n    from fmtt.flow import interpolant\n    from .. import tensor\n"
    )
    assert imports_of("fmtt.flow.wrong", file) == {"typing", "data", "fmtt.flow.interpolant", "fmtt.tensor"}
