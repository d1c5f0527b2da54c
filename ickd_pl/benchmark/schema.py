"""What a benchmark file may say. All of it is checked before a results folder is touched."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ickd_pl.checks import plain_arguments, short
from ickd_pl.errors import UserError, near
from ickd_pl.runs.configs import config_root
from ickd_pl.runs.stored_settings import known_data
from ickd_pl.training.module import DistillationModule

# Key of a benchmark file: what it must be.
KEYS: dict[str, type] = {
    "name": str,
    "data": dict,
    "pairs": list,
    "methods": list,
    "seeds": list,
    "trainer": dict,
    "model": dict,
    "pack": bool,
    "teachers": dict,
    "choices": dict,
    "val_size": int,
}
_TEACHER_KEYS: dict[str, type] = {
    "get": str,
    "seed": int,
    "weights": dict,
    "data": dict,
    "trainer": dict,
    "model": dict,
    "floor": float,
}
GET = ("train", "fetch", "fetch_or_train")
# Settings that a row, a column or another key of the file has already: set twice, a row would not be what it is called.
_MODEL = {
    "student": "the pairs name it",
    "teacher": "the pairs name it",
    "teacher_weights": "they come from the teachers block",
    "teacher_floor": "set teachers.floor",
    "strategies": "the methods name them; values to choose among go under choices",
    "ce_weight": "it is a part of each method's file",
}
_ENDS = "a cell is done after max_epochs, and a shorter one would stand beside the others"
_TRAINER = {
    "callbacks": "they may change what is trained, and no result would say so",
    "max_time": _ENDS,
    "max_steps": _ENDS,
    "min_steps": _ENDS,
    "fast_dev_run": "it leaves no result",
    "limit_val_batches": "accuracies are of all test images",
    "val_check_interval": "accuracies are those of whole epochs",
}


# What the benchmark.yaml of a results folder may set of the trainer: key, and the texts that it may have.
_KEPT_TRAINER: dict[str, tuple[str, ...]] = {
    "accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "strategy": ("auto", "ddp"),
    "precision": ("16-mixed", "bf16-mixed", "32-true", "64-true", "bf16-true", "16-true", "16", "bf16", "32", "64"),
    "gradient_clip_algorithm": ("norm", "value"),
    "devices": ("auto", "1"),
    "deterministic": ("warn",),
}


def check_kept(settings: dict[str, Any], path: Path) -> str:
    """Hold a results folder's benchmark.yaml, from which ``bench run`` goes on alone, to what a file may say.

    Args:
        settings: its content.
        path: of the file.

    Returns:
        A line on the paths and downloads that it decides.

    Raises:
        UserError: it names a class that is not ours, or a setting that could be one.
    """
    instead = f"give --config FILE, the benchmark's own file, with --output {path.parent}"
    blocks = {"": settings, "teachers.": dict(_items(settings.get("teachers"), f"{path}: teachers", instead))}
    shown: list[str] = []
    cls: type | None = None
    for prefix, block in blocks.items():
        data = dict(_items(block.get("data"), f"{path}: {prefix}data", instead))
        if "class_path" in data or cls is None:
            named = data.get("class_path")
            cls = next((c for p, c in known_data().items() if named in (p, c.__name__)), None)
            if cls is None:
                raise UserError(
                    f"{path}: {prefix}data.class_path is {short(named)}, which is not one of ickd_pl's: {instead}"
                )
            shown.append(f"data {cls.__name__}")
        arguments = plain_arguments(cls, data.get("init_args") or {}, f"{path}: {prefix}data.init_args", instead)
        shown += [f"{k} {short(v)}" for k, v in arguments.items() if isinstance(v, str) or k == "download"]
        plain_arguments(DistillationModule, block.get("model") or {}, f"{path}: {prefix}model", instead)
        for name, value in _items(block.get("trainer"), f"{path}: {prefix}trainer", instead):
            known = value is None or type(value) in (bool, int, float)
            if not known and not (type(value) is str and value in _KEPT_TRAINER.get(name, ())):
                raise UserError(
                    f"{path}: {prefix}trainer.{name} is {short(value)}, which a file may not set: {instead}"
                )
    teachers = blocks["teachers."]
    shown += [f"teachers {short(teachers['get'])}"] if teachers.get("get") else []
    weights = _items(teachers.get("weights"), f"{path}: teachers.weights", instead)
    shown += [f"teacher {short(name)} from {short(value)}" for name, value in weights]
    return f"settings of {path}: {', '.join(shown)}"


def _items(block: Any, where: str, instead: str) -> list[tuple[Any, Any]]:
    if block is not None and not isinstance(block, dict):
        raise UserError(f"{where} is {short(block)}: expected settings by name; {instead}")
    return list((block or {}).items())


def shipped(kind: str) -> list[str]:
    """Names of the shipped files of a kind: pairs, methods, benchmarks."""
    return sorted(path.stem for path in (config_root() / kind).glob("*.yaml"))


def checked(settings: Any, where: str) -> dict[str, Any]:
    """Check a benchmark file's content.

    Args:
        settings: the content.
        where: what to call the file in messages.

    Returns:
        Its ``teachers`` block with every key filled in.

    Raises:
        UserError: naming the file and the key, with what was expected and what came.
    """
    _check_types(settings, KEYS, where)
    for key in ("data", "pairs", "methods", "seeds"):
        if not settings.get(key):
            raise UserError(f"{where}: {key} is missing or empty")
    _check_types(settings.get("teachers", {}), _TEACHER_KEYS, f"{where}, teachers")
    teachers: dict[str, Any] = {
        "get": "train",
        "seed": 0,
        "weights": {},
        "data": {},
        "trainer": {},
        "model": {},
        "floor": None,
    }
    teachers.update(settings.get("teachers", {}))
    if teachers["get"] not in GET:
        raise UserError(f"{where}, teachers: get is {teachers['get']!r}, expected one of {', '.join(GET)}")
    if "class_path" not in settings["data"]:
        raise UserError(f"{where}, data: expected class_path, such as CIFAR100, and init_args")
    for part, block in ((where, settings), (f"{where}, teachers", teachers)):
        _check_part(block, part, bool(settings.get("pack", True)))
    _check_lists(settings, where)
    return teachers


def _check_part(block: dict[str, Any], where: str, packs: bool) -> None:
    """The settings of the students, or of the teachers."""
    for part, refused in (("model", _MODEL), ("trainer", _TRAINER)):
        for key in block.get(part, {}):
            if key in refused:
                raise UserError(f"{where}, {part}: {key} cannot be set here: {refused[key]}; take it out")
    trainer = block.get("trainer", {})
    arguments = block.get("data", {}).get("init_args") or {}
    if not isinstance(arguments, dict):
        raise UserError(f"{where}, data: init_args must be a dict, got {arguments!r}")
    if arguments.get("val_size"):
        raise UserError(
            f"{where}, data: val_size cannot be set here, for the table is of the test images; take it out (choices "
            "are made on val_size images, a key of the file itself)"
        )
    epochs, every = trainer.get("max_epochs", 240), trainer.get("check_val_every_n_epoch", 1)
    for key, value in (("max_epochs", epochs), ("check_val_every_n_epoch", every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{where}, trainer: {key} must be a whole number from 1, got {value!r}")
    if epochs % every:
        raise UserError(
            f"{where}, trainer: the last of {epochs} epochs must be evaluated, and check_val_every_n_epoch {every} "
            "leaves it out: give a divisor, or take it out"
        )
    if packs and trainer.get("accumulate_grad_batches", 1) != 1:
        raise UserError(
            f"{where}, trainer: a pack cannot use accumulate_grad_batches: set pack to false, or leave it out"
        )
    _check_devices(trainer, f"{where}, trainer")


def _check_devices(trainer: Any, where: str) -> None:
    """Cells are independent: several devices take several shards, not one cell each of them a part."""
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    if not one or nodes != 1:
        raise UserError(
            f"{where}: a cell runs on one device, got devices {devices!r}, num_nodes {nodes!r}: start one "
            "`bench run --shard I/N` for each device (CUDA_VISIBLE_DEVICES), or one cell by the `fit` that "
            "`bench plan --commands` prints"
        )


def _check_lists(settings: dict[str, Any], where: str) -> None:
    seeds = settings["seeds"]
    if not all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in seeds):
        raise UserError(f"{where}: seeds must be whole numbers from 0, got {seeds}")
    for key in ("pairs", "methods", "seeds"):
        doubled = [value for value in settings[key] if settings[key].count(value) > 1]
        if doubled:
            raise UserError(f"{where}: {key} lists {doubled[0]} twice")
    choices = settings.get("choices", {})
    known = {"pairs": (settings["pairs"], shipped("pairs")), "methods": (settings["methods"], shipped("methods"))}
    known["choices"] = (list(choices), settings["methods"])
    for key, (names, accepted) in known.items():
        for name in names:
            if name not in accepted:
                raise UserError(f"{where}, {key}: unknown {name}: {near(str(name), accepted)}")
    for method, listed in choices.items():
        if not isinstance(listed, dict) or not listed or not all(isinstance(v, list) and v for v in listed.values()):
            raise UserError(
                f"{where}, choices: {method} must be a mapping of Class.argument to a list of values, such as "
                f"{{KD.temperature: [2, 4]}}, got {listed!r}"
            )
    if choices and settings.get("val_size", 0) < 1:
        raise UserError(f"{where}: choices are made on a validation split, never on the test images: set val_size")


def check_teachers(weights: dict[Any, Any], networks: list[str], where: str) -> None:
    """Check ``teachers.weights`` against the pairs' teachers.

    Raises:
        UserError: a network that no pair has, or what is no path.
    """
    for network, path in weights.items():
        if network not in networks:
            raise UserError(
                f"{where}, teachers, weights: no pair has the teacher {network}: {near(str(network), networks)}"
            )
        if not isinstance(path, str):
            raise UserError(f"{where}, teachers, weights: {network} must be a file's path, got {path!r}")


def check_data(data: Any) -> None:
    """Check a data module of the user's own for what a benchmark needs.

    Raises:
        UserError: naming all that its class lacks.
    """
    cls = type(data)
    lacking = [name for name in ("num_classes", "num_train", "batch_size") if not hasattr(data, name)]
    for split in ("train", "val", "test"):
        name = f"{split}_dataloader"
        if getattr(cls, name) is getattr(pl.LightningDataModule, name):
            lacking.append(name)
    if lacking:
        raise UserError(
            f"data module {cls.__name__} lacks {', '.join(lacking)}: a benchmark needs num_classes, num_train (images "
            "trained on) and batch_size as attributes, and loaders for train, val and test"
        )


def combinations(listed: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination of a method's listed arguments, the first values first."""
    return [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]


def _check_types(settings: Any, keys: dict[str, type], where: str) -> None:
    if not isinstance(settings, dict):
        raise UserError(f"{where}: expected {', '.join(keys)}, got {settings!r}")
    for key, value in settings.items():
        if key not in keys:
            raise UserError(f"{where}: unknown key {key}: {near(str(key), keys)}")
        accepted = (int, float) if keys[key] is float else (keys[key],)
        optional = keys[key] is float and value is None
        if not optional and (not isinstance(value, accepted) or (isinstance(value, bool) and keys[key] is not bool)):
            raise UserError(f"{where}: {key} must be a {keys[key].__name__}, got {value!r}")
