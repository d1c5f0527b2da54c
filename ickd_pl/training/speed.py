"""How a run computes what its other settings say: memory layout, folded teacher, compiled step, TF32."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from ickd_pl.data.batch import Batch
from ickd_pl.errors import UserError
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.build import probe
from ickd_pl.models.features import Features
from ickd_pl.models.fold import fold_batch_norms
from ickd_pl.models.hooked import HookedNet
from ickd_pl.strategies import LossStrategy

SWITCHES = ("channels_last", "fold_teacher", "compile", "tf32", "cuda_graphs")
UNSET: dict[str, Any] = {**{name: False for name in SWITCHES if name != "cuda_graphs"}, "teacher_normalization": "data"}
"""Settings with which a run goes on computing whose record is older than they are; captured steps change no bit."""


class Module(Protocol):
    """What is read of a :class:`ickd_pl.DistillationModule`."""

    student: FeatureNet | HookedNet
    teacher: FeatureNet | HookedNet | None
    student_name: str
    teacher_name: str | None
    older: frozenset[str]

    @property
    def hparams(self) -> Any: ...

    @property
    def adapters(self) -> Any: ...

    @property
    def device(self) -> Any: ...

    @property
    def trainer(self) -> Any: ...


class Computing:
    """What computes a module's features and losses: the networks as they are, or in a run what its settings ask for.

    The members of a pack share the one of their teacher.
    """

    def __init__(self) -> None:
        self._teacher: FeatureNet | HookedNet | None = None  # with folded batch norms
        self._compiled = False

    def prepare(self, module: Module) -> None:
        """Lay the weights out as ``channels_last`` asks; before the optimizer and DDP see them."""
        self.end()
        if module.hparams["channels_last"]:
            _lay_out(module, torch.channels_last)
            for net, name in ((module.student, module.student_name), (module.teacher, str(module.teacher_name))):
                if net is not None:
                    _check_layout(net, name, module.hparams["image_size"])

    def start(self, module: Module) -> None:
        """Fold the teacher and try the compiler, where the settings ask for it; the teacher has its weights."""
        if module.hparams["fold_teacher"] and module.teacher is not None and self._teacher is None:
            # On a CPU with the channels last, where the network takes that; its maps are handed out as usual.
            formats = [torch.channels_last] if module.device.type == "cpu" else []
            folds = (
                fold_batch_norms(module.teacher, module.hparams["image_size"], memory_format)
                for memory_format in [*formats, torch.preserve_format]
            )
            self._teacher = next((net for net in folds if net is not None), None)
            if self._teacher is None:
                rank_zero_warn(
                    f"fold_teacher has no effect: folded, {module.teacher_name} gives other features or fails"
                )
                self._teacher = module.teacher
        self._compiled = module.hparams["compile"] and can_compile(module.device.type)
        if str(module.trainer.precision).startswith("bf16") and is_bf16_slow(module.device.type):
            _warn_once(
                f"trainer.precision {module.trainer.precision}: this {module.device.type} device has no instructions "
                "for bfloat16, so that it is slower than 32-true here"
            )

    def end(self) -> None:
        """Compute as outside of a run."""
        self._teacher, self._compiled = None, False

    def student_features(self, module: Module, image: Tensor, preact: bool) -> Features:
        return self._features(f"student {module.student_name}", module.student, image, preact)

    def teacher_features(self, module: Module, image: Tensor, preact: bool) -> Features:
        net = self._teacher or module.teacher
        assert net is not None
        found = self._features(f"teacher {module.teacher_name}", net, image, preact)
        return found if module.hparams["channels_last"] else _contiguous(found)

    def seen_by(self, strategy: LossStrategy, student: Features, adapter: nn.Module | None) -> Features:
        """What a method's loss reads of the student: its features, or those that the method's head makes of them."""
        if not strategy.predicts or adapter is None:
            return student
        function = compiled(_apply, type(strategy).__qualname__) if self._compiled else _apply
        found: Features = function(adapter, student)
        return found

    def loss(
        self, strategy: LossStrategy, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None
    ) -> Tensor:
        """A method's loss, of the main stage."""
        function = compiled(_loss, type(strategy).__qualname__) if self._compiled else _loss
        value: Tensor = function(strategy, student, teacher, batch, adapter)
        return value

    def _features(self, what: str, net: FeatureNet | HookedNet, image: Tensor, preact: bool) -> Features:
        function = compiled(_features, what) if self._compiled else _features
        found: Features = function(net, image, preact)
        return found


