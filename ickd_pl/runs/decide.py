"""Decides how ``fit`` proceeds with the checkpoints of a folder: it starts, continues, is finished, or is refused.

A checkpoint stores the settings and inputs of its run. They are compared with those of the run that is asked for:
what differs would otherwise be recorded, but not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl

from ickd_pl.checks import short
from ickd_pl.data import TensorDataModule
from ickd_pl.errors import UserError
from ickd_pl.runs.image_order import refuse_other_order
from ickd_pl.strategies.base import with_defaults
from ickd_pl.training.fingerprint import data_hash, network_hash
from ickd_pl.training.finite import not_finite_in
from ickd_pl.training.speed import UNSET, can_compile
from ickd_pl.weights.checkpoint import RunCheckpoint, read_checkpoint

# Settings that do not change what a run computes.
_COSMETIC = {
    "config",
    "data.init_args.cache",
    "data.init_args.eval_batch_size",
    "model.teacher_floor",
    "model.cuda_graphs",
    "ckpt_path",
    "weights_only",
    "override_world_size",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.enable_checkpointing",
    "trainer.log_every_n_steps",
    "trainer.profiler",
}
# The number of processes counts instead: "auto" means another number on another machine.
_DEVICES = ("trainer.devices", "trainer.num_nodes")
_ARCHIVE = "data.init_args.archive"
# Settings that a run uses although its checkpoint has others.
_USED = (
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.min_epochs", "trainer.min_steps"),
    *("model.lr", "model.momentum", "model.weight_decay", "model.milestones"),
)
# Callbacks that only read, show or write files. A custom one says so by the class attribute ``reads_only = True``.
READ_ONLY = {
    *("DeviceStatsMonitor", "LearningRateMonitor", "ModelCheckpoint", "ModelSummary", "OnExceptionCheckpoint"),
    *("RichModelSummary", "RichProgressBar", "ThroughputMonitor", "TQDMProgressBar"),
    *("FiniteGuard", "SignalStop", "StepCheckpoint"),
}


WORLD_SIZE = "number of processes"
_INPUTS = {
    "world_size": WORLD_SIZE,
    "data": "images and labels",
    "teacher": "teacher's weights",
    "compiled": "compiled steps",
}


@dataclass(frozen=True)
class Asked:
    """A run that is asked for, or that a checkpoint stores.

    Attributes:
        config: the whole configuration as plain data; None if unknown, as in checkpoints of version 0.1.
        inputs: ``world_size``, the hashes ``data`` and ``teacher``, ``image_order`` (None for most data sets), whether
            steps are ``compiled``, and import paths of callbacks that only read (``reads_only``), as far as known.
    """

    config: dict[str, Any] | None
    inputs: dict[str, Any] = field(default_factory=dict)


class Decision(NamedTuple):
    """How ``fit`` proceeds with a run folder.

    Attributes:
        state: whether the run starts, continues or is finished.
        checkpoint: the newest intact checkpoint; None if the run starts.
        warning: what is wrong with newer checkpoints, and from which one the run continues; empty if none is damaged.
    """

    state: Literal["start", "continue", "finished"]
    checkpoint: Path | None = None
    warning: str = ""


def newest(paths: Sequence[Path]) -> tuple[RunCheckpoint | None, list[str]]:
    """The first of the checkpoints that is intact and finite, and what is wrong with those before it.

    Args:
        paths: from new to old; the first one must exist.
    """
    problems: list[str] = []
    for path in paths:
        try:
            return run_checkpoint(path), problems
        except UserError as error:
            if path.exists() or path == paths[0]:
                problems.append(f"{path} {error}")
    return None, problems


def run_checkpoint(path: Path) -> RunCheckpoint:
    """Read a checkpoint that a run can resume from, and check all of the file.

    Raises:
        UserError: what is wrong with the file; the message does not contain its name.
    """
    if not path.exists():
        raise UserError("is missing")
    try:
        checkpoint = read_checkpoint(path)
    except UserError as error:
        text = str(error)
        raise UserError(
            text.removeprefix(f"weights file {path} ").partition(": ")[0]
            if text.startswith("weights file")
            else text.removeprefix(f"{path}: ").removeprefix(f"{path} ")
        ) from error
    if not checkpoint.planned:
        raise UserError("is not a checkpoint of a run")
    weights, states = (checkpoint.content.get(part) for part in ("state_dict", "optimizer_states"))
    if name := not_finite_in(weights, "state_dict", constants=True) or not_finite_in(states, "optimizer_states"):
        raise UserError(f"has an infinite or NaN value in {name}")
    return checkpoint


def stored(state: Any) -> Asked:
    """The run that a state of :class:`~ickd_pl.runs.run_folder.EpochRecord` describes."""
    state = state if isinstance(state, dict) else {}
    config, inputs = state.get("config"), state.get("inputs")
    return Asked(config if isinstance(config, dict) else None, inputs if isinstance(inputs, dict) else {})


def differences(old: Asked, new: Asked, where: Path, ignored: Iterable[str] = ()) -> list[str]:
    """What differs between two runs, as ``name: old -> new``.

    Args:
        old: as stored.
        new: as asked for.
        where: the old run's folder or checkpoint, for an error.
        ignored: names that may differ.

    Raises:
        UserError: the data set's images had another order when the old run began.
    """
    refuse_other_order((old.config, old.inputs), (new.config, new.inputs), where)
    found: list[str] = []
    one: Any
    two: Any
    if old.config is not None and new.config is not None:
        reading = {str(path) for run in (old, new) for path in run.inputs.get("reads_only") or []}
        # A configuration that is older than these settings was computed without them.
        older = {f"model.{name}": value for name, value in UNSET.items()}
        one, two = ({**older, **flat(_without_readers(run.config, reading))} for run in (old, new))
        if "world_size" in old.inputs:
            one, two = ({k: v for k, v in each.items() if k not in _DEVICES} for each in (one, two))
        if None not in (old.inputs.get("data"), new.inputs.get("data")):  # compared below, wherever they come from
            one, two = ({k: v for k, v in each.items() if k != _ARCHIVE} for each in (one, two))
        found = differing(one, two)
    for name, title in _INPUTS.items():
        one, two = old.inputs.get(name), new.inputs.get(name)
        if one is not None and two is not None and one != two:
            found.append(f"{title}: {str(one)[:12]} -> {str(two)[:12]}")
    return [line for line in found if line.partition(":")[0] not in set(ignored)]


def inputs_of(trainer: pl.Trainer, data: Any, module: Any) -> dict[str, Any]:
    """What a run depends on besides its settings; hashes only of this package's data modules and of a read teacher."""
    known = isinstance(data, TensorDataModule)  # others may yield other batches each time
    reading = [type(c) for c in trainer.callbacks if getattr(type(c), "reads_only", False)]  # type: ignore[attr-defined]
    return {
        "reads_only": [f"{cls.__module__}.{cls.__qualname__}" for cls in reading],
        "world_size": trainer.world_size,
        "data": data_hash(data) if known else None,
        "image_order": getattr(data, "image_order", None) if known else None,
        "teacher": None if module.teacher is None else network_hash(module.teacher),
        # What is asked for has no effect where there is no compiler.
        "compiled": module.hparams["compile"] and can_compile(trainer.strategy.root_device.type),
    }


