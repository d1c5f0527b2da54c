"""Fold the batch norms of a frozen network into the convolutions and linear layers before them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode  # private: torch TorchDispatchMode
from torch.utils._pytree import tree_leaves  # private: torch tree_leaves

from ickd_pl.models.base import FeatureNet
from ickd_pl.models.features import Features
from ickd_pl.models.hooked import HookedNet
from ickd_pl.seeding import generator

_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Largest difference of a feature, in units of its largest value and of the type's precision: rounding of many layers.
_ROUNDING = 2000


class _Readers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that read the output of each convolution or linear layer."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # keeps the tensors, so that no number is used twice
        self.counts: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in {id(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}:
            if value in self.outputs:
                self.counts[value] = self.counts.get(value, 0) + 1
        return func(*args, **(kwargs or {}))


def fold_batch_norms(
    net: FeatureNet | HookedNet, image_size: int, memory_format: torch.memory_format = torch.preserve_format
) -> FeatureNet | HookedNet | None:
    """A copy of a network in eval mode, in which batch norms are part of the layer before them.

    A batch norm is folded where the output of a convolution or linear layer is its only input, and nothing else reads
    that output: neither another layer nor :class:`Features`. What reads it is seen in one forward pass, so this works
    for any network. The network itself is not changed.

    Args:
        net: in eval mode and with its weights, float32 or float64.
        image_size: height and width of the images in pixels.
        memory_format: of the copy's weights.

    Returns:
        The copy; ``net`` itself if nothing can be folded or it cannot be copied; None if the copy fails on random
        images, or its features are not those of ``net``.
    """
    first = next(net.parameters())
    if first.dtype not in (torch.float32, torch.float64):
        return net  # in half precision the folded weights would be rounded to other weights
    draws = generator("fold", device=first.device)
    image = torch.randn(4, 3, image_size, image_size, generator=draws, device=first.device, dtype=first.dtype)
    try:
        folded = copy.deepcopy(net)
    except (RuntimeError, TypeError):
        return net
    with torch.no_grad(), torch.autocast(first.device.type, enabled=False), _no_tf32():
        expected = _features(net, image)
        try:
            pairs = _pairs(folded, image)
            for layer, norm in pairs:
                _fold(layer, norm)
            if not pairs:
                return net
            folded.to(memory_format=memory_format)
            return folded if _close(expected, _features(folded, image)) else None
        except Exception:  # code of the user's that works for the network, but not for a copy or another layout
            return None


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Real float32, whatever a run computes in: TF32's rounding of ten bits is larger than what is looked for."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _pairs(net: FeatureNet | HookedNet, image: Tensor) -> list[tuple[Any, Any]]:
    """Each layer with the batch norm that can be folded into it."""
    readers, inputs = _Readers(), {}
    runs: dict[nn.Module, int] = {}

    def after(module: nn.Module, args: Any, output: Any) -> None:
        runs[module] = runs.get(module, 0) + 1
        if isinstance(output, Tensor) and type(module) in _LINEAR:
            readers.outputs[id(output)] = (module, output)

    def before(module: nn.Module, args: Any) -> None:
        runs[module] = runs.get(module, 0) + 1
        inputs[module] = args[0] if args else None

    # Subclasses may do more than their names say.
    handles = [m.register_forward_hook(after) for m in net.modules() if type(m) in _LINEAR]
    handles += [m.register_forward_pre_hook(before) for m in net.modules() if type(m) in _NORMS]
    try:
        with readers:
            features = _features(net, image)
    finally:
        for handle in handles:
            handle.remove()
    kept = {id(tensor) for tensor in _tensors(features)}
    found = []
    for norm, given in inputs.items():
        layer, output = readers.outputs.get(id(given), (None, None))
        alone = readers.counts.get(id(given)) == 1 and id(given) not in kept
        if layer is not None and alone and runs[layer] == runs[norm] == 1 and _can_fold(layer, norm, output):
            found.append((layer, norm))
    return found


def _can_fold(layer: nn.Module, norm: Any, output: Any) -> bool:
    fits = output.dim() == 2 if isinstance(layer, nn.Linear) else True
    return fits and norm.running_mean is not None and norm.num_features == output.shape[1] and not norm.training


def _fold(layer: Any, norm: Any) -> None:
    """Change a layer so that it gives what its batch norm gave, and the batch norm so that it passes this on."""
    fuse: Any = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    given = (layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    w, b, mean, variance, scale, shift = (None if part is None else part.double() for part in given)
    weight, bias = fuse(w, b, mean, variance, norm.eps, scale, shift)
    layer.weight = nn.Parameter(weight.to(layer.weight), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=False)
    norm.__class__ = nn.Identity  # a new module would not have its hooks


def _features(net: FeatureNet | HookedNet, image: Tensor) -> Features:
    # All that the network can give, so that what is folded does not depend on who asks.
    return net.features(image, preact=not isinstance(net, HookedNet) or net.layers.preact is not None)


def _tensors(features: Features) -> Iterator[Tensor]:
    for field in fields(features):
        value = getattr(features, field.name)
        if field.name != "classifier":  # no output
            yield from [value] if isinstance(value, Tensor) else value or ()


def _close(one: Features, other: Features) -> bool:
    pairs = list(zip(_tensors(one), _tensors(other), strict=True))
    bounds = [_ROUNDING * torch.finfo(a.dtype).eps * a.abs().max() for a, _ in pairs]
    return all(bool((a - b).abs().max() <= bound) for (a, b), bound in zip(pairs, bounds, strict=True))
