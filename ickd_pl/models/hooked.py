"""Features of the user's own networks: a map of their module paths, and a wrapper that returns them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ickd_pl.errors import UserError, near
from ickd_pl.models.features import Classifier, Features


@dataclass(frozen=True)
class LayerMap:
    """Module paths of a network's features, for :class:`HookedNet`.

    A path is ``module.path`` (that module's output) or ``module.path:in`` (its input). If a module runs
    several times in one pass, the last run counts. For torchvision's resnet18::

        LayerMap(stem="relu", stages=("layer1", "layer2", "layer3", "layer4"), final="layer4", pooled="avgpool",
                 preact=("layer1.1.relu:in", "layer2.1.relu:in", "layer3.1.relu:in", "layer4.1.relu:in"))

    Attributes:
        stem: map after the first convolution.
        stages: stage ends, shallow to deep.
        final: map that enters the global pooling.
        pooled: vector that enters the classifier; (B, D, 1, 1) is flattened.
        preact: stage ends before their last ReLU, one for each stage; for methods with ``needs_preact``.
        classifier: the linear layer from ``pooled`` to the logits, for methods that apply it (SimKD, CAT-KD).

    Example:
        >>> LayerMap(stem="0", stages=("0", "2"), final="2", pooled="5:in").paths()
        ['0', '2', '5:in']
        >>> len(LayerMap(stem="0", stages=("1", "2"), final="2", pooled="3").paths())
        4
    """

    stem: str
    stages: tuple[str, ...]
    final: str
    pooled: str
    preact: tuple[str, ...] | None = None
    classifier: str | None = None

    def paths(self) -> list[str]:
        """All paths, without duplicates."""
        return list(dict.fromkeys([self.stem, *self.stages, self.final, self.pooled, *(self.preact or ())]))


class _Tap:
    """Hook that keeps the tensor at one path of a network while ``armed`` is set."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.armed = False
        self.value: Tensor | None = None
        self.version = 0

    def output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.armed:
            self._keep(output)

    def input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.armed:
            self._keep(args[0] if args else None)

    def _keep(self, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise UserError(f"layer '{self.path}': expected a tensor, got {type(value).__name__}")
        self.value, self.version = value, _version(value)

    def read(self) -> Tensor:
        if self.value is None:
            raise UserError(f"layer '{self.path}' did not run in the forward pass, so it gives no feature")
        if _version(self.value) != self.version:
            raise UserError(
                f"layer '{self.path}': the network overwrites this tensor in place; tap a later layer's input"
            )
        return self.value


def _version(value: Tensor) -> int:
    """Number of in-place writes to a tensor; not counted in inference mode."""
    return 0 if value.is_inference() else value._version  # private: torch Tensor._version


class HookedNet(nn.Module):
    """Wrapper that adds :meth:`features` to any classifier; ``forward`` returns the classifier's logits.

    In-place activations inside ``net`` are switched off, since they would overwrite tapped tensors.

    Args:
        net: returns logits, (B, 3, H, W) to (B, K). It is changed: hooks are added to its modules.
        layers: module paths of its features.

    Raises:
        UserError: for a path that ``net`` does not have.
    """

    def __init__(self, net: nn.Module, layers: LayerMap) -> None:
        super().__init__()
        if layers.preact is not None and len(layers.preact) != len(layers.stages):
            raise UserError(f"LayerMap: {len(layers.stages)} stages but {len(layers.preact)} preact layers")
        self.net = net
        self.layers = layers
        self._taps = {path: _Tap(path) for path in layers.paths()}
        modules = {name: module for name, module in net.named_modules() if name}
        for path in self._taps:
            name = path.removesuffix(":in")
            if name not in modules:
                raise UserError(f"no layer '{name}' in {type(net).__name__}: {near(name, modules)}")
        self._check_classifier(modules)
        for path, tap in self._taps.items():  # bound methods: a deepcopy of the network feeds the copy's taps
            module = modules[path.removesuffix(":in")]
            if path.endswith(":in"):
                module.register_forward_pre_hook(tap.input)
            else:
                module.register_forward_hook(tap.output)
        for module in modules.values():
            if vars(module).get("inplace") is True:
                vars(module)["inplace"] = False

    def _check_classifier(self, modules: dict[str, nn.Module]) -> None:
        path = self.layers.classifier
        if path is not None and path not in modules:
            raise UserError(f"no layer '{path}' in {type(self.net).__name__}: {near(path, modules)}")
        if path is not None and not isinstance(modules[path], nn.Linear):
            linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
            raise UserError(
                f"LayerMap.classifier: expected a linear layer, but '{path}' of {type(self.net).__name__} is "
                f"{type(modules[path]).__name__}: {f'the last one is {linear[-1]}' if linear else 'leave it out'}"
            )

    def last_linear(self) -> nn.Linear | None:
        """The layer at ``layers.classifier``; None without one."""
        layer = None if self.layers.classifier is None else self.net.get_submodule(self.layers.classifier)
        return layer if isinstance(layer, nn.Linear) else None

    def last_layer(self) -> Classifier | None:
        """The layer from the pooled vector to the logits; None without one."""
        return Classifier.of(self.last_linear())

    def taps(self) -> set[Callable[..., Any]]:
        """The hooks that this wrapper has added."""
        return {hook for tap in self._taps.values() for hook in (tap.input, tap.output)}

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.net(image)
        return logits

    def features(self, image: Tensor, preact: bool = False) -> Features:
        """One forward pass. No tensor is kept afterwards.

        Args:
            image: (B, 3, H, W), normalised.
            preact: also return the stage ends before their last ReLU; ``layers.preact`` must be set.
        """
        layers = self.layers
        if preact and layers.preact is None:
            raise UserError("features before the ReLU are needed: set preact in the LayerMap, one path per stage")
        try:
            for tap in self._taps.values():
                tap.armed = True
            logits = self(image)
            values = {path: tap.read() for path, tap in self._taps.items()}
        finally:
            for tap in self._taps.values():
                tap.armed, tap.value = False, None
        pooled = values[layers.pooled]
        return Features(
            logits=logits,
            stem=values[layers.stem],
            stages=tuple(values[path] for path in layers.stages),
            final=values[layers.final],
            pooled=pooled.flatten(1) if pooled.shape[2:] == (1, 1) else pooled,
            preact=tuple(values[path] for path in layers.preact or ()) if preact else None,
            classifier=self.last_layer(),
        )
