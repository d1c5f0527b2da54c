"""The features that distillation methods read, with the same names for every architecture."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor


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
    """

    logits: Tensor
    stem: Tensor
    stages: tuple[Tensor, ...]
    final: Tensor
    pooled: Tensor
    preact: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class FeatureShapes:
    """Shapes of :class:`Features` for one image (no batch dimension), with the network's name for messages."""

    name: str
    logits: tuple[int, ...]
    stem: tuple[int, ...]
    stages: tuple[tuple[int, ...], ...]
    final: tuple[int, ...]
    pooled: tuple[int, ...]
    preact: tuple[tuple[int, ...], ...] | None = None

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

        return cls(name, **{field.name: shape(getattr(features, field.name)) for field in fields(Features)})
