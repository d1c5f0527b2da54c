"""The commands ``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with one folder per run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import yaml
from jsonargparse import ActionYesNo
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

import ickd_pl.data  # noqa: F401  makes its classes known by their short names
from ickd_pl.errors import UserError
from ickd_pl.runs.configs import TRAINER_DEFAULTS, check_trainer
from ickd_pl.runs.console import log, warn
from ickd_pl.runs.data_options import data_name
from ickd_pl.runs.decide import WORLD_SIZE, Asked, check_given, inputs_of, newest
from ickd_pl.runs.finite import FiniteGuard
from ickd_pl.runs.given_recipe import GivenRecipe, goes_on_from
from ickd_pl.runs.lock import holder, locked
from ickd_pl.runs.parser import OneLineParser, ShortHelpParser
from ickd_pl.runs.predictions import write_predictions
from ickd_pl.runs.processes import no_process_left, on_rank_zero
from ickd_pl.runs.run_folder import EpochRecord, RunFolder, folder_of
from ickd_pl.runs.short_help import ALL
from ickd_pl.runs.step import Saver, StepCheckpoint
from ickd_pl.runs.stop import SignalStop
from ickd_pl.runs.stored_settings import evaluation_settings
from ickd_pl.runs.trainer import CommandLineTrainer
from ickd_pl.runs.written_settings import written_settings
from ickd_pl.training.module import DistillationModule
from ickd_pl.training.speed import UNSET
from ickd_pl.training.teacher import check_chosen
from ickd_pl.weights.checkpoint import read_checkpoint

# Options that are no settings of the run.
_OF_THIS_CALL = ("config", "ckpt_path", "weights_only", "override_world_size")
# What protects a run; the settings may contain them with other arguments.
_PROTECTION: tuple[type[pl.Callback], ...] = (FiniteGuard, StepCheckpoint, SignalStop)


class IckdCLI(LightningCLI):
    """LightningCLI with one folder per run and settings linked from the data.

    Args:
        args: the command-line arguments without the program's name.
    """

    parser_class: type[OneLineParser] = ShortHelpParser

    def __init__(self, args: list[str]) -> None:
        self._left_out: list[str] = []
        if ALL in args:
            self.parser_class, args = OneLineParser, ["--help" if arg == ALL else arg for arg in args]
        super().__init__(
            DistillationModule,
            pl.LightningDataModule,
            save_config_callback=None,
            trainer_class=CommandLineTrainer,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=0,
            parser_class=self.parser_class,
            parser_kwargs={"prog": "ickd", "description": "Knowledge distillation."},
            subclass_mode_data=True,
            args=args,
            auto_configure_optimizers=False,
            # The module saves its hyper-parameters itself, as plain data.
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_seed)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=_seed)
        parser.link_arguments("data", "model.num_classes", compute_fn=_num_classes, apply_on="instantiate")
        parser.link_arguments("data", "model.num_samples", compute_fn=_num_samples, apply_on="instantiate")
        parser.link_arguments("data", "model.image_size", compute_fn=_image_size, apply_on="instantiate")
        parser.add_argument(
            "--override_world_size",
            action=ActionYesNo,
            nargs="?",
            default=False,
            help="let fit continue a run with another number of processes; the global batch stays the same",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        # main() has put the checkpoint's settings before the user's, so that the user's take precedence. LightningCLI
        # would now override the user's: hide the path from it until it has built the objects.
        config = self.config[self.config.subcommand]
        self._ckpt_path = config.pop("ckpt_path", None)

    def before_instantiate_classes(self) -> None:
        self.config[self.config.subcommand]["ckpt_path"] = self._ckpt_path

    @property
    def settings(self) -> dict[str, Any]:
        """The run's whole configuration as plain data; as a ``--config`` file it reproduces the run."""
        settings: dict[str, Any] = written_settings(self.parser, self.config)[str(self.subcommand)]
        return {key: value for key, value in settings.items() if key not in _OF_THIS_CALL}

    @property
    def folder(self) -> RunFolder:
        """The folder of this run."""
        root = Path(self.settings["trainer"]["default_root_dir"] or "outputs")
        model: DistillationModule = self.model
        methods = [strategy.name() for strategy in model.strategies]
        return RunFolder.of(
            root, data_name(self.datamodule), model.teacher_name, model.student_name, methods, model.hparams["seed"]
        )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        # fast_dev_run writes no files.
        if self.subcommand == "fit":
            check_trainer(self.settings["trainer"])
            check_chosen(self.settings["model"])
            self.model.prepare_teacher()  # fail before the trainer logs anything
            given = self.config[self.subcommand].get("ckpt_path")
            checkpoints = [Path(given)] if given else [self.folder.last, self.folder.previous]
            if found := newest([path for path in checkpoints if path.is_file()])[0]:
                self.continue_older(found.settings)
        if self.subcommand == "fit" and not self.settings["trainer"]["fast_dev_run"]:
            return self.make_trainer([EpochRecord(self.folder, self.settings)], **kwargs)
        return self.make_trainer(**kwargs)

    def continue_older(self, stored: Collection[str]) -> None:
        """Go on as a run was computed that has only the ``stored`` settings, where it is older than others."""
        model: Any = self.config[self.subcommand]["model"]
        older = {name: value for name, value in UNSET.items() if name not in stored}
        self._left_out = [f"model.{name}" for name, value in older.items() if model[name] != value]
        for name, value in older.items():
            model[name] = self.model.hparams[name] = value
        self.model.older = frozenset(older)

    def make_trainer(self, callbacks: Sequence[pl.Callback] = (), **kwargs: Any) -> pl.Trainer:
        """Build the Trainer from the settings.

        Args:
            callbacks: added to the callbacks in the settings.
            **kwargs: Trainer arguments that replace those in the settings.

        Raises:
            UserError: the Trainer does not accept the settings.
        """
        # On a SLURM signal Lightning would save a checkpoint to the folder that all runs share, and every later run
        # would start from it. A requeued job resumes from its own run folder.
        on_slurm = SLURMEnvironment.detect() and not self.settings["trainer"].get("plugins")
        own = self.config_init[self.subcommand]["trainer"].get("callbacks") or []
        own = own if isinstance(own, list) else [own]
        saves = any(isinstance(callback, Saver) for callback in callbacks)
        missing = [cls() for cls in _PROTECTION if saves and not any(isinstance(each, cls) for each in own)]
        kwargs = {
            **({"plugins": [SLURMEnvironment(auto_requeue=False)]} if on_slurm else {}),
            "callbacks": [*own, *callbacks, *missing],
            **kwargs,
        }
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error

    def fit(self, model: DistillationModule, datamodule: Any, ckpt_path: Any = None, **kwargs: Any) -> None:
        """Start or resume the run, or log that it is already finished."""
        folder, trainer = self.folder, cast(Any, self.trainer)
        if ckpt_path is not None:
            read_checkpoint(ckpt_path)  # raises if it is not a checkpoint
        _warn_of_schedule(model, trainer.max_epochs)
        if trainer.fast_dev_run:
            trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, **kwargs)
            return
        with ExitStack() as until_the_end:
            decided = on_rank_zero(trainer, str(folder.path), lambda: self._decide(until_the_end, ckpt_path))
            ckpt_path = ckpt_path if decided["given"] else None
            if decided["warning"]:
                warn(f"warning: {decided['warning']}")
            if decided["state"] == "finished":
                log(f"already finished: {decided['checkpoint']} (move {folder.path} away to run it again)")
                return
            if decided["state"] == "continue" and ckpt_path is None:
                left_out = f" (it is older than {', '.join(self._left_out)}: without)" if self._left_out else ""
                log(f"continuing {decided['checkpoint']}{left_out}")
            if decided["used"]:
                log(f"continuing {ckpt_path} with other values of {', '.join(decided['used'])}")
                trainer.callbacks.insert(0, GivenRecipe())
            record = next(c for c in trainer.callbacks if isinstance(c, EpochRecord))
            record.inputs.update(decided["inputs"])
            with no_process_left(trainer):
                path = ckpt_path or decided["checkpoint"]
                trainer.fit(model, datamodule=datamodule, ckpt_path=path, **kwargs)
            if not record.rows and not trainer.global_step:
                raise UserError("nothing was trained: the loader of training batches is empty, see the line above")
            if record.rows:
                log(f"{record.summary()}; checkpoint {folder.last}, metrics {folder.metrics}")

    def _decide(self, until_the_end: ExitStack, ckpt_path: Any) -> dict[str, Any]:
        """Lock the folder and decide how the run proceeds, on rank 0; see :meth:`RunFolder.decide`."""
        folder, model = self.folder, self.model
        asked = Asked(self.settings, inputs_of(self.trainer, self.datamodule, model))
        may_differ = [WORLD_SIZE] if self.config[self.subcommand].get("override_world_size") else []
        used: list[str] = []
        if ckpt_path is not None and folder_of(Path(ckpt_path).resolve()) != folder.path.resolve():
            asked.inputs["began"] = str(Path(ckpt_path).resolve())
            if goes_on_from(folder, ckpt_path):
                ckpt_path = None
        if "began" in asked.inputs and ckpt_path is not None:
            given = read_checkpoint(ckpt_path)
            used = check_given(given, asked, dict(model.hparams), may_differ)
            if 0 < (planned := (self.trainer.max_epochs or 0) + model.stages.epochs) <= len(given.rows):
                raise UserError(
                    f"{ckpt_path} has {len(given.rows)} epochs already, of {planned}: set more --trainer.max_epochs"
                )
        # Without the lock at first: a run that is refused or finished writes nothing.
        state, checkpoint, warning = folder.decide(asked, may_differ)
        if state != "finished" and self.trainer.is_global_zero:
            if not until_the_end.enter_context(locked(folder.path, None)):
                raise UserError(
                    f"{folder.path} is used by another run ({holder(folder.path)}): wait for its end, or set "
                    "--trainer.default_root_dir to another folder"
                )
            state, checkpoint, warning = folder.decide(asked, may_differ)
        return {
            "state": state,
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "warning": warning if ckpt_path is None else "",
            "used": used,
            "given": ckpt_path is not None,
            "inputs": asked.inputs,
        }

    def predict(self, model: DistillationModule, datamodule: Any, ckpt_path: Any = None, **kwargs: Any) -> None:
        """Write ``predictions.csv`` into the checkpoint's run folder."""
        if ckpt_path is None:
            raise UserError("predict needs a trained student: set --ckpt_path FILE")
        if self.trainer.world_size > 1:
            raise UserError("predict runs on one device: set --trainer.devices 1")
        kwargs["return_predictions"] = True
        outputs: Any = self.trainer.predict(model, datamodule=datamodule, ckpt_path=ckpt_path, **kwargs)
        path = write_predictions(folder_of(Path(ckpt_path).resolve()) / "predictions.csv", outputs or [], datamodule)
        log(f"wrote {path}")


