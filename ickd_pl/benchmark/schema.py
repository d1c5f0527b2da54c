"""The settings of a benchmark file. All are checked before a results folder is touched."""

from __future__ import annotations

import itertools
import types
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ickd_pl.checks import short
from ickd_pl.errors import UserError, near, printable
from ickd_pl.runs.configs import TRAINER_DEFAULTS, config_root

MAX_EPOCHS = int(str(TRAINER_DEFAULTS["max_epochs"]))
GET = ("train", "fetch", "fetch_or_train")
# Settings that rows, columns or other keys of the file determine: setting them would change what a row means.
_MODEL = {
    "student": "the pairs name it",
    "teacher": "the pairs name it",
    "teacher_weights": "they come from the teachers block",
    "teacher_floor": "set teachers.floor",
    "strategies": "the methods name them; list values to choose from under choices",
    "ce_weight": "each method's file sets it",
}
_ENDS = "a cell ends after max_epochs, and a shorter one would not be comparable"
_TRAINER = {
    "callbacks": "they may change the training, which no result would show",
    "max_time": _ENDS,
    "max_steps": _ENDS,
    "min_steps": _ENDS,
    "fast_dev_run": "it leaves no result",
    "limit_val_batches": "accuracies are for all test images",
    "val_check_interval": "accuracies are for whole epochs",
}


def shipped(kind: str) -> list[str]:
    """Names of the shipped files of a kind: pairs, methods, benchmarks."""
    return sorted(path.stem for path in (config_root() / kind).glob("*.yaml"))


@dataclass(frozen=True)
class TeacherSettings:
    """The ``teachers`` block of a benchmark file.

    Attributes:
        get: how teachers are obtained, one of ``GET``.
        seed: for their training.
        weights: files of custom teacher weights, by network.
        data, trainer, model: settings that differ from the students'.
        floor: minimum top-1 accuracy in %; below it no student is trained.
    """

    get: str = "train"
    seed: int = 0
    weights: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    floor: float | None = None


@dataclass(frozen=True)
class Settings:
    """A benchmark file; docs/benchmark.md explains each key."""

    name: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    pairs: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    trainer: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    pack: bool = True
    fused: bool = False
    teachers: TeacherSettings = field(default_factory=TeacherSettings)
    choices: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    val_size: int = 0

    @classmethod
    def of(cls, content: Any, source: str | Path) -> Settings:
        """Validate the content of a benchmark file.

        Args:
            content: parsed YAML.
            source: path of the file; its stem is the default name.

        Raises:
            UserError: naming the file and the key, with what was expected and what came.
        """
        where = f"benchmark file {source}"
        settings = read_as(cls, content, where)
        settings = replace(settings, name=settings.name or Path(source).stem)
        for key in ("data", "pairs", "methods", "seeds"):
            if not getattr(settings, key):
                raise UserError(f"{where}: {key} is missing or empty")
        if settings.teachers.get not in GET:
            raise UserError(f"{where}, teachers: get is {settings.teachers.get!r}, expected one of {', '.join(GET)}")
        if "class_path" not in settings.data:
            raise UserError(f"{where}, data: expected class_path, such as CIFAR100, and init_args")
        if settings.fused and not settings.pack:
            raise UserError(f"{where}: fused computes the students of a pack as one, but pack is false: set it to true")
        _check_part(settings, where, settings.pack)
        _check_part(settings.teachers, f"{where}, teachers", settings.pack)
        _check_lists(settings, where)
        _check_choices(settings, where)
        return settings


Block = TypeVar("Block")


def read_as(cls: type[Block], content: Any, where: str) -> Block:
    """Create a dataclass from a mapping of its fields, and check the values' types.

    The items of lists and mappings are not checked here.

    Raises:
        UserError: naming the key, with what was expected and what came.
    """
    hints = get_type_hints(cls)
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected {', '.join(hints)}, got {short(content)}")
    values = {}
    for key, value in content.items():
        if key not in hints:
            raise UserError(f"{where}: unknown key {printable(key)}: {near(str(key), hints)}")
        union = get_args(hints[key]) if isinstance(hints[key], types.UnionType) else (hints[key],)
        kinds: list[Any] = [get_origin(kind) or kind for kind in union]
        nested = is_dataclass(kinds[0])
        if nested and isinstance(value, dict):
            values[key] = read_as(kinds[0], value, f"{where}, {key}")
        elif type(value) in kinds or (float in kinds and type(value) is int):
            values[key] = value
        else:
            expected = "dict" if nested else kinds[0].__name__
            raise UserError(f"{where}: {key} must be a {expected}, got {short(value)}")
    return cls(**values)


