"""Build the parts of a module (frozen teacher, adapters, optimizer) and check them against the data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ickd_pl.checks import above_zero, between, name_of, true_or_false, whole_number, zero_or_more
from ickd_pl.data.batch import DataInfo
from ickd_pl.errors import UserError
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.build import check_classes, make_network, probe
from ickd_pl.models.deployed import Head
from ickd_pl.models.features import FeatureShapes
from ickd_pl.models.hooked import HookedNet, LayerMap
from ickd_pl.seeding import seeded
from ickd_pl.strategies import LossStrategy
from ickd_pl.strategies.base import check_lists
from ickd_pl.strategies.components.compatibility import check_forms
from ickd_pl.training.speed import SWITCHES
from ickd_pl.training.teacher import check_floor_value
from ickd_pl.training.teacher_images import check_normalization


class TrainableModule(Protocol):
    """What :func:`optimizer_of` needs of a :class:`ickd_pl.DistillationModule`."""

    def parameter_group(self) -> dict[str, Any]: ...

    def lr_factor(self) -> Callable[[int], float]: ...


class BuiltModule(Protocol):
    """What :func:`adapters_of` reads of a :class:`ickd_pl.DistillationModule`."""

    student: FeatureNet | HookedNet
    teacher: FeatureNet | HookedNet | None
    student_name: str
    teacher_name: str | None
    strategies: list[LossStrategy]
    keys: list[str]

    @property
    def needs_preact(self) -> bool: ...


def check_arguments(owner: object, arguments: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for arguments of a :class:`ickd_pl.DistillationModule` that are out of range."""
    given = {name: arguments[name] for name in ("num_classes", "image_size", "num_samples")}
    above_zero(owner, lr=arguments["lr"])
    between(owner, 0, 1, momentum=arguments["momentum"])
    zero_or_more(owner, weight_decay=arguments["weight_decay"], ce_weight=arguments["ce_weight"])
    whole_number(
        owner, 1, **{name: value for name, value in given.items() if name != "num_samples" or value is not None}
    )
    for name in SWITCHES:
        true_or_false(f"{name_of(owner)}.{name}", arguments[name])
    check_lists(owner, arguments["strategies"], arguments["milestones"])
    check_floor_value(arguments["teacher_floor"])
    check_normalization(arguments["teacher_normalization"])


def make_teacher(
    teacher: str | nn.Module | None,
    num_classes: int,
    layers: LayerMap | None,
    strategies: Sequence[LossStrategy],
    student: nn.Module,
) -> FeatureNet | HookedNet | None:
    """The frozen teacher; None without methods, because nothing would use it.

    A teacher that has parts of the student, or is the student, is a copy: it stays as it is now.

    Raises:
        UserError: there are methods but no teacher, or it shares parts with the student and cannot be copied.
    """
    if not strategies:
        return None
    if teacher is None:
        names = ", ".join(type(s).__name__ for s in strategies)
        raise UserError(f"{names} needs a teacher, but none is set: set model.teacher and model.teacher_weights")
    if isinstance(teacher, nn.Module) and share(teacher, student):
        try:
            teacher = copy.deepcopy(teacher)
        except (RuntimeError, TypeError) as error:
            raise UserError(
                "teacher and student share parts, and the teacher cannot be copied "
                f"({' '.join(str(error).split())[:100]}): give two networks"
            ) from error
    return make_network(teacher, num_classes, layers, "teacher").eval().requires_grad_(False)


def share(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have a module, or the memory of a parameter or buffer, in common."""
    return bool(set(map(id, one.modules())) & set(map(id, other.modules())) or _memory(one) & _memory(other))


def _memory(net: nn.Module) -> set[tuple[torch.device, int]]:
    tensors = [tensor for tensor in (*net.parameters(), *net.buffers()) if not is_lazy(tensor)]
    found = {(tensor.device, tensor.untyped_storage().data_ptr()) for tensor in tensors}
    return {(device, address) for device, address in found if address}  # an empty or meta tensor has none


def adapters_of(module: BuiltModule, image_size: int, data: DataInfo, seed: int) -> nn.ModuleDict:
    """Let the methods change the student, then build their trainable parts for both networks.

    Raises:
        UserError: two methods replace how the student predicts, or a network has another number of classes.
        IncompatiblePair: a method cannot work on this pair of networks.
    """
    names = [type(method).__name__ for method in module.strategies if method.predicts]
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} each replace how the student predicts: a run can have one of them")
    for position, method in enumerate(module.strategies):
        with seeded(seed, "prepare", method.name(), position):
            method.prepare(module.student)
    student, teacher = probe(module.student, module.student_name, image_size, module.needs_preact), None
    if module.teacher is not None:
        teacher = probe(module.teacher, str(module.teacher_name), image_size, module.needs_preact)
    check_classes(data.num_classes, student, teacher)
    methods = dict(zip(module.keys, module.strategies, strict=True))
    return make_adapters(methods, module.student, student, teacher, data, seed)


def make_adapters(
    methods: Mapping[str, LossStrategy],
    student: nn.Module,
    student_shapes: FeatureShapes,
    teacher_shapes: FeatureShapes | None,
    data: DataInfo,
    seed: int,
) -> nn.ModuleDict:
    """The trainable parts of the methods by key; methods that train nothing are left out.

    Args:
        methods: the methods by key, in the order of the run.
        student: the network whose parts a first stage may train.
        student_shapes: shapes of the student's features.
        teacher_shapes: shapes of the teacher's features; None without methods.
        data: what the methods may know about the data.
        seed: each part's initial weights depend on it, the method's name and its position.

    Raises:
        IncompatiblePair: a method cannot work on this pair of networks.
    """
    adapters = nn.ModuleDict()
    if teacher_shapes is None:
        return adapters
    for position, (key, method) in enumerate(methods.items()):
        check_forms(method, student_shapes, teacher_shapes)
        method.check(student_shapes, teacher_shapes)
        with seeded(seed, "adapter", method.name(), position):
            adapter = method.build(student_shapes, teacher_shapes, data)
        if method.predicts != isinstance(adapter, Head):
            raise TypeError(f"{type(method).__name__}: a method that predicts returns a Head from build(), others none")
        if adapter is not None:
            adapters[key] = adapter
        if method.pretrain_epochs:
            method.pretrain_modules(student, adapter)  # raise here rather than during the fit
    return adapters


def optimizer_of(modules: Sequence[TrainableModule]) -> dict[str, Any]:
    """One SGD for all modules, with a parameter group and a schedule per module, in the form Lightning expects."""
    optimizer = torch.optim.SGD([module.parameter_group() for module in modules])
    factors = [module.lr_factor() for module in modules]
    return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factors)}


def check_data(data: Any, num_classes: int, networks: Iterable[tuple[str, str]]) -> None:
    """Raise :class:`UserError` if a data module (or None) and the networks differ in the number of classes."""
    classes = getattr(data, "num_classes", num_classes)
    if classes != num_classes:
        names = ", ".join(f"{role} {name}" for role, name in networks)
        raise UserError(
            f"num_classes mismatch: data {classes}, networks {num_classes} ({names}): set num_classes to {classes}"
        )
