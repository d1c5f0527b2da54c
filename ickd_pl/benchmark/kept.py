"""Checks the benchmark.yaml of a results folder: it may come from someone else, so it must not name code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ickd_pl.checks import plain_arguments, short
from ickd_pl.errors import UserError
from ickd_pl.runs.stored_settings import known_data
from ickd_pl.training.module import DistillationModule

# Trainer settings that may be strings in the benchmark.yaml of a results folder, with the allowed values.
_KEPT_TRAINER: dict[str, tuple[str, ...]] = {
    "accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "strategy": ("auto", "ddp"),
    "precision": ("16-mixed", "bf16-mixed", "32-true", "64-true", "bf16-true", "16-true", "16", "bf16", "32", "64"),
    "gradient_clip_algorithm": ("norm", "value"),
    "devices": ("auto", "1"),
    "deterministic": ("warn",),
}


def check_kept(settings: dict[str, Any], path: Path) -> str:
    """Check the benchmark.yaml of a results folder, from which ``bench run`` resumes without --config.

    Args:
        settings: its content.
        path: of the file.

    Returns:
        A line that shows the paths and downloads it sets.

    Raises:
        UserError: it names a class that is not one of ickd_pl's, or a setting that could name one.
    """
    instead = f"set --config FILE, the original benchmark file, with --output {path.parent}"
    blocks = {"": settings, "teachers.": dict(_items(settings.get("teachers"), f"{path}: teachers", instead))}
    shown: list[str] = []
    cls: type | None = None
    for prefix, block in blocks.items():
        data = dict(_items(block.get("data"), f"{path}: {prefix}data", instead))
        if unknown := sorted(str(key) for key in data if key not in ("class_path", "init_args")):
            raise UserError(
                f"{path}: {prefix}data has {short(unknown[0])}: expected class_path and init_args; {instead}"
            )
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