def _check_part(part: Settings | TeacherSettings, where: str, packs: bool) -> None:
    """Check the settings of the students or of the teachers."""
    for name, refused in (("model", _MODEL), ("trainer", _TRAINER)):
        for key in getattr(part, name):
            if key in refused:
                raise UserError(f"{where}, {name}: {key} cannot be set here: {refused[key]}; remove it")
    arguments = part.data.get("init_args") or {}
    if not isinstance(arguments, dict):
        raise UserError(f"{where}, data: init_args must be a dict, got {short(arguments)}")
    if arguments.get("val_size"):
        raise UserError(
            f"{where}, data: val_size cannot be set here, since results are for the test images; remove it (choices "
            "are made on val_size images, a key of the file itself)"
        )
    epochs, every = part.trainer.get("max_epochs", MAX_EPOCHS), part.trainer.get("check_val_every_n_epoch", 1)
    for key, value in (("max_epochs", epochs), ("check_val_every_n_epoch", every)):
        if type(value) is not int or value < 1:
            raise UserError(f"{where}, trainer: {key} must be a whole number from 1, got {short(value)}")
    if epochs % every:
        raise UserError(
            f"{where}, trainer: the last of {epochs} epochs must be evaluated, and check_val_every_n_epoch {every} "
            "skips it: set a divisor of it, or remove it"
        )
    if packs and part.trainer.get("accumulate_grad_batches", 1) != 1:
        raise UserError(f"{where}, trainer: a pack cannot use accumulate_grad_batches: set pack to false, or remove it")
    _check_devices(part.trainer, f"{where}, trainer")


def _check_devices(trainer: Any, where: str) -> None:
    """Check that a cell uses one device: cells are independent, so several devices run several shards."""
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    if not one or nodes != 1:
        raise UserError(
            f"{where}: a cell runs on one device, got devices {devices!r}, num_nodes {nodes!r}: start one "
            "`bench run --shard I/N` for each device (CUDA_VISIBLE_DEVICES), or run one cell with the `fit` that "
            "`bench plan --commands` prints"
        )


def _check_lists(settings: Settings, where: str) -> None:
    if not all(type(seed) is int and 0 <= seed < 2**32 for seed in settings.seeds):
        raise UserError(f"{where}: seeds must be whole numbers from 0, got {short(settings.seeds)}")
    for key in ("pairs", "methods", "seeds"):
        listed = getattr(settings, key)
        doubled = [value for value in listed if listed.count(value) > 1]
        if doubled:
            raise UserError(f"{where}: {key} lists {doubled[0]} twice")
    for key, names, accepted in (
        ("pairs", settings.pairs, shipped("pairs")),
        ("methods", settings.methods, shipped("methods")),
        ("choices", list(settings.choices), settings.methods),
    ):
        for name in names:
            if name not in accepted:
                raise UserError(f"{where}, {key}: unknown {printable(name)}: {near(str(name), accepted)}")


def _check_choices(settings: Settings, where: str) -> None:
    for method, listed in settings.choices.items():
        if not isinstance(listed, dict) or not listed or not all(isinstance(v, list) and v for v in listed.values()):
            raise UserError(
                f"{where}, choices: {method} must be a mapping of Class.argument to a list of values, such as "
                f"{{KD.temperature: [2, 4]}}, got {short(listed)}"
            )
    if settings.choices and settings.val_size < 1:
        raise UserError(f"{where}: choices are made on a validation split, never on the test images: set val_size")


def check_teachers(weights: dict[Any, Any], networks: list[str], where: str) -> None:
    """Check ``teachers.weights`` against the pairs' teachers.

    Raises:
        UserError: a network that no pair has, or a value that is not a path.
    """
    for network, path in weights.items():
        if network not in networks:
            raise UserError(
                f"{where}, teachers, weights: no pair has the teacher {network}: {near(str(network), networks)}"
            )
        if not isinstance(path, str):
            raise UserError(f"{where}, teachers, weights: {network} must be a file's path, got {short(path)}")


def check_data(data: Any) -> None:
    """Check that a custom data module has what a benchmark needs.

    Raises:
        UserError: naming everything the class lacks.
    """
    import pytorch_lightning as pl  # slow, and not needed to read results

    cls = type(data)
    lacking = [name for name in ("num_classes", "num_train", "batch_size") if not hasattr(data, name)]
    for split in ("train", "val", "test"):
        name = f"{split}_dataloader"
        if getattr(cls, name) is getattr(pl.LightningDataModule, name):
            lacking.append(name)
    if lacking:
        raise UserError(
            f"data module {cls.__name__} lacks {', '.join(lacking)}: a benchmark needs num_classes, num_train (number "
            "of training images) and batch_size as attributes, and train, val and test loaders"
        )


def combinations(listed: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """All combinations of a method's listed arguments, in the listed order."""
    return [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]
