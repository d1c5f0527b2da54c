"""What several methods need to compare two networks: sizes, checks with clear messages, the adapter's type."""

from __future__ import annotations

from math import prod
from typing import Protocol, TypeVar

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from ickd_pl.errors import IncompatiblePair, UserError
from ickd_pl.models.features import FeatureShapes

M = TypeVar("M", bound=nn.Module)


def match_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Bring two maps (B, C, H, W) to one size: the larger is averaged (adaptive pooling) to the size of the smaller."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return average_to(a, size), average_to(b, size)


def average_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (B, C, H, W) averaged (adaptive pooling) to a height and width."""
    if x.shape[2:] == size:
        return x
    if x.shape[2] % size[0] or x.shape[3] % size[1]:
        return adaptive_avg_pool2d(x, size)
    # The same means, with a gradient that is deterministic on CUDA, too.
    return avg_pool2d(x, (x.shape[2] // size[0], x.shape[3] // size[1]))


def shape_text(*shapes: tuple[int, ...]) -> str:
    """Shapes as a person writes them: ``16x32x32, 32x16x16``."""
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


def incompatible(method: object, student: FeatureShapes, teacher: FeatureShapes, why: str) -> IncompatiblePair:
    """The error for a pair that a method cannot work on; ``why`` names the shapes that clash."""
    return IncompatiblePair(
        f"{type(method).__name__} cannot work on student {student.name} and teacher {teacher.name}: {why}"
    )


class ReadsLayers(Protocol):
    """A method that says which layers it reads as maps or vectors."""

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]: ...

    def vectors_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]: ...


def check_forms(method: ReadsLayers, student: FeatureShapes, teacher: FeatureShapes) -> None:
    """Raise where a layer is not the map or the vector that the method reads, such as the tokens of a transformer.

    Raises:
        IncompatiblePair: with the first such layer.
    """
    for net in (student, teacher):
        wrong = {f"{name} as a map (C, H, W)": s for name, s in method.maps_of(net).items() if len(s) != 3}
        # A vector may have further dimensions of size 1.
        wrong |= {
            f"{name} as a vector (D)": s for name, s in method.vectors_of(net).items() if prod(s[1:]) != 1 or not s
        }
        for layer, shape in wrong.items():
            raise incompatible(method, student, teacher, f"it reads {layer}, but {net.name} gives {shape_text(shape)}")


def check_stage_count(method: object, student: FeatureShapes, teacher: FeatureShapes) -> None:
    """Raise where the networks have different numbers of stages; RepDistiller silently drops the extra ones.

    Raises:
        IncompatiblePair: with both lists of shapes and the first stage that has no partner.
    """
    n_s, n_t = len(student.stages), len(teacher.stages)
    if n_s == n_t:
        return
    longer = student if n_s > n_t else teacher
    why = (
        f"{n_s} stages ({shape_text(*student.stages)}) against {n_t} ({shape_text(*teacher.stages)}); "
        f"stage {min(n_s, n_t) + 1} of {longer.name} has no partner"
    )
    raise incompatible(method, student, teacher, why)


def check_classifier(method: object, student: FeatureShapes, teacher: FeatureShapes, *needed: FeatureShapes) -> None:
    """Raise where a method applies the last layer of a network that does not say which it is, or has another input.

    Raises:
        IncompatiblePair: with the first such network of ``needed``.
    """
    for net in needed:
        if net.classifier is None:
            why = (
                f"it applies the last layer of {net.name}, which does not say which that is: set classifier in its "
                "LayerMap, or classifier_path in its class, to the linear layer that makes the logits"
            )
            raise incompatible(method, student, teacher, why)
        read, channels = net.classifier[1], net.final[0]
        if read != channels:
            why = f"the last layer of {net.name} reads {read} numbers, but its map has {channels} channels"
            raise incompatible(method, student, teacher, why)


def check_channels(
    method: object,
    student: FeatureShapes,
    teacher: FeatureShapes,
    pairs: list[tuple[str, tuple[int, ...], tuple[int, ...]]],
) -> None:
    """Raise where two maps that belong together differ in channels.

    Args:
        method: for the message.
        student: for the message.
        teacher: for the message.
        pairs: name of the layer, the student's shape and the teacher's, shallow to deep.

    Raises:
        IncompatiblePair: with the first layer that differs.
    """
    for layer, s, t in pairs:
        if s[0] != t[0]:
            why = f"channel counts must agree, but {layer} is {shape_text(s)} against {shape_text(t)}"
            raise incompatible(method, student, teacher, why)


def expect(method: object, adapter: nn.Module | None, kind: type[M]) -> M:
    """The adapter of a method under its own type.

    Raises:
        RuntimeError: it is not what the method's ``build`` returns.
    """
    if not isinstance(adapter, kind):
        name = type(adapter).__name__
        raise RuntimeError(f"{type(method).__name__} needs the {kind.__name__} that its build() returned, got {name}")
    return adapter


def feature_modules(student: nn.Module) -> list[nn.Module]:
    """The layers of a network up to its last stage, as the network itself lists them; two-stage methods train them.

    Raises:
        UserError: the network does not list them.
    """
    listed = getattr(student, "feat_modules", None)
    if listed is None:
        raise UserError(
            f"{type(student).__name__} has no feat_modules(): give it a method that lists the modules up to its last "
            "stage, which a two-stage method trains first"
        )
    modules: list[nn.Module] = listed()
    return modules
