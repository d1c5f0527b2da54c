"""Fused students of a pack: those of one architecture computed as a single network, so that many cost few launches.

``torch.vmap`` over the stacked weights turns their convolutions into grouped ones and their batch norms into one over
all channels, as in HFTA (Wang, Yang, Zheng, Pekhimenko, MLSys 2021). Weights are stacked within autograd, so each
student keeps its own parameters, and their gradients, optimizer state and checkpoints are those of a network alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.func import functional_call

from ickd_pl.models.base import FeatureNet
from ickd_pl.models.features import Classifier, Features
from ickd_pl.models.hooked import HookedNet

Student = FeatureNet | HookedNet


class _FeaturesOf(nn.Module):
    """A network whose ``forward`` returns the fields of its features: ``functional_call`` calls ``forward``."""

    def __init__(self, net: Student) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, preact: bool) -> dict[str, Any]:
        found = self.net.features(image, preact=preact)
        named = {field.name: getattr(found, field.name) for field in fields(Features)}
        if found.classifier is not None and found.classifier.bias is None:
            named["classifier"] = found.classifier[:1]  # None is no output of vmap
        return {name: value for name, value in named.items() if value is not None}


class FusedStudents:
    """Students of one architecture that are computed together.

    Args:
        students: with different weights; see :func:`alike`. Their parameters and buffers must stay the same objects.
    """

    def __init__(self, students: Sequence[Student]) -> None:
        self._nets = [_FeaturesOf(student) for student in students]
        self._parameters = _by_name([net.named_parameters() for net in self._nets])
        self._buffers = _by_name([net.named_buffers() for net in self._nets])

    def features(self, image: Tensor, preact: bool) -> list[Features]:
        """The features of each student, as its own forward pass in its mode gives them.

        Args:
            image: (B, 3, H, W), the same for all.
            preact: also return the stage ends before their last ReLU.
        """
        with torch.no_grad():
            buffers = {name: _stacked(own) for name, own in self._buffers.items()}
        found = self._run(buffers, image, preact)
        own = [buffer for name in buffers for buffer in self._buffers[name]]
        if own:
            with torch.no_grad():
                updated = [new for stacked in buffers.values() for new in stacked.unbind()]
                torch._foreach_copy_(own, updated)  # private: torch _foreach_copy_
        return found

    def _run(self, buffers: dict[str, Tensor], image: Tensor, preact: bool) -> list[Features]:
        """Update the stacked buffers in place."""
        parameters = {name: _stacked(own) for name, own in self._parameters.items()}

        def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor], image: Tensor) -> dict[str, Any]:
            found: dict[str, Any] = functional_call(self._nets[0], {**parameters, **buffers}, (image, preact))
            return found

        # The students' dimension is next to the channels, where grouped convolutions have it: no copy.
        found = torch.vmap(run, in_dims=(0, 0, None), out_dims=1)(parameters, buffers, image)
        each = {name: _unbound(value) for name, value in found.items()}
        if "classifier" in each:
            each["classifier"] = [Classifier(*own) for own in each["classifier"]]
        return [Features(**{name: values[i] for name, values in each.items()}) for i in range(len(self._nets))]

    @torch.no_grad()
    def fault(self, image: Tensor, preact: bool) -> str | None:
        """Why the students cannot be computed together; None if they can. Changes nothing.

        The features of the images are compared with those of each student alone, roughly: a network may do in Python
        what its weights and modules do not show.
        """
        with isolate_rng():
            try:
                buffers = {name: _stacked(own) for name, own in self._buffers.items()}
                together = self._run(buffers, image, preact)
            except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
                return " ".join(str(error).split())[:150]
            for position, (net, found) in enumerate(zip(self._nets, together, strict=True)):
                own = {name: tensors[position] for name, tensors in self._parameters.items()}
                own |= {name: tensors[position].clone() for name, tensors in self._buffers.items()}
                alone = functional_call(net, own, (image, preact))["logits"]
                if not float((found.logits - alone).norm()) <= 0.05 * float(alone.norm()):
                    return "its output is another one than that of each student alone"
        return None


def _by_name(each: Sequence[Iterable[tuple[str, Tensor]]]) -> dict[str, list[Tensor]]:
    named: list[Mapping[str, Tensor]] = [dict(own) for own in each]
    return {name: [own[name] for own in named] for name in named[0]}


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """(M, ...); in contrast to ``torch.stack``, weights in channels_last stay in it."""
    if tensors[0].dim() == 0:
        return torch.stack(list(tensors))
    return torch.cat(list(tensors)).view(len(tensors), *tensors[0].shape)


def _unbound(value: Any) -> list[Any]:
    """A stacked feature, or a tuple of them, per student."""
    if isinstance(value, tuple):
        return list(zip(*map(_unbound, value), strict=True))
    return list(value.unbind(1))


def alike(student: Student) -> Hashable:
    """What students must have in common to be computed together; :meth:`FusedStudents.fault` sees the rest."""
    net = student.net if isinstance(student, HookedNet) else student
    tensors = [*student.named_parameters(), *student.named_buffers()]
    return (
        *(type(student), type(net), repr(student), getattr(student, "layers", None)),
        tuple((name, t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for name, t in tensors),
        tuple(module.training for module in student.modules()),
    )


class Part(NamedTuple):
    """Members of a pack that are computed together, by position; ``students`` is None for one that is alone."""

    positions: list[int]
    students: FusedStudents | None


class Fusion:
    """Which members of a pack are computed together.

    Args:
        students: of the members.
        names: of the members, for the warning.
    """

    def __init__(self, students: Sequence[Student], names: Sequence[str]) -> None:
        self._students, self._names = students, names
        self._found: list[Hashable] = []
        self._keys: list[Hashable] = []
        self._parts: dict[tuple[int, ...], list[Part]] = {}
        self._warned: set[int] = set()

    def arrange(self, image_size: int, preact: Sequence[bool], context: AbstractContextManager[Any]) -> None:
        """Before training, and where modes or memory may have changed: find the students that are alike.

        Args:
            image_size: height and width of the images.
            preact: which members need the stage ends before their last ReLU.
            context: in which the trainer computes.
        """
        self._parts.clear()  # buffers may have been moved
        keys = [("alone", i) if _has_hooks(student) else alike(student) for i, student in enumerate(self._students)]
        if keys == self._found:
            return
        self._found, self._keys = keys, list(keys)
        with context:
            for part in self._split(range(len(keys))):
                if part.students is not None:
                    self._try(part, image_size, any(preact[i] for i in part.positions))

    def _try(self, part: Part, image_size: int, preact: bool) -> None:
        weight = next(self._students[part.positions[0]].parameters())
        # Different images without drawing them from the run's random state.
        image = (torch.arange(8.0 * 3 * image_size**2, device=weight.device) * 1.7).sin()
        image = image.to(weight.dtype).reshape(8, 3, image_size, image_size)
        fault = part.students and part.students.fault(image, preact)
        if fault is None:
            return
        for i in part.positions:
            self._keys[i] = ("alone", i)
        if not self._warned.issuperset(part.positions):
            self._warned.update(part.positions)
            named = ", ".join(self._names[i] for i in part.positions)
            warnings.warn(f"fused: {named} cannot be fused and are computed one by one: {fault}", stacklevel=2)

    def parts(self, positions: Sequence[int]) -> list[Part]:
        """The members at these positions, in parts that are computed together."""
        key = tuple(positions)
        if key not in self._parts:
            self._parts[key] = self._split(key)
        return self._parts[key]

    def _split(self, positions: Iterable[int]) -> list[Part]:
        groups: dict[Hashable, list[int]] = {}
        for i in positions:
            groups.setdefault(self._keys[i], []).append(i)
        return [
            Part(group, FusedStudents([self._students[i] for i in group]) if len(group) > 1 else None)
            for group in groups.values()
        ]


# private: torch Module._forward_hooks
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _has_hooks(student: Student) -> bool:
    """Whether somebody has attached hooks: they would see the first student alone, with all as one tensor."""
    own = student.taps() if isinstance(student, HookedNet) else set()
    hooks = [hook for module in student.modules() for kind in _HOOKS for hook in vars(module)[kind].values()]
    return any(hook not in own for hook in hooks)