def check_given(
    checkpoint: RunCheckpoint, new: Asked, hparams: dict[str, Any], may_differ: Sequence[str] = ()
) -> list[str]:
    """Check a checkpoint that the user gives against the run that is to continue it in another folder.

    Args:
        checkpoint: as given by ``--ckpt_path``.
        new: as asked for.
        hparams: the module's settings as plain data, for a checkpoint that stores no configuration.
        may_differ: names of settings and inputs that the user allows to differ.

    Returns:
        Names of settings that differ and that the run uses: the recipe's numbers, and the length of the run.

    Raises:
        UserError: other settings differ; they would not be used.
    """
    old = stored(checkpoint.record)
    if old.config is None:
        settings = {name: value for name, value in checkpoint.settings.items() if name in hparams}
        names = {name: hparams[name] for name in settings}
        old, new = Asked({"model": settings}), Asked({"model": names})
    found = differences(old, new, checkpoint.path, may_differ)
    used = [line.partition(":")[0] for line in found if line.partition(":")[0] in _USED]
    if refused := [line for line in found if line.partition(":")[0] not in used]:
        raise UserError(
            f"{checkpoint.path} is of a run with other settings, which continuing it would not change: give the stored "
            "ones, or start a run without --ckpt_path. Differences (stored -> new):\n  " + "\n  ".join(refused)
        )
    return used


def _without_readers(config: Any, reading: set[str]) -> Any:
    """The configuration without these callbacks."""
    trainer = config.get("trainer") if isinstance(config, dict) else None
    if not isinstance(trainer, dict) or not isinstance(trainer.get("callbacks"), list):
        return config
    kept = [each for each in trainer["callbacks"] if _class_path(each) not in reading]
    return {**config, "trainer": {**trainer, "callbacks": kept}}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names, without those that do not change what a run computes."""
    if prefix == "trainer.callbacks":
        listed = config if isinstance(config, list) else [config] if config else []
        config = [each for each in listed if not _reads_only(each)] or None
    items: list[tuple[str, Any]]
    if isinstance(config, dict):
        config = with_defaults(config) if prefix.startswith("model.strategies[") and "class_path" in config else config
        items = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in config.items()]
    elif isinstance(config, list) and any(isinstance(value, dict) for value in config):
        items = [(f"{prefix}[{i}]", value) for i, value in enumerate(config)]
    else:
        return {prefix: config}
    found: dict[str, Any] = {}
    for name, value in items:
        if name not in _COSMETIC:
            found.update(flat(value, name))
    return found


def _class_path(spec: Any) -> str:
    return str(spec.get("class_path")) if isinstance(spec, dict) else str(spec)


def _reads_only(spec: Any) -> bool:
    module, _, name = _class_path(spec).rpartition(".")
    return name in READ_ONLY and module.partition(".")[0] in ("ickd_pl", "pytorch_lightning", "lightning", "")


def differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Differences between two flattened settings, as ``name: old -> new``."""
    # A missing setting equals null: another version of Lightning may have more settings.
    names = [k for k in sorted(old.keys() | new.keys(), key=str) if not _same(k, old.get(k), new.get(k))]
    # Where classes differ, their arguments say nothing more.
    classes = [str(name).removesuffix("class_path") for name in names if str(name).endswith(".class_path")]
    arguments = tuple(f"{prefix}init_args." for prefix in classes)
    return [f"{k}: {_shown(old.get(k))} -> {_shown(new.get(k))}" for k in names if not str(k).startswith(arguments)]


def _same(key: str, old: Any, new: Any) -> bool:
    if key.startswith("trainer.limit_"):  # 1 is a batch, 1.0 is all of them
        return bool(old == new) and type(old) is type(new)
    return bool(old == new) or repr(old) == repr(new)  # NaN equals itself here


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value.isprintable() and len(value) <= 80 else short(value)
