"""The hint for an unknown option: only one that works when followed, else none."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence

import pytorch_lightning as pl

from ickd_pl.models.discovery import subclasses
from ickd_pl.runs.configs import LINKED
from ickd_pl.strategies import LossStrategy

ALIKE = 0.75  # below this similarity (0 to 1) of two names a hint would mislead
NOTHING = "see fit --help=all for all options"
# What other projects call these options.
ELSEWHERE = {
    "data.batch_size": ("bs", "batch", "batchsize", "train_batch_size", "global_batch_size"),
    "data.root": ("data_dir", "data_root", "data_path", "datadir", "root_dir", "dataset_path"),
    "data": ("dataset", "datamodule", "data_name", "dataset_name"),
    "trainer.max_epochs": ("epochs", "epoch", "num_epochs", "n_epochs", "nb_epochs", "train_epochs"),
    "trainer.devices": ("gpu", "gpus", "ngpu", "ngpus", "n_gpus", "num_gpus", "num_devices", "nproc_per_node"),
    "trainer.accelerator": ("cuda", "cpu", "use_cuda", "no_cuda"),
    "trainer.precision": ("amp", "fp16", "bf16", "half", "use_amp", "mixed_precision"),
    "trainer.default_root_dir": ("output", "output_dir", "out_dir", "save_dir", "log_dir", "save_path", "work_dir"),
    "trainer.accumulate_grad_batches": ("gradient_accumulation_steps", "accumulate", "grad_accum"),
    "trainer.gradient_clip_val": ("clip_grad", "grad_clip", "clip", "max_grad_norm"),
    "model.lr": ("learning_rate", "base_lr", "learningrate"),
    "model.weight_decay": ("wd", "weightdecay"),
    "model.milestones": ("lr_decay_epochs", "decay_epochs", "lr_steps", "steps"),
    "model.strategies": ("method", "methods", "distill", "distiller", "kd_method", "loss", "losses"),
    "model.student": ("arch", "model_s", "net", "network"),
    "model.teacher": ("model_t", "teacher_model", "teacher_arch", "teacher_name"),
    "model.teacher_weights": ("path_t", "teacher_path", "teacher_ckpt", "teacher_checkpoint", "teacher_file"),
    "model.ce_weight": ("gamma", "alpha_ce", "cls_weight"),
    "seed_everything": ("seed", "random_seed", "manual_seed"),
    "ckpt_path": ("ckpt", "checkpoint", "resume", "resume_from", "resume_from_checkpoint", "checkpoint_path"),
}
GROUPS = {"data.": pl.LightningDataModule, "model.strategies.": LossStrategy}


def near_option(name: str, options: Iterable[str], inner: bool = False) -> str:
    """The hint for an unknown option or setting.

    Args:
        name: what the user wrote, without leading dashes.
        options: all options of the parser.
        inner: it is an argument of the data module or of a method that was named before, without its prefix.

    Returns:
        For example ``did you mean model.lr?``.
    """
    given, arguments = name.lower().replace("-", "_"), _arguments()
    last = given.rpartition(".")[2]
    if inner and name in arguments:
        return f"it is an argument of {', '.join(sorted(arguments[name]))}"
    known = list(options)
    within = {f"{prefix}{each}": owners for prefix, base in GROUPS.items() for each, owners in _arguments(base).items()}
    partly = {each for each, owners in within.items() if len(owners) <= 3}
    for found in (
        [each for each in [*known, *within] if each.lower() == given],
        [each for each in [*known, *within] if each.lower().rpartition(".")[2] == last]
        + [each for each, words in ELSEWHERE.items() if last in words and each in {*known, *within}],
        _alike(given, last, known),
        _alike(given, last, list(within)),
    ):
        if found:
            # Some arguments belong to some of the classes only: one of those must be named before.
            owners = {each: f" (of {', '.join(sorted(within.get(each, ())))})" for each in found}
            named = [each.rpartition(".")[2] if inner else each + owners[each] * (each in partly) for each in found]
            return f"did you mean {', '.join(dict.fromkeys(named))}?"
    return NOTHING


def _alike(given: str, last: str, known: Sequence[str]) -> list[str]:
    """The options that begin like the name, or are spelled like it; in the same group, where there are any."""
    scores: dict[str, float] = {}
    for option in known:
        end = option.lower().rpartition(".")[2]
        begins = min(len(end), len(last)) >= 3 and (end.startswith(last) or last.startswith(f"{end}_"))
        scores[option] = max(float(begins), difflib.SequenceMatcher(None, end, last).ratio())
    close = sorted((o for o in known if scores[o] >= ALIKE), key=lambda option: -scores[option])
    same = [option for option in close if option.rpartition(".")[0] == given.rpartition(".")[0]]
    return (same or close)[:3]


def _arguments(base: type | None = None) -> dict[str, set[str]]:
    """The arguments of all data modules and methods, each with the classes that have it."""
    found: dict[str, set[str]] = {}
    for each in (pl.LightningDataModule, LossStrategy) if base is None else (base,):
        for cls in subclasses(each):
            # Lightning's own, private and abstract classes are no choice.
            if not inspect.isabstract(cls) and not cls.__module__.startswith("pytorch_") and cls.__name__[0] != "_":
                for argument in inspect.signature(cls).parameters:
                    if argument not in ("args", "kwargs", *LINKED):
                        found.setdefault(argument, set()).add(cls.__name__)
    return found
