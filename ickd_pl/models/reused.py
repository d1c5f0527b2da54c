"""The head of a student that predicts by its teacher's last layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from ickd_pl.checks import whole_number
from ickd_pl.errors import UserError
from ickd_pl.models.base import average_pool, conv1x1, conv3x3
from ickd_pl.models.deployed import Head
from ickd_pl.models.features import Classifier, Features

# No map has more channels; a damaged file must not make torch allocate all memory.
_MOST_CHANNELS, _MOST_CLASSES = 4096, 10**6


class ReusedClassifier(Head):
    """A projector from the student's last stage to the teacher's last map, and the teacher's frozen last layer.

    The projector is a 1x1, a 3x3 and a 1x1 convolution without bias, each followed by batch norm and ReLU. Its output
    is ``final``, the mean of that over the map is ``pooled``. Of the teacher's layer it holds a copy in buffers: it is
    saved with the student, and neither trained nor decayed.

    Args:
        in_channels: of the student's last stage.
        out_channels: of the teacher's last map, C_t.
        factor: the convolutions between have C_t / factor channels.
        size: height and width of the teacher's last map; a larger map of the student is averaged to it first.
        num_classes: K.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, in_channels: int, out_channels: int, factor: int, size: list[int], num_classes: int) -> None:
        super().__init__()
        given = {"in_channels": in_channels, "out_channels": out_channels, "factor": factor}
        whole_number(self, 1, **given, num_classes=num_classes, **{f"size[{i}]": side for i, side in enumerate(size)})
        fits = max(in_channels, out_channels) <= _MOST_CHANNELS and num_classes <= _MOST_CLASSES and len(size) == 2
        if not fits or factor > out_channels:
            raise UserError(
                f"ReusedClassifier: expected up to {_MOST_CHANNELS} channels, a factor up to out_channels and a size "
                f"[height, width], got {in_channels} and {out_channels}, {factor}, {size}"
            )
        self._settings = {**given, "size": list(size), "num_classes": num_classes}
        middle = out_channels // factor
        self.size = (size[0], size[1])
        self.project = nn.Sequential(
            *(conv1x1(in_channels, middle), nn.BatchNorm2d(middle), nn.ReLU(inplace=True)),
            *(conv3x3(middle, middle), nn.BatchNorm2d(middle), nn.ReLU(inplace=True)),
            *(conv1x1(middle, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)),
        )
        self.register_buffer("weight", torch.zeros(num_classes, out_channels))
        self.register_buffer("bias", torch.zeros(num_classes))
        self._ready = False
        self.register_load_state_dict_post_hook(_now_ready)  # type: ignore[no-untyped-call]

    def settings(self) -> dict[str, Any]:
        return dict(self._settings)

    @property
    def ready(self) -> bool:
        return self._ready

    def take(self, teacher: Classifier | None) -> None:
        assert teacher is not None  # the method has checked it
        with torch.no_grad():
            self.weight.copy_(teacher.weight)
            self.bias.zero_() if teacher.bias is None else self.bias.copy_(teacher.bias)
        self._ready = True

    def last_layer(self) -> Classifier:
        return Classifier(self.weight, self.bias)

    def forward(self, features: Features) -> Features:
        x = features.stages[-1]
        size = (min(x.shape[2], self.size[0]), min(x.shape[3], self.size[1]))
        final = self.project(x if x.shape[2:] == size else adaptive_avg_pool2d(x, size))
        pooled, classifier = average_pool(final), self.last_layer()
        return replace(features, logits=classifier(pooled), final=final, pooled=pooled, classifier=classifier)


def _now_ready(head: ReusedClassifier, _: Any) -> None:
    head._ready = True
