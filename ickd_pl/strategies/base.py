"""The interface of a distillation method, and how methods are found."""

# Without `from __future__ import annotations`: jsonargparse evaluates the annotations that a dataclass inherits in the
# module of the subclass, which does not know the names that are used here.

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar, TypeVar, get_type_hints

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ickd_pl.checks import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    above_zero,
    check_argument,
    name_of,
    plain,
    short,
    whole_number,
)
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.errors import UserError, near
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.discovery import classes_in, subclasses
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.models.hooked import HookedNet


class LossStrategy(pl.Callback, ABC):
    """One distillation method: its hyper-parameters and its loss. It owns no tensors.

    The total loss of a run is ``ce_weight * CE + sum of strategy.weight * strategy.loss(...)``. What a method trains
    (a regressor, an embedding) is returned by :meth:`build` and kept, trained and saved by the module. Being a
    Lightning callback, a method may also use any callback hook; the module attaches it.

    A subclass is a ``@dataclass(eq=False)`` whose fields are its arguments. Their annotations say what they may be
    (``temperature: PositiveFloat = 4.0``, see :mod:`ickd_pl.checks`) and are checked when it is built. A subclass with
    an ``__init__`` of its own keeps every argument in an attribute of the same name, where :meth:`spec` reads it.

    Attributes:
        weight: factor of the loss in the sum.
        needs_preact: ask both networks for :attr:`Features.preact`.
        needs_index: batches must contain the index of each training image.
        capturable: nothing in the loss is drawn or counted on the host, so that it can be part of a CUDA graph; numbers
            in attributes may change.
        needs_labels: the data module must have ``train_labels``, the labels of all training images.
        predicts: the method replaces how the student predicts. Its :meth:`build` returns a
            :class:`~ickd_pl.models.deployed.Head`, which turns the student's features into those of the network as it
            is deployed. The module applies it once a step and gives :meth:`loss` what it returns; its logits are the
            prediction in training, evaluation, export and when the student becomes a teacher. The cross entropy and
            other methods read the student's own features. A run has at most one such method.
        main_epoch: during ``fit`` the main epoch, from 1, an int64 tensor () on the device, which is changed in place:
            compiled and captured steps read it. None outside.
        pretrain_epochs: length of a first stage before the main epochs; 0 for a one-stage method.
        pretrain_lr: constant learning rate of the first stage; None leaves it to :meth:`first_stage_lr`.
    """

    needs_preact: ClassVar[bool] = False
    needs_index: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    capturable: ClassVar[bool] = True
    predicts: ClassVar[bool] = False
    main_epoch: Tensor | None = None
    weight: NonNegativeFloat
    pretrain_epochs: NonNegativeInt = 0
    pretrain_lr: PositiveFloat | None = None

    def __post_init__(self) -> None:
        self.check_arguments()

    def check_arguments(self) -> None:
        """Raise :class:`UserError` for the first attribute that is not what its annotation says."""
        for name, annotation in _annotations(type(self)).items():
            check_argument(self, name, getattr(self, name, None), annotation)

    @classmethod
    def name(cls) -> str:
        """The file's name, which is also the log key and the configuration's name: ``ickd`` for ``ICKD``."""
        return (
            cls.__module__.rpartition(".")[2] if cls.__module__.startswith(__package__ or "") else cls.__name__.lower()
        )

    def spec(self) -> dict[str, Any]:
        """Plain data that :func:`from_spec` turns into an equal strategy; this is what a checkpoint keeps."""
        cls = type(self)
        arguments = [p for p in inspect.signature(cls).parameters if p != "self"]
        return {
            "class_path": f"{cls.__module__}.{cls.__qualname__}",
            "init_args": {argument: getattr(self, argument) for argument in arguments},
        }

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        """The layers that the method reads as maps (C, H, W), by their names in messages: a network of tokens has none.

        Where one of them has another number of dimensions, the pair is refused before :meth:`check`.
        """
        return {}

    def vectors_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        """Likewise the layers that the method reads as vectors (D,)."""
        return {}

    def prepare(self, student: FeatureNet | HookedNet) -> None:
        """Change the student before anything else sees it; the keys and shapes of its state dict must stay.

        So every file of it is one of the network as ever. Random numbers drawn here depend on the run's seed alone.
        """

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        """Raise :class:`~ickd_pl.errors.IncompatiblePair` if the method cannot work on this pair."""

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module | None:
        """The part of the method that has tensors (trainable weights, memories), or None."""
        return None

    @abstractmethod
    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        """The unweighted loss of one batch, a scalar of at least float32.

        Args:
            student: features with gradient; of a method that :attr:`predicts`, those that its head makes of them.
            teacher: features without gradient, of the same images.
            batch: images, labels and indices.
            adapter: what :meth:`build` returned.
        """

    def weight_at(self, epoch: int | None) -> float:
        """The weight in a given epoch, for methods that warm up.

        Args:
            epoch: main epoch, from 1; None outside a fit, where the full weight counts.
        """
        return self.weight

    def first_stage_lr(self, student: str) -> float | None:
        """Learning rate of the first stage for a student of this name; None takes the recipe's."""
        return self.pretrain_lr

    def frozen_in_main(self, adapter: nn.Module | None) -> list[nn.Module]:
        """Parts of the adapter that the main stage neither trains nor decays and keeps in eval mode."""
        return []

    def pretrain_loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        """The loss of the first stage (unweighted, alone, no cross entropy)."""
        raise NotImplementedError(f"{type(self).__name__} has pretrain_epochs but no pretrain_loss")

    def pretrain_modules(self, student: nn.Module, adapter: nn.Module | None) -> list[nn.Module]:
        """The modules trained in the first stage; the rest of the student is frozen and in eval mode then."""
        raise NotImplementedError(f"{type(self).__name__} has pretrain_epochs but no pretrain_modules")


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    """Annotations of a method's attributes, without classes whose annotations exist only under TYPE_CHECKING."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, LossStrategy):
            with suppress(NameError):
                found.update(get_type_hints(base, include_extras=True))
    return found


def first_stage(owner: object, pretrain_epochs: object, pretrain_lr: object) -> None:
    """Raise :class:`UserError` for an invalid first stage; for methods written for 0.1, with an own ``__init__``."""
    whole_number(owner, 0, pretrain_epochs=pretrain_epochs)
    if pretrain_lr is not None:
        above_zero(owner, pretrain_lr=pretrain_lr)


def check_lists(owner: object, strategies: Any, milestones: Any) -> None:
    """Raise :class:`UserError` if the methods are not a list of methods, or the milestones are not increasing.

    The methods' arguments are checked again: a custom class may not check them, and attributes may have changed.
    """
    methods = list(strategies or []) if isinstance(strategies, list | tuple | type(None)) else [None]
    if not all(isinstance(strategy, LossStrategy | dict) for strategy in methods):
        raise UserError(
            f"{name_of(owner)}.strategies: expected a list of methods such as [ICKD(), KD()], got {strategies!r}"
        )
    for strategy in methods:
        if isinstance(strategy, LossStrategy):
            strategy.check_arguments()
    fits = isinstance(milestones, Sequence) and all(type(epoch) is int and epoch > 0 for epoch in milestones)
    if not fits or list(milestones) != sorted(set(milestones)):
        raise UserError(f"{name_of(owner)}.milestones: expected epochs from 1 in rising order, got {milestones!r}")


def unique_names(strategies: Sequence[LossStrategy]) -> list[str]:
    """Log and adapter keys: each method's name, with a number from its second use on."""
    names = [strategy.name() for strategy in strategies]
    counts = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [name if count == 1 else f"{name}_{count}" for name, count in zip(names, counts, strict=True)]


