"""The features that distillation methods read, with the same names for every architecture."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import linear


class Classifier(NamedTuple):
    """The linear layer that made a network's logits, as methods apply it to any vector.

    Of a student it holds the parameters themselves, so that they get a gradient; of a teacher they are frozen, and a
    gradient flows to the vector alone.

    Attributes:
        weight: (K, D).
        bias: (K,); None without one.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Class scores of vectors: (..., D) to (..., K)."""
        return linear(x, self.weight, self.bias)

    @classmethod
    def of(cls, layer: nn.Module | None) -> Classifier | None:
        """That of a linear layer; None of any other."""
        return cls(layer.weight, layer.bias) if isinstance(layer, nn.Linear) else None


@dataclass(frozen=True)
class Features:
    """Outputs of one forward pass that distillation methods use.

    Attributes:
        logits: class scores, shape (B, K).
        stem: map after the first convolution (RepDistiller's ``feat[0]``), shape (B, C, H, W).
        stages: maps at the stage ends (``feat[1:-1]``), shallow to deep, each (B, C, H, W).
        final: map that enters the global pooling, after its activation (``feat[-2]`` of ICKD's own code). Equals
            ``stages[-1]`` for resnet and vgg, but not for wrn, MobileNetV2 and ShuffleV2.
        pooled: vector that enters the classifier (``feat[-1]``), shape (B, D).
        preact: stage ends before their last ReLU, only if requested.
        classifier: the linear layer from ``pooled`` to ``logits``; None where the network does not say which it is.
    """

    logits: Tensor
    stem: Tensor
    stages: tuple[Tensor, ...]
    final: Tensor
    pooled: Tensor
    preact: tuple[Tensor, ...] | None = None
    classifier: Classifier | None = None


@dataclass(frozen=True)
class FeatureShapes:
    """Shapes of :class:`Features` for one image (no batch dimension), with the network's name for messages.

    ``classifier`` is (K, D).
    """

    name: str
    logits: tuple[int, ...]
    stem: tuple[int, ...]
    stages: tuple[tuple[int, ...], ...]
    final: tuple[int, ...]
    pooled: tuple[int, ...]
    preact: tuple[tuple[int, ...], ...] | None = None
    classifier: tuple[int, ...] | None = None

    def stage_ends(self, stem: bool = False) -> dict[str, tuple[int, ...]]:
        """The stages' shapes by their names in messages, shallow to deep; with the stem in front if wanted."""
        named = {f"stage {number}": shape for number, shape in enumerate(self.stages, start=1)}
        return {"the stem": self.stem, **named} if stem else named

    @classmethod
    def of(cls, name: str, features: Features) -> FeatureShapes:
        """Shapes of the features of a forward pass."""

        def shape(value: Any) -> Any:
            if value is None:
                return None
            if isinstance(value, tuple):
                return tuple(shape(item) for item in value)
            return tuple(value.shape[1:])

        maps = [field.name for field in fields(Features) if field.name != "classifier"]
        classifier = None if features.classifier is None else tuple(features.classifier.weight.shape)
        return cls(name, **{each: shape(getattr(features, each)) for each in maps}, classifier=classifier)
