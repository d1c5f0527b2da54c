"""Hashes of what a result depends on: the training code, the cell's methods, the data, the teacher."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ickd_pl.errors import UserError

# Torch and Lightning are imported where they are needed: reading results does without, which saves seconds.
if TYPE_CHECKING:
    from ickd_pl.strategies.base import LossStrategy

_PACKAGE = Path(__file__).resolve().parents[1]
_NAME = _PACKAGE.name

# Files that do not affect training. All other files of the package are hashed, so that a new one is never missed.
_NOT_HASHED = (
    "__init__.py",
    "__main__.py",
    "benchmark",
    "cli.py",
    "commands",
    "correlations",
    "teachers",
    "version.py",
    "weights/export.py",
)
# Exceptions: these files of the benchmark train its cells and choose their arguments.
_HASHED_OF_BENCHMARK = ("benchmark/cells.py", "benchmark/choose.py")


class Identity(NamedTuple):
    """What results must have in common to be comparable.

    Attributes:
        code_hash: of the code that all cells use.
        data_hash: of the images, labels and normalisation constants.
        teacher_hash: of the teacher's weights; None for a teacher itself.
        method_hash: of the code of the cell's methods; None in files of versions without this hash.
    """

    code_hash: str
    data_hash: str
    teacher_hash: str | None
    method_hash: str | None = None

    @property
    def code(self) -> tuple[str, str | None]:
        """Both hashes of code: the shared code's and the methods'."""
        return self.code_hash, self.method_hash


@cache
def code_hash() -> str:
    """SHA-256 of the package's code that every cell uses, whatever its methods."""
    paths = {path.relative_to(_PACKAGE).as_posix(): path for path in _PACKAGE.rglob("*.py")}
    return _hash({name: path for name, path in paths.items() if _is_shared(name)})


@cache
def method_hash(*classes: type[LossStrategy]) -> str:
    """SHA-256 of the code of methods: the modules of their classes and the method modules that these import.

    Args:
        classes: method classes, of the package or custom.

    Raises:
        UserError: a class has no source file.
    """
    return _hash(_modules_of(classes))


def _is_shared(name: str) -> bool:
    excluded = any(f"{name}/".startswith(f"{part}/") for part in _NOT_HASHED)
    return name in _HASHED_OF_BENCHMARK or not (excluded or _is_of_a_method(name))


def _is_of_a_method(name: str) -> bool:
    """Whether a file of the package is specific to some methods: it is directly in ``strategies``."""
    folder, _, file = name.rpartition("/")
    return folder == "strategies" and file not in ("__init__.py", "base.py")


def _hash(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{_tree(ast.parse(path.read_bytes(), str(path)))!r}\0".encode())
    return digest.hexdigest()


def _tree(node: object) -> object:
    """A syntax tree as nested lists, without empty fields (they differ between Python versions) and docstrings.

    All strings that are statements of their own are left out: they have no effect.
    """
    if isinstance(node, ast.AST):
        fields = [[name, _tree(value)] for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *fields]
    if isinstance(node, list):
        return [_tree(each) for each in node if not (isinstance(each, ast.Expr) and _is_string(each.value))]
    return repr(node)


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _modules_of(classes: Iterable[type[LossStrategy]]) -> dict[str, Path]:
    """Names and files of the modules of methods, and of the modules they import, recursively."""
    from ickd_pl.strategies.base import LossStrategy

    bases = {base.__module__ for cls in classes for base in cls.__mro__ if issubclass(base, LossStrategy)}
    roots = {}
    for name in bases - {LossStrategy.__module__}:
        path = _source(name)
        if path is None:
            raise UserError(
                f"the methods of {name} have no source file: define them in a module, so that changes are detected"
            )
        if not name.startswith(f"{_NAME}."):
            roots[name.partition(".")[0]] = path.parent
    found: dict[str, Path] = {}
    pending = sorted(bases)
    while pending:
        name = pending.pop()
        path = _source(name) if name not in found and _is_own(name, roots) else None
        if path is not None:
            found[name] = path
            pending += _imports(name, path)
    return found


def _is_own(name: str, roots: Mapping[str, Path]) -> bool:
    """Whether a module belongs to methods: a method file of the package, or a module next to a custom class."""
    top, _, inner = name.partition(".")
    if top == _NAME:
        return _is_of_a_method(f"{inner.replace('.', '/')}.py")
    beside = (path / file for path in roots.values() for file in (f"{top}.py", f"{top}/__init__.py"))
    return top in roots or any(file.is_file() for file in beside)


def _source(name: str) -> Path | None:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # not a module, or one without a file, such as a notebook
        return None
    origin = str(spec.origin) if spec is not None else ""
    return Path(origin) if origin.endswith(".py") else None


def _imports(name: str, path: Path) -> Iterator[str]:
    """All imported names of a module that may be modules, including imports inside functions."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            yield source
            for alias in node.names:
                yield f"{source}.{alias.name}"
                # ``from ickd_pl.strategies import KD`` imports a class, which is defined in another module.
                yield str(getattr(getattr(sys.modules.get(source), alias.name, None), "__module__", source))