Loss = TypeVar("Loss", bound=Callable[..., Any])


def full_precision(function: Loss) -> Loss:
    """Decorator of a pure loss function: it runs without autocast, on half-precision tensors converted to float32.

    Converting the inputs alone is not enough: under autocast, float32 matrix products run in half precision again.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        device = next(_devices([*args, *kwargs.values()]), "cpu")
        with torch.autocast(device, enabled=False):
            return function(*map(_raised, args), **{name: _raised(value) for name, value in kwargs.items()})

    return wrapped  # type: ignore[return-value]


def _devices(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, Tensor):
            yield value.device.type
        elif isinstance(value, list | tuple):
            yield from _devices(value)


def _raised(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_raised, value))
    return at_least_float32(value) if isinstance(value, Tensor) and value.is_floating_point() else value


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; float32 and float64 are unchanged. Gram matrices and exponentials need it."""
    return x.float() if x.element_size() < 4 else x


def discover() -> dict[str, type[LossStrategy]]:
    """All methods, by file name. All files in ``ickd_pl/strategies`` are imported: a new one needs no registration."""
    return {cls.name(): cls for cls in classes_in("ickd_pl.strategies", LossStrategy).values()}


def _defined(path: str) -> type[LossStrategy] | None:
    """The class of a method, of those that are defined: a checkpoint must not be able to import code of its choice."""
    discover()
    package, _, name = path.rpartition(".")
    for cls in subclasses(LossStrategy):
        # A configuration may name the package in place of the file: ickd_pl.strategies.KD.
        inside = not package or f"{cls.__module__}.".startswith(f"{package}.")
        if path == f"{cls.__module__}.{cls.__qualname__}" or (cls.__name__ == name and inside):
            found: type[LossStrategy] = cls
            return found
    return None


def with_defaults(spec: dict[str, Any]) -> dict[str, Any]:
    """A method's settings with the defaults of the arguments that they do not name.

    So a run goes on whose record is older than an argument; such an argument's default is what the method did before.
    """
    cls, given = _defined(str(spec.get("class_path"))), spec.get("init_args") or {}
    if cls is None or not isinstance(given, dict):
        return spec
    accepted = inspect.signature(cls).parameters
    return {**spec, "init_args": {**{k: p.default for k, p in accepted.items() if p.default is not p.empty}, **given}}


def from_spec(spec: dict[str, Any]) -> LossStrategy:
    """Build a strategy from plain data: ``{"class_path": "KD" or a full path, "init_args": {...}}``.

    Raises:
        UserError: the class is unknown, or is not a LossStrategy.
    """
    path, arguments = spec.get("class_path"), spec.get("init_args") or {}
    if not isinstance(path, str) or not isinstance(arguments, dict):
        raise UserError(f"a method's settings: expected class_path and init_args, got {short(spec)}")
    cls = _defined(path)
    if cls is None:
        hint = near(path.rpartition(".")[2], [cls.__name__ for cls in subclasses(LossStrategy)])
        if "." in path:
            raise UserError(f"unknown method class {short(path)}: import the module that defines it first; {hint}")
        raise UserError(f"unknown method {short(path)}: {hint}")
    accepted = inspect.signature(cls).parameters
    for name, value in arguments.items():
        if name not in accepted and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            raise UserError(f"{cls.__name__}: unknown argument {short(name)}: {near(str(name), accepted)}")
        if not plain(value):
            raise UserError(f"{cls.__name__}.{name}: expected a number, a text or a list of them, got {short(value)}")
    return cls(**arguments)
