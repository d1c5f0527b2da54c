"""A network that predicts by another head than its own last layer, as some methods leave their student."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import nn

from ickd_pl.checks import plain_arguments, short
from ickd_pl.errors import UserError, near
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.discovery import subclasses
from ickd_pl.models.features import Classifier, Features
from ickd_pl.models.hooked import HookedNet
from ickd_pl.models.registry import get_model
from ickd_pl.seeding import seeded


class Head(nn.Module, ABC):
    """From a network's features to those of the network as it is deployed: their logits are the prediction.

    A method that replaces how its student predicts returns one from ``build`` (see ``LossStrategy.predicts``). Its
    arguments are numbers, strings and lists of them, so that a file can name it without naming the method.
    """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The arguments with which an equal head is built."""

    @abstractmethod
    def forward(self, features: Features) -> Features:
        """Features with other logits, and with the vector and the map that they are made of."""

    def last_layer(self) -> Classifier | None:
        """The linear layer that makes the logits, if there is one."""
        return None

    @property
    def ready(self) -> bool:
        """Whether all weights are known; if not, :meth:`take` is called once the teacher's are read."""
        return True

    def take(self, teacher: Classifier | None) -> None:
        """Keep what the prediction needs of the teacher's last layer, in buffers."""

    def spec(self) -> dict[str, Any]:
        """Plain data from which :func:`head_from` builds an equal head; files keep it."""
        return {"class_path": type(self).__name__, "init_args": self.settings()}


def head_from(spec: object, where: str = "head") -> Head:
    """Build a head from plain data, which may be from a file: nothing is imported or called because it is named.

    Args:
        spec: ``{"class_path": a class's name, "init_args": {...}}``.
        where: it is from, for the message.

    Raises:
        UserError: it is something else, an unknown class or impossible arguments.
    """
    instead = "get the file again"
    if not isinstance(spec, Mapping) or type(spec.get("class_path")) is not str:
        raise UserError(f"{where}: expected class_path and init_args of a head, got {short(spec)}")
    known = {cls.__name__: cls for cls in subclasses(Head)}
    name = str(spec["class_path"])
    if name not in known:
        raise UserError(f"{where}: unknown head {short(name)}: import the module that defines it, {near(name, known)}")
    arguments = plain_arguments(known[name], spec.get("init_args"), where, instead)
    with seeded("head"):  # its weights are read afterwards
        head: Head = known[name](**arguments)
    return head


class DeployedNet(FeatureNet):
    """A network and the head by which it predicts: a classifier like any other, also as a teacher.

    Its features are the network's, except those that the head makes: see the head.

    Args:
        network: a registered name, or a network with ``features``, whose parts are shared.
        head: a head, or its :meth:`Head.spec`.
        num_classes: K, for a network by name.
    """

    def __init__(self, network: str | nn.Module, head: Head | dict[str, Any], num_classes: int = 100) -> None:
        super().__init__()
        net = get_model(network, num_classes) if isinstance(network, str) else network
        if not isinstance(net, FeatureNet | HookedNet):
            raise UserError(f"DeployedNet.network: expected a name or a network with features, got {short(network)}")
        self.net = net
        self.head = head if isinstance(head, Head) else head_from(head, "DeployedNet.head")

    def last_linear(self) -> None:
        """None: the layer is the head's."""
        return

    def last_layer(self) -> Classifier | None:
        return self.head.last_layer()

    def features(self, image: Any, preact: bool = False) -> Features:
        found: Features = self.head(self.net.features(image, preact))
        return found

    def feat_modules(self) -> list[nn.Module]:
        if not isinstance(self.net, FeatureNet):
            raise UserError("DeployedNet.feat_modules: its network does not list its modules")
        return self.net.feat_modules()
