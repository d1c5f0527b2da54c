"""The training module: a frozen teacher, a trainable student and a sum of losses. No method is special-cased."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.build import make_network, network_name
from ickd_pl.models.features import Features
from ickd_pl.models.hooked import LayerMap
from ickd_pl.strategies import LossStrategy, from_spec
from ickd_pl.strategies.base import unique_names
from ickd_pl.training.build import adapters_of, check_arguments, check_data, make_teacher, optimizer_of
from ickd_pl.training.captured_steps import CapturedSteps
from ickd_pl.training.checkpoint import complete_checkpoint, is_fitting, plain_settings, remove_teacher
from ickd_pl.training.finite import has_scaler
from ickd_pl.training.first_batch import FirstBatch, check_evaluation, training_batch
from ickd_pl.training.logged import log_settings
from ickd_pl.training.metrics import Accuracies, TrainSums, epoch_state, resume_epoch, weighted
from ickd_pl.training.one_image import check_one_image
from ickd_pl.training.speed import Computing, Float32, as_recorded, explained
from ickd_pl.training.taught import TaughtModule
from ickd_pl.training.teacher import TeacherWeights, check_accuracy
from ickd_pl.training.two_stage import Stages
from ickd_pl.training.weights_record import keepers


class DistillationModule(CapturedSteps, TaughtModule):
    """Train a student by ``ce_weight * cross entropy + sum of strategy.weight * strategy.loss``.

    Without strategies the teacher is neither built nor loaded: this is the Vanilla row, and how teachers are trained.
    The default hyper-parameters are RepDistiller's (Tian, Krishnan, Isola, ICLR 2020).

    A second ``fit`` goes on with the weights and the methods' trained parts and memories as they are (checkpoints say
    so: ``trained_before``); optimizer, schedule, epochs and the best accuracy start anew.

    Metrics: accuracies are in %. During ``fit`` every epoch is evaluated on the data module's ``val_dataloader``:
    logged as ``val/...`` for a validation split, ``test/...`` where it is the test set, as in RepDistiller. The result
    of a run is the last epoch's ``acc1``; ``acc1_best`` is the best epoch's, for information, and selects nothing.

    Args:
        student: a network's name (see :func:`ickd_pl.model_names`) or any ``nn.Module`` with ``student_layers``.
        teacher: likewise, with ``teacher_layers``. One that shares parts with the student is copied.
        teacher_weights: weights file of the teacher, or ``FILE#ENTRY``; ``none`` for one that is meant to be as it is
            constructed. A teacher given by name needs one of them; an ``nn.Module`` without is assumed to be trained.
        teacher_floor: minimum top-1 accuracy of the teacher in %, measured once before training on the images that
            every epoch is evaluated on; below it the run is refused. None: not measured.
        teacher_normalization: mean and std of the teacher's images; the student's are always the data's. ``auto``: what
            its weights file says (checkpoints and exports do), else the data's; ``data``: the data's; or
            ``{"mean": [R, G, B], "std": [R, G, B]}`` of pixels scaled to 0..1.
        strategies: distillation methods; their losses are summed.
        ce_weight: weight of the cross-entropy loss.
        num_classes: K; the command line takes it from the data.
        num_samples: number of training images; the command line takes it from the data. Methods with a memory bank
            need it.
        image_size: height and width of the images in pixels; the command line takes it from the data.
        seed: initialises the student and the methods' trainable parts.
        lr: learning rate of SGD; 0.01 for MobileNetV2, ShuffleV1 and ShuffleV2 students (in their pairs' YAML).
        momentum: of SGD, without Nesterov; below 1.
        weight_decay: of SGD, on every parameter.
        milestones: the learning rate is divided by 10 after these epochs (main epochs, counted from 1).
        student_layers: layers whose outputs are the features, for a custom student.
        teacher_layers: likewise for the teacher.
        channels_last: lay weights and maps out with the channels last in memory: faster, other last bits.
        fold_teacher: compute with a copy of the frozen teacher whose batch norms are part of its convolutions: faster,
            other last bits (see :func:`ickd_pl.models.fold.fold_batch_norms`).
        compile: compile both networks' forward passes and the methods' losses with ``torch.compile``; without a
            compiler this warns and has no effect.
        tf32: CUDA computes float32 convolutions and matrix products in TF32; False: in float32.
        cuda_graphs: on one GPU, run whole steps as CUDA graphs, of the same bits (:mod:`ickd_pl.training.captured`).

    Raises:
        UserError: an unknown name, a method without a teacher, or numbers of classes that differ.
        IncompatiblePair: a method cannot work on this pair of networks.
    """

    def __init__(
        self,
        student: str | nn.Module,
        teacher: str | nn.Module | None = None,
        teacher_weights: str | Path | None = None,
        strategies: list[LossStrategy] | None = None,
        ce_weight: float = 1.0,
        num_classes: int = 100,
        num_samples: int | None = None,
        image_size: int = 32,
        seed: int = 0,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        milestones: list[int] | tuple[int, ...] = (150, 180, 210),
        student_layers: LayerMap | None = None,
        teacher_layers: LayerMap | None = None,
        teacher_floor: float | None = None,
        teacher_normalization: str | dict[str, list[float]] = "auto",
        channels_last: bool = False,
        fold_teacher: bool = True,
        compile: bool = False,
        tf32: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        check_arguments(self, arguments)
        # Strategies from a checkpoint are plain data.
        self.strategies = [from_spec(s) if isinstance(s, dict) else s for s in strategies or []]
        self.keys = unique_names(self.strategies)
        self.save_hyperparameters(plain_settings(arguments, self.strategies), logger=False)
        self.ce_weight, self.num_classes, self.cuda_graphs = ce_weight, num_classes, cuda_graphs
        self.student_name = network_name(student)
        self.teacher_name = None if teacher is None else network_name(teacher)
        self.student = make_network(student, num_classes, student_layers, seed, "student")
        self.teacher = make_teacher(teacher, num_classes, teacher_layers, self.strategies, self.student)
        given = isinstance(teacher, nn.Module)
        self.teacher_weights = TeacherWeights(self.teacher_name, self.hparams["teacher_weights"], given)
        self.adapters = adapters_of(self, image_size, DataInfo(num_classes, num_samples), seed)
        self.stages = Stages(self.strategies, self.student_name)
        self.metrics = Accuracies(num_classes)
        self.first_batch = FirstBatch(num_classes, image_size)
        self.computing = Computing()
        self.sums = TrainSums()
        self.stored_epoch: Any = None  # of a checkpoint within an epoch
        self.in_force: dict[str, float] = {}  # learning rate of the epoch, and settings that a callback has changed

    @property
    def in_first_stage(self) -> bool:
        return self.stages.first

    # -- one step ------------------------------------------------------------------------------------------------

    def losses(
        self, batch: Batch, teacher: Features | None = None, student: Features | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Compute the losses of a batch.

        Args:
            batch: images, labels and indices.
            teacher: the teacher's features of the batch if already computed; None computes them.
            student: likewise the student's.

        Returns:
            The weighted total, the unweighted terms by name (``ce`` and each method's key), and the predicted logits.
        """
        if student is None and teacher is None and self.captured is not None and self.strategies:
            student, teacher = self._features(batch.image)
        student = student or self.computing.student_features(self, batch.image, self.needs_preact)
        first_stage = self.stages.first
        predicted = student.logits
        terms: dict[str, Tensor] = {"ce": cross_entropy(predicted, batch.label)}
        total = torch.zeros((), device=batch.image.device) if first_stage else weighted(self.ce_weight, terms["ce"])
        for key, strategy in zip(self.keys, self.strategies, strict=True):
            adapter = self.adapter_of(strategy)
            teacher = self.teacher_features(batch.image, self.needs_preact) if teacher is None else teacher
            if not first_stage:
                own = self.computing.seen_by(strategy, student, adapter)
                predicted = own.logits if strategy.predicts else predicted
                terms[key] = self.computing.loss(strategy, own, teacher, batch, adapter)
                total = total + weighted(strategy.weight_at(self.stages.epoch), terms[key])
            elif strategy.pretrain_epochs:
                terms[key] = strategy.pretrain_loss(student, teacher, batch, adapter)
                total = total + terms[key]
        return total, terms, predicted

    def _features(self, image: Tensor) -> list[Features]:
        """The student's and the teacher's, in captured steps at once."""
        own = partial(self.computing.student_features, self, image, self.needs_preact)
        return self.side_by_side([own, partial(self.teacher_features, image, self.needs_preact)])

    def as_batch(self, raw: Any) -> Batch:
        """Convert what the data loader yields to a :class:`Batch`.

        Raises:
            UserError: it is not a batch, or lacks the indices that a method needs.
        """
        return training_batch(self, self.static(raw))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        total = self.counted_loss(self.as_batch(batch))
        if self.captured is None:
            self.show_loss(total, batch_idx)
        # Weight a rank's mean by its share of the global batch, so that DDP's average is the global mean.
        share = getattr(self.trainer.train_dataloader, "share", None)
        return total if share is None or self.trainer.world_size == 1 else total * share(batch_idx)

    def counted_loss(self, batch: Batch, *features: Features | None) -> Tensor:
        """The total loss of a batch, NaN if any term is not finite; adds the terms to the epoch's means."""
        try:
            total, terms, logits = self.losses(batch, *features)
        except RuntimeError as error:
            raise explained(error, self.hparams["channels_last"]) from error
        factor = self.sums.add(total, terms, logits, batch, self.step_number)
        return total if factor is None else total * factor

    def train_values(self) -> dict[str, float]:
        """Losses, training accuracy and settings in force of the epoch that is ending."""
        return {**self.sums.means(self.trainer), **self.in_force}

    def check_finite(self) -> None:
        """Raise :class:`NonFiniteLoss` if a term or gradient was not finite; for all ranks; waits for the device."""
        self.sums.check_finite(self.trainer)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if not has_scaler(self.trainer) and self.sums.finite.gradients(self.trainable(), self.step_number):
            self.check_finite()

    def on_train_epoch_end(self) -> None:
        self.check_finite()
        self.log_values(self.train_values())

    # -- Lightning's hooks -----------------------------------------------------------------------------------------

    def configure_callbacks(self) -> Sequence[pl.Callback]:
        return [*self.strategies, Float32(self.hparams["tf32"]), *keepers(self.trainer, self)]

    def configure_optimizers(self) -> Any:
        return optimizer_of([self])

    def parameter_group(self) -> dict[str, Any]:
        """The SGD parameter group: all trainable parameters and every option. The only place that lists the options."""
        return {
            "params": list(self.trainable()),
            **{name: self.hparams[name] for name in ("lr", "momentum", "weight_decay")},
            # Also on the CPU: fused and foreach SGD differ in the last bits, and runs must be comparable.
            "foreach": True,
        }

    def lr_factor(self) -> Callable[[int], float]:
        """The schedule: maps the epoch of the fit (from 0) to the factor by which ``lr`` is multiplied."""
        return self.stages.lr_factor(float(self.hparams["lr"]), self.hparams["milestones"])

    def trainable(self) -> Iterator[nn.Parameter]:
        """The student's parameters, then the methods'."""
        yield from self.student.parameters()
        yield from self.adapters.parameters()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        teacher = [] if self.teacher is None else [("teacher", str(self.teacher_name))]
        check_data(self.trainer.datamodule, self.num_classes, [("student", self.student_name), *teacher])  # type: ignore[attr-defined]
        self.first_batch.forget()
        self.computing.prepare(self)
        if stage == "fit":
            self.check_head()
            self.prepare_teacher()
            log_settings(self)
            self.stages.extend(self.trainer)

    def on_train_start(self) -> None:
        check_evaluation(self)
        check_one_image(self)
        if self.teacher is not None and (minimum := self.hparams["teacher_floor"]) is not None:
            check_accuracy(self.teacher, str(self.teacher_name), minimum, self.trainer, self.teacher_weights.images)
        self.stages.start(self)
        self.computing.start(self)
        # In the middle of an epoch the sums go on; the next epoch clears them.
        self.sums, self.stored_epoch = resume_epoch(self.stored_epoch, self.trainer), None

    def on_train_epoch_start(self) -> None:
        self.stages.start_epoch(self)
        self.sums.clear()

    def on_train_end(self) -> None:
        self.stages.leave()
        self.computing.end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        remove_teacher(self, checkpoint, getattr(self.trainer, "datamodule", None))
        if is_fitting(self):
            checkpoint["ickd_pl"]["epoch"] = self.epoch_state()

    def epoch_state(self) -> dict[str, Any]:
        """What the metrics of the epoch need to continue in its middle, as plain data. Call it on all ranks."""
        return epoch_state(self.sums, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        fits = is_fitting(self)
        complete_checkpoint(self, checkpoint, evaluating=not fits)
        if fits:
            as_recorded(self, checkpoint.get("hyper_parameters", {}))
            self.stages.resume(checkpoint["epoch"])
            self.stored_epoch = checkpoint.get("ickd_pl", {}).get("epoch")
