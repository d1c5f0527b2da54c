"""The training module: a frozen teacher, a trainable student, and a sum of losses. It knows no method by name."""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ickd_pl.checks import above_zero, between, plain_arguments, whole_number, zero_or_more
from ickd_pl.data.batch import Batch, DataInfo, as_batch
from ickd_pl.errors import UserError
from ickd_pl.models import FeatureNet
from ickd_pl.models.build import check_classes, make_network, network_name, probe
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.models.hooked import LayerMap
from ickd_pl.seeding import seeded
from ickd_pl.strategies import LossStrategy, from_spec
from ickd_pl.strategies.base import check_lists, unique_names
from ickd_pl.training.checkpoint import leave_teacher_out, put_back
from ickd_pl.training.metrics import TrainSums, accuracies
from ickd_pl.training.teacher import check_floor, check_floor_value, read_teacher
from ickd_pl.training.two_stage import Stages
from ickd_pl.weights.checkpoint import checkpoint_of
from ickd_pl.weights.read import read_file

if TYPE_CHECKING:
    from typing_extensions import Self

# How often, in steps, the loss reaches the progress bar and is checked to be finite: each look waits for the device.
LOOK_EVERY = 50


class DistillationModule(pl.LightningModule):
    """Train a student by ``ce_weight * cross entropy + sum of strategy.weight * strategy.loss``.

    With no strategies the teacher is neither built nor read: that is the Vanilla row, and how a teacher is trained.
    The recipe's defaults are RepDistiller's (Tian, Krishnan, Isola, ICLR 2020).

    Metrics: accuracies are in percent. During ``fit`` every epoch is evaluated on what the data module shows as its
    validation data: ``val/...`` for a validation split, ``test/...`` where it is the test set, as in RepDistiller.
    The headline is the last epoch's ``acc1``; ``acc1_best`` is the best epoch's, for information. Nothing is selected.

    Args:
        student: a network's name (see :func:`ickd_pl.model_names`) or any ``nn.Module`` with ``student_layers``.
        teacher: likewise.
        teacher_weights: file of the named teacher's weights; an ``nn.Module`` is taken as trained.
        teacher_floor: top-1 accuracy in percent that the teacher must reach on the images that every epoch is evaluated
            on; measured once before training, which is refused below it. None: not measured.
        strategies: distillation methods; their losses are added.
        ce_weight: weight of the cross entropy with the labels.
        num_classes: K; the command line takes it from the data.
        num_samples: training images; the command line takes it from the data. Methods with a memory need it.
        image_size: height and width of the images, pixels; the command line takes it from the data.
        seed: start of the student and of the methods' trainable parts.
        lr: learning rate of SGD. 0.01 for MobileNetV2, ShuffleV1 and ShuffleV2 students (in their pairs' YAML).
        momentum: of SGD, without Nesterov; below 1.
        weight_decay: of SGD, on every parameter.
        milestones: the learning rate is divided by 10 after these epochs (main epochs, counted from 1).
        student_layers: where to tap the features of a student of your own.
        teacher_layers: likewise for the teacher.

    Raises:
        UserError: an unknown name, no teacher for a method, class counts that differ.
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
    ) -> None:
        super().__init__()
        above_zero(self, lr=lr)
        between(self, 0, 1, momentum=momentum)
        zero_or_more(self, weight_decay=weight_decay, ce_weight=ce_weight)
        whole_number(self, 1, num_classes=num_classes, image_size=image_size)
        if num_samples is not None:
            whole_number(self, 1, num_samples=num_samples)
        check_lists(self, strategies, milestones)
        check_floor_value(teacher_floor)
        # A checkpoint hands strategies back as plain data.
        self.strategies = [from_spec(s) if isinstance(s, dict) else s for s in strategies or []]
        self.keys = unique_names(self.strategies)
        self._keep_hparams(
            student=student, teacher=teacher, teacher_weights=None if teacher_weights is None else str(teacher_weights),
            strategies=[s.spec() for s in self.strategies], ce_weight=ce_weight, num_classes=num_classes,
            num_samples=num_samples, image_size=image_size, seed=seed, lr=lr, momentum=momentum,
            weight_decay=weight_decay, milestones=list(milestones),
            teacher_floor=teacher_floor,
        )  # fmt: skip
        self.ce_weight, self.num_classes = ce_weight, num_classes
        self.student_name = network_name(student)
        self.teacher_name = None if teacher is None else network_name(teacher)
        self._preact = any(s.needs_preact for s in self.strategies)
        self._teacher_ready = isinstance(teacher, nn.Module)
        self.student = make_network(student, num_classes, student_layers, seed, "student")
        self.teacher = None
        self.adapters = nn.ModuleDict()
        student_shapes = probe(self.student, self.student_name, image_size, self._preact)
        teacher_shapes = None
        if self.strategies:
            if teacher is None:
                names = ", ".join(type(s).__name__ for s in self.strategies)
                raise UserError(
                    f"{names} needs a teacher and none was given: set model.teacher and model.teacher_weights"
                )
            self.teacher = make_network(teacher, num_classes, teacher_layers, "teacher").eval().requires_grad_(False)
            teacher_shapes = probe(self.teacher, network_name(teacher), image_size, self._preact)
        check_classes(num_classes, student_shapes, teacher_shapes)
        if teacher_shapes is not None:
            self._build_adapters(student_shapes, teacher_shapes, DataInfo(num_classes, num_samples), seed)
        self.stages = Stages(self.strategies, self.student_name)
        self.best_acc1 = 0.0
        self.param_group = 0
        self._main_epoch: int | None = None
        self.metrics = accuracies(num_classes)
        self._sums = TrainSums()

    # -- construction --------------------------------------------------------------------------------------------

    def _keep_hparams(self, **values: Any) -> None:
        """Keep the constructor's arguments as plain data, so that every checkpoint loads under ``weights_only=True``.

        A network of the project's is kept by its name. One of the user's own cannot be kept: ``load_from_checkpoint``
        wants it again.
        """
        named = {k: v.name if isinstance(v, FeatureNet) and v.name else v for k, v in values.items()}
        plain = {name: value for name, value in named.items() if not isinstance(value, nn.Module)}
        self._set_hparams(plain)  # private: lightning LightningModule._set_hparams
        # private: lightning LightningModule._hparams_initial
        self._hparams_initial = dict(plain)

    def _build_adapters(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo, seed: int) -> None:
        for position, (key, strategy) in enumerate(zip(self.keys, self.strategies, strict=True)):
            strategy.check(student, teacher)
            with seeded(seed, "adapter", strategy.name(), position):
                adapter = strategy.build(student, teacher, data)
            if adapter is not None:
                self.adapters[key] = adapter
            if strategy.pretrain_epochs:
                strategy.pretrain_modules(self.student, adapter)  # raises now what it would raise in the fit

    def adapter_of(self, strategy: LossStrategy) -> nn.Module | None:
        """What a strategy's ``build`` returned."""
        key = next(key for key, own in zip(self.keys, self.strategies, strict=True) if own is strategy)
        # ModuleDict has no get() in every supported torch.
        return self.adapters[key] if key in self.adapters else None  # noqa: SIM401

    def prepare_teacher(self) -> None:
        """Read the teacher's weights, once. ``fit`` does it; call it to fail early.

        Raises:
            UserError: no weights were named, or their file is missing, damaged or of another network.
        """
        if self.teacher is None or self._teacher_ready:
            return
        read_teacher(self.teacher, str(self.teacher_name), self.hparams["teacher_weights"])
        self._teacher_ready = True

    # -- one step ------------------------------------------------------------------------------------------------

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the student, (B, K), for normalised images (B, 3, H, W)."""
        logits: Tensor = self.student(image)
        return logits

    def losses(self, batch: Batch, teacher: Features | None = None) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss of a batch.

        Args:
            batch: images, labels and indices.
            teacher: the teacher's features of the batch where they are known already; None computes them.

        Returns:
            The weighted total, the unweighted terms by name (``ce`` and each method's key), and the student's logits.
        """
        student: Features = self.student.features(batch.image, preact=self._preact)
        teacher = self.teacher_features(batch.image) if teacher is None else teacher
        first_stage = self.stages.first
        total = torch.zeros((), device=batch.image.device)
        terms: dict[str, Tensor] = {"ce": cross_entropy(student.logits, batch.label)}
        if not first_stage:
            total = self.ce_weight * terms["ce"]
        for key, strategy in zip(self.keys, self.strategies, strict=True):
            adapter = self.adapter_of(strategy)
            if teacher is None:
                raise RuntimeError("a strategy without a teacher")
            if not first_stage:
                terms[key] = strategy.loss(student, teacher, batch, adapter)
                total = total + strategy.weight_at(self._main_epoch) * terms[key]
            elif strategy.pretrain_epochs:
                terms[key] = strategy.pretrain_loss(student, teacher, batch, adapter)
                total = total + terms[key]
        return total, terms, student.logits

    def teacher_features(self, image: Tensor, preact: bool = False) -> Features | None:
        """What the frozen teacher shows of the images, without gradient; None without a teacher."""
        if self.teacher is None:
            return None
        if not self._teacher_ready:
            self.prepare_teacher()
        with torch.no_grad():
            features: Features = self.teacher.features(image, preact=preact or self._preact)
        return features

    def _as_batch(self, batch: Any) -> Batch:
        needing = [type(s).__name__ for s in self.strategies if s.needs_index]
        if needing and len(batch) < 3:
            raise UserError(
                f"{', '.join(needing)} must know which training image is which: let the data yield "
                "(image, label, index), as ickd_pl's data modules do"
            )
        return as_batch(batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        total = self.counted_loss(self._as_batch(batch), batch_idx)
        if batch_idx % LOOK_EVERY == 0:
            self.log("loss", total.detach(), prog_bar=True, logger=False)
        # A rank's mean counts by its share of the global batch, so that the ranks' average is the global mean.
        share = getattr(self.trainer.train_dataloader, "share", None)
        return total if share is None or self.trainer.world_size == 1 else total * share(batch_idx)

    def counted_loss(self, batch: Batch, batch_idx: int, teacher: Features | None = None) -> Tensor:
        """The total loss of a batch, counted in the epoch's means and now and then checked to be finite."""
        total, terms, logits = self.losses(batch, teacher)
        self._sums.add(total, terms, logits, batch)
        if batch_idx % LOOK_EVERY == 0:
            self._sums.check_finite(self.current_epoch + 1, self.global_step)
        return total

    def is_finite(self) -> bool:
        """Whether all that was counted in this epoch is finite; waits for the device."""
        return not self._sums.bad()

    def on_train_epoch_end(self) -> None:
        self._sums.check_finite(self.current_epoch + 1, self.global_step)
        self.note({**self._sums.means(self.trainer), "lr": self._lr})

    def note(self, values: dict[str, float], prog_bar: bool = False) -> None:
        """Log values that are the same on every rank already; sync_dist only keeps Lightning from warning."""
        self.log_dict(values, prog_bar=prog_bar, sync_dist=True)

    # -- evaluation ------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        batch = as_batch(batch)
        keep = batch.index >= 0
        logits = self(batch.image)[keep].float()
        self.metrics.update(logits, batch.label[keep])

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self._log_metrics(getattr(self.trainer.datamodule, "eval_split", "val"))  # type: ignore[attr-defined]

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        values = {name: 100 * float(value) for name, value in self.metrics.compute().items()}
        self.metrics.reset()
        self.note({f"{split}/{name}": value for name, value in values.items()}, prog_bar=True)
        # What the first stage leaves is no result.
        if self.trainer.state.fn == "fit" and not self.stages.first:
            self.best_acc1 = max(self.best_acc1, values["acc1"])
            self.note({f"{split}/acc1_best": self.best_acc1})

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities, (B, K)."""
        logits: Tensor = self(as_batch(batch).image)
        return logits.float().softmax(dim=1)

    # -- Lightning's hooks -----------------------------------------------------------------------------------------

    def configure_callbacks(self) -> Sequence[pl.Callback]:
        return list(self.strategies)

    def configure_optimizers(self) -> Any:
        parameters = list(self.trainable())
        hp = self.hparams
        # foreach also on the CPU: fused and foreach SGD differ in the last bits, and runs must compare.
        optimizer = torch.optim.SGD(
            parameters, lr=hp["lr"], momentum=hp["momentum"], weight_decay=hp["weight_decay"], foreach=True
        )
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor())}

    def lr_factor(self) -> Callable[[int], float]:
        """The schedule: from the epoch of the fit, from 0, to the learning rate as a multiple of ``lr``."""
        first, lr, milestones = self.stages.epochs, float(self.hparams["lr"]), self.hparams["milestones"]

        def factor(epoch: int) -> float:
            return self.stages.lr(lr) / lr if epoch < first else float(0.1 ** bisect_right(milestones, epoch - first))

        return factor  # a plain function: of other callables the scheduler keeps the attributes in checkpoints

    def trainable(self) -> Iterator[nn.Parameter]:
        """The student's parameters, then the methods'."""
        yield from self.student.parameters()
        yield from self.adapters.parameters()

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        classes = getattr(data, "num_classes", self.num_classes)
        if classes != self.num_classes:
            networks = [f"student {self.student_name}"]
            networks += [] if self.teacher is None else [f"teacher {self.teacher_name}"]
            raise UserError(
                f"the data have {classes} classes, the networks {self.num_classes} ({', '.join(networks)}): "
                f"set num_classes to {classes}"
            )
        if stage == "fit":
            self.prepare_teacher()
            self.stages.extend(self.trainer)

    def on_train_start(self) -> None:
        floor = self.hparams["teacher_floor"]
        if self.teacher is not None and floor is not None:
            check_floor(self, floor)
        self.stages.offset_loader(self.trainer)
        leaves_first_stage = self.stages.first  # as a checkpoint of the first stage's last batch says
        self._enter_epoch()  # Lightning leaves out on_train_epoch_start where it continues within an epoch
        if leaves_first_stage and not self.stages.first:
            self.stages.restart_optimizer(self)

    def on_train_epoch_start(self) -> None:
        self._enter_epoch()
        self.stages.restart_optimizer(self)

    def _enter_epoch(self) -> None:
        self._sums.clear()
        self.stages.enter(self)
        self._main_epoch = self.current_epoch - self.stages.epochs + 1
        # Noted now: at the epoch's end the schedule has already moved on.
        self._lr = self.trainer.optimizers[0].param_groups[self.param_group]["lr"]

    def on_train_end(self) -> None:
        self._main_epoch = None

    def train(self, mode: bool = True) -> DistillationModule:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, *, strict: bool = True, **given: Any
    ) -> Self:
        """A module with the settings and weights of a checkpoint. Nothing in the file is run, imported or fetched.

        Args:
            checkpoint_path: of the file.
            map_location: device that the module is put on; None: the CPU.
            strict: every key of the weights must agree.
            given: arguments that replace the file's. A network of your own is none of them: give it again, as
                ``student=NET, student_layers=LAYERS``. ``weights_only`` is accepted and always true.

        Raises:
            UserError: the file is missing, damaged, of another network, or asks for more than a file may.
        """
        if given.pop("hparams_file", None) is not None:
            raise UserError("load_from_checkpoint: hparams_file is not read: give its settings as arguments")
        given.pop("weights_only", None)
        content = read_file(checkpoint_path)
        settings = checkpoint_of(checkpoint_path, content, given).settings
        known = inspect.signature(cls).parameters
        # A newer version may have kept more settings.
        settings = {name: value for name, value in settings.items() if name in known}
        rest = {k: v for k, v in settings.items() if k not in ("student", "teacher", "strategies")}
        plain_arguments(cls, rest, str(checkpoint_path), "give it to load_from_checkpoint as an argument")
        module = cls(**{**settings, **given})
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"], strict=strict)
        return module if map_location is None else module.to(map_location)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        leave_teacher_out(self, checkpoint)
        if self.stages.epochs:
            checkpoint["ickd_pl"]["first_stage"] = self.stages.first

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # private: lightning LightningModule._trainer
        evaluating = self._trainer is None or self._trainer.state.fn != "fit"
        put_back(self, checkpoint, evaluating)
        if not evaluating:
            self.stages.first = bool(checkpoint.get("ickd_pl", {}).get("first_stage", False))