def with_checkpoint_settings(args: list[str], scratch: Path) -> list[str]:
    """For ``test``, ``validate`` and ``predict``: put the checkpoint's settings before the user's arguments."""
    if not args or args[0] not in ("test", "validate", "predict"):
        return args
    path = _value_of("--ckpt_path", args)
    if path is None:
        if any(arg.startswith(("--help", "-h", "--print_config")) for arg in args):
            return args
        raise UserError(f"{args[0]} needs a trained student: set --ckpt_path FILE, the checkpoints/last.ckpt of a run")
    settings, line = evaluation_settings(path, args[1:])
    if line:
        log(line)
    file = scratch / "checkpoint.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return [args[0], "--config", str(file), *args[1:]]


def _value_of(flag: str, args: Sequence[str]) -> str | None:
    for position, arg in enumerate(args):
        if arg == flag and position + 1 < len(args):
            return args[position + 1]
        if arg.startswith(f"{flag}="):
            return arg.partition("=")[2]
    return None


def _warn_of_schedule(model: DistillationModule, max_epochs: int | None) -> None:
    first = min(model.hparams["milestones"], default=0)
    if max_epochs and 0 < max_epochs <= first:
        log(
            f"note: the learning rate never decays in {max_epochs} epochs (milestones {model.hparams['milestones']}); "
            "set model.milestones for a shorter run"
        )


def _seed(value: Any) -> int:
    if isinstance(value, bool):
        raise UserError(f"seed_everything: expected a whole number, got {value}; every run needs a seed")
    if not 0 <= int(value) < 2**32:
        raise UserError(f"seed_everything: expected a number from 0 to {2**32 - 1}, got {value}")
    return int(value)


def _num_classes(data: Any) -> int:
    if not hasattr(data, "num_classes"):
        raise UserError(f"data module {type(data).__name__} has no num_classes: add it as an attribute or property")
    return int(data.num_classes)


def _num_samples(data: Any) -> int | None:
    return getattr(data, "num_train", None)


def _image_size(data: Any) -> int:
    return int(getattr(data, "image_size", 32))
