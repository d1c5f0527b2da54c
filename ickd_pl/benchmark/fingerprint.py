"""What a result depends on, as hashes: the code that trains, the cell's own methods, the data, the teacher."""

from __future__ import annotations

import ast
import hashlib
import platform
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from ickd_pl.data import TensorDataModule
from ickd_pl.data.batch import as_batch
from ickd_pl.errors import UserError
from ickd_pl.strategies.base import LossStrategy
from ickd_pl.version import __version__

_PACKAGE = Path(__file__).resolve().parents[1]
_NAME = _PACKAGE.name

# What takes no part in training. All else of the package does, so that a new file is never forgotten.
_APART = (
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
# Of the benchmark: what trains its cells, and what chooses their arguments.
_OF_THE_BENCHMARK = ("benchmark/cells.py", "benchmark/choose.py")


class Identity(NamedTuple):
    """What results must share to stand in one table.

    Attributes:
        code_hash: of the code that all cells share.
        data_hash: of the images, labels and constants.
        teacher_hash: of the teacher's weights; None for a teacher itself.
        method_hash: of the code of the cell's own methods; None in the files of versions that had no such hash.
    """

    code_hash: str
    data_hash: str
    teacher_hash: str | None
    method_hash: str | None = None

    @property
    def code(self) -> tuple[str, str | None]:
        """What the code was, all of it."""
        return self.code_hash, self.method_hash


@cache
def code_hash() -> str:
    """SHA-256 over the package's code that every cell trains with, whatever its methods."""
    paths = {path.relative_to(_PACKAGE).as_posix(): path for path in _PACKAGE.rglob("*.py")}
    return _hash({name: path for name, path in paths.items() if _is_shared(name)})


@cache
def method_hash(*classes: type[LossStrategy]) -> str:
    """SHA-256 over the code of some methods: the modules of their classes, and their own modules that these import.

    Args:
        classes: of methods of the package, or of the user's own.

    Raises:
        UserError: a class has no source file.
    """
    return _hash(_modules_of(classes))


def _is_shared(name: str) -> bool:
    apart = any(f"{name}/".startswith(f"{room}/") for room in _APART)
    return name in _OF_THE_BENCHMARK or not (apart or _is_of_a_method(name))


def _is_of_a_method(name: str) -> bool:
    """Whether a file of the package belongs to some methods only: one that lies directly in ``strategies``."""
    folder, _, file = name.rpartition("/")
    return folder == "strategies" and file not in ("__init__.py", "base.py")


def _hash(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{_tree(ast.parse(path.read_bytes(), str(path)))!r}\0".encode())
    return digest.hexdigest()


def _tree(node: object) -> object:
    """A syntax tree as nested lists, without docstrings, and without empty fields, which Python's versions differ in.

    Texts that stand alone do nothing, wherever they stand.
    """
    if isinstance(node, ast.AST):
        fields = [[name, _tree(value)] for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *fields]
    if isinstance(node, list):
        return [_tree(each) for each in node if not (isinstance(each, ast.Expr) and _is_text(each.value))]
    return repr(node)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _modules_of(classes: Iterable[type[LossStrategy]]) -> dict[str, Path]:
    """The modules of some methods, followed through their imports: name and file."""
    bases = {base.__module__ for cls in classes for base in cls.__mro__ if issubclass(base, LossStrategy)}
    homes = {}
    for name in bases - {LossStrategy.__module__}:
        path = _source(name)
        if path is None:
            raise UserError(
                f"the methods of {name} have no source file: define them in a module, so that a change shows"
            )
        if not name.startswith(f"{_NAME}."):
            homes[name.partition(".")[0]] = path.parent
    found: dict[str, Path] = {}
    waiting = sorted(bases)
    while waiting:
        name = waiting.pop()
        path = _source(name) if name not in found and _is_own(name, homes) else None
        if path is not None:
            found[name] = path
            waiting += _imports(name, path)
    return found


def _is_own(name: str, homes: Mapping[str, Path]) -> bool:
    """Whether a module belongs to methods: a method's file of the package, or beside the user's own class."""
    top, _, inner = name.partition(".")
    if top == _NAME:
        return _is_of_a_method(f"{inner.replace('.', '/')}.py")
    beside = (path / file for path in homes.values() for file in (f"{top}.py", f"{top}/__init__.py"))
    return top in homes or any(file.is_file() for file in beside)


def _source(name: str) -> Path | None:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # no module, or one without a file, such as a notebook
        return None
    origin = str(spec.origin) if spec is not None else ""
    return Path(origin) if origin.endswith(".py") else None


def _imports(name: str, path: Path) -> Iterator[str]:
    """What may be a module of all that a module imports, inside functions as well."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            yield source
            for alias in node.names:
                yield f"{source}.{alias.name}"
                # ``from ickd_pl.strategies import KD`` names a class, which has a module of its own.
                yield str(getattr(getattr(sys.modules.get(source), alias.name, None), "__module__", source))


def data_hash(data: Any) -> str:
    """SHA-256 over the images and labels that a run trains on and is evaluated on, in their order.

    Of a data module of the package these are the stored images, and the constants that they are normalised with.
    Of any other it is what its loaders yield under a fixed seed: the training batches of one epoch, augmented as they
    come, and the validation and test batches.

    Args:
        data: a data module; it is prepared and set up here.

    Raises:
        UserError: what another data module yields is no batch of images and labels.
    """
    digest = hashlib.sha256()
    data.prepare_data()
    if not isinstance(data, TensorDataModule):
        _update(digest, _yielded(data))
        return digest.hexdigest()
    for split in ("train", data.eval_split, "test"):
        images, labels = data._part(split)
        _update(digest, ((f"{split} image", images), (f"{split} label", labels)))
    # Of all training images, also where a run sees a part of them.
    digest.update(repr((list(data.mean), list(data.std))).encode())
    return digest.hexdigest()


def _yielded(data: pl.LightningDataModule) -> Iterator[tuple[str, Tensor]]:
    with isolate_rng():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        for stage, splits in (("fit", ("train", "val")), ("test", ("test",))):
            data.setup(stage)
            for split in splits:
                for raw in getattr(data, f"{split}_dataloader")():
                    image, label, _ = as_batch(raw)
                    if not (isinstance(image, Tensor) and isinstance(label, Tensor)):
                        kinds = f"{type(image).__name__} and {type(label).__name__}"
                        raise UserError(f"{type(data).__name__}: expected {split} batches of tensors, got {kinds}")
                    yield f"{split} image", image
                    yield f"{split} label", label


def network_hash(net: nn.Module) -> str:
    """SHA-256 over a network's weights and buffers by name, whatever file they came from."""
    digest = hashlib.sha256()
    _update(digest, sorted(net.state_dict().items()))
    return digest.hexdigest()


def _update(digest: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in tensors:
        whole = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(whole.shape)} {whole.dtype}".encode())
        digest.update(whole.reshape(-1).view(torch.uint8).numpy())


def versions() -> dict[str, str]:
    """Of everything that moves numbers."""
    return {
        "ickd_pl": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "torchvision", "pytorch-lightning", "torchmetrics")},
    }


def where(trainer: pl.Trainer) -> dict[str, str]:
    """Device and precision as the trainer really has them: on a CPU 16-mixed, for one, becomes bf16-mixed."""
    return {"device": device_name(trainer.strategy.root_device), "precision": str(trainer.precision)}


def device_name(device: torch.device) -> str:
    """The device a run was on, as a person would name it."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