def _check_layout(net: FeatureNet | HookedNet, name: str, image_size: int) -> None:
    """Raise :class:`UserError` if a network does not take maps whose channels are last."""
    try:
        probe(net, name, image_size, preact=False)
    except UserError as error:
        cause = error.__cause__
        raise (explained(cause, True) if isinstance(cause, RuntimeError) else error) from None


def _contiguous(features: Features) -> Features:
    """Features in the usual layout; those that are in it are not copied."""
    return replace(
        features,
        stem=features.stem.contiguous(),
        stages=tuple(stage.contiguous() for stage in features.stages),
        final=features.final.contiguous(),
        preact=features.preact and tuple(stage.contiguous() for stage in features.preact),
    )


def _lay_out(module: Module, memory_format: torch.memory_format) -> None:
    for net in (module.student, module.teacher, module.adapters):
        if net is not None:
            net.to(memory_format=memory_format)


def as_recorded(module: Module, stored: dict[str, Any]) -> None:
    """Let a module go on as a checkpoint that is older than some of these settings was computed.

    Args:
        module: before its optimizer is made.
        stored: hyper-parameters of the checkpoint.
    """
    older = {name: value for name, value in UNSET.items() if name not in stored}
    if "channels_last" in older and module.hparams["channels_last"]:
        _lay_out(module, torch.contiguous_format)
    module.hparams.update(older)
    module.older = frozenset(older)


def _features(net: FeatureNet | HookedNet, image: Tensor, preact: bool) -> Features:
    return net.features(image, preact=preact)


def _apply(head: nn.Module, student: Features) -> Features:
    found: Features = head(student)
    return found


def _loss(
    strategy: LossStrategy, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None
) -> Tensor:
    return strategy.loss(student, teacher, batch, adapter)


@functools.cache
def compiled(function: FunctionType, what: str) -> Callable[..., Any]:
    """A compiled copy of a function for one purpose.

    Networks are arguments, so that the students of a pack share one graph. Each purpose has a code object of its own,
    because torch compiles one only a few times. Each size of a batch has its own graph: what a batch gives must not
    depend on the sizes that came before it, as after resuming.
    """
    code = function.__code__.replace(co_name=f"{function.__name__} {what}")
    own = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    result: Callable[..., Any] = torch.compile(own, dynamic=False)
    return result


@functools.cache
def can_compile(device_type: str) -> bool:
    """Whether ``torch.compile`` works on a kind of device, which needs a C++ compiler, and Triton on a GPU; tried once.

    Warns if it does not.
    """
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device_type))
    except Exception as error:  # whatever is missing
        # Further lines are for torch's developers.
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        need = "a C++ compiler such as g++" if device_type == "cpu" else "Triton and a C compiler"
        _warn_once(f"model.compile has no effect: torch.compile does not work here, which needs {need} ({why})")
        return False
    return True


def is_bf16_slow(device_type: str) -> bool:
    """Whether a device computes bfloat16 only by other instructions, as far as is known."""
    if device_type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        return device_type == "cpu" and "bf16" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # another system
        return False


@functools.cache
def _warn_once(text: str) -> None:
    rank_zero_warn(text)


class Float32(pl.Callback):
    """Sets whether float32 is TF32 in CUDA's convolutions and matrix products, for the time of a run.

    Args:
        tf32: True: in both; False: in neither. Torch's own default differs between the two.
    """

    def __init__(self, tf32: bool) -> None:
        self.tf32 = tf32
        self._before: tuple[bool, bool] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # The names that every supported torch has; mixing them with newer ones raises.
        if self._before is None:
            self._before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.tf32

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._before is not None:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = self._before
            self._before = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")


def explained(error: RuntimeError, channels_last: bool) -> Exception:
    """The error to raise for one in a step: what to do about code that does not take maps in ``channels_last``."""
    # private: torch message "view size is not compatible"
    # private: torch message "Cannot view a tensor with shape"
    if channels_last and re.search("view size is not compatible|Cannot view a tensor with shape", str(error)):
        return UserError(
            "a network or method calls view() on a map whose channels are last in memory: use reshape() or flatten() "
            "there, or set model.channels_last to false"
        )
    return error
