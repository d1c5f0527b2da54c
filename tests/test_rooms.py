"""The package's layers: each imports only from layers below it, and there are no circular imports.

All imports count, also those inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ickd_pl"
# From top to bottom; a module is in the layer with the longest matching prefix. The package itself is the
# facade, which may import everything and which nothing imports.
ROOMS = (
    *("ickd_pl", "__main__", "cli", "commands", "benchmark", "benchmark.report"),
    *("benchmark.records", "benchmark.published", "benchmark.fingerprint"),
    *("teachers", "correlations", "runs", "training", "strategies", "strategies.components"),
    *("data", "weights", "models", "checks", "files", "plain", "errors", "seeding", "version"),
)
# The report reads a benchmark's files, and does not depend on how they are written.
OF_THE_REPORT = {"benchmark.records", "benchmark.published", "runs", "files", "plain", "errors"}


def read(package: Path) -> dict[str, set[str]]:
    """Each module of the package with the modules of the package that it imports."""
    paths = {".".join(p.relative_to(package.parent).with_suffix("").parts): p for p in package.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        own = name if path.stem == "__init__" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name].update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = resolve_name("." * node.level + (node.module or ""), own)
                inner = {f"{source}.{alias.name}" for alias in node.names}
                found[name].update(each if each in modules else source for each in inner)
        found[name] &= modules.keys()
    return found


def room(module: str) -> str:
    inner = module.removeprefix("ickd_pl.")
    return max((r for r in ROOMS if f"{inner}.".startswith(f"{r}.")), key=len, default=f"no room for {module}")


def upward(imports: dict[str, set[str]]) -> list[str]:
    """Imports that the order of the layers does not allow."""
    wrong = []
    for module, others in imports.items():
        for other in others:
            one, two = room(module), room(other)
            below = ROOMS.index(one) < ROOMS.index(two) and (one != "benchmark.report" or two in OF_THE_REPORT)
            if one != two and not below:
                wrong.append(f"{module} imports {other}")
    return sorted(wrong)


def test_every_module_imports_only_from_layers_below() -> None:
    imports = read(PACKAGE)
    assert len(imports) > 100 and {room(module) for module in imports} == set(ROOMS)
    assert upward(imports) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(read(PACKAGE)).prepare()


def test_upward_and_circular_imports_are_found(tmp_path: Path) -> None:
    for name, text in (
        ("__init__", ""),
        ("weights/read", "def f():\n    import ickd_pl.strategies.kd"),
        ("strategies/kd", "if TYPE_CHECKING:\n    from ..weights.read import X\n    from .. import Features"),
    ):
        path = tmp_path / "ickd_pl" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    imports = read(tmp_path / "ickd_pl")
    facade, up = "ickd_pl.strategies.kd imports ickd_pl", "ickd_pl.weights.read imports ickd_pl.strategies.kd"
    assert upward(imports) == [facade, up]
    with pytest.raises(CycleError):
        TopologicalSorter(imports).prepare()


def imports_of_tests(folder: Path) -> list[str]:
    """Test files that import from another test file; shared code belongs in helper modules."""
    found = []
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            found += [f"{path.name} imports {n}" for n in [module, *names] if f".{n}".rpartition(".")[2][:5] == "test_"]
    return found


def test_no_test_imports_from_a_test_file(tmp_path: Path) -> None:
    assert imports_of_tests(Path(__file__).parent) == []
    (tmp_path / "test_a.py").write_text("from tests.test_b import x\nfrom tests import test_c\nimport tests.helpers")
    assert imports_of_tests(tmp_path) == ["test_a.py imports tests.test_b", "test_a.py imports test_c"]


def test_few_loose_modules_and_no_long_files() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert len(loose) <= 6, loose
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > 300} == {}
