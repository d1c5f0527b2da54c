"""Read a network's weights from any of the formats in use, without ever running code from the file.

A path may be ``FILE#ENTRY``: the weights under that name, for a file in which the network's weights are several times.
"""

from __future__ import annotations

import argparse
import json
import pickle
import warnings
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ickd_pl.errors import UserError
from ickd_pl.models import get_model
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.deployed import DeployedNet
from ickd_pl.models.hooked import HookedNet
from ickd_pl.seeding import seeded
from ickd_pl.weights.bounds import check_archive, check_header, check_nesting
from ickd_pl.weights.numpy_values import STAND_INS, NotPlain, ReadOver
from ickd_pl.weights.recognise import network_of
from ickd_pl.weights.search import WHOLE, Entry, StateDict, choose, entries, shown, weights_in
from ickd_pl.weights.stated import as_deployed, stated_head

__all__ = ["load_teacher", "load_weights", "read_file", "read_state_dict", "split_entry", "weights_file"]

OF_CHECKPOINT = "state_dict.student"
"""The student's entry in a checkpoint of this project."""


def load_teacher(name: str, path: str | Path, num_classes: int = 100) -> FeatureNet:
    """A trained network in eval mode, frozen.

    Args:
        name: the network's name, such as ``resnet32x4``.
        path: RepDistiller's ``.pth`` (new or old format), a checkpoint of this project (its student counts),
            ``.safetensors``, or any file of torch's that holds the network's weights, however it is wrapped.
            ``FILE#ENTRY`` chooses, where they are in it several times.
        num_classes: classes the file's classifier must have.

    Raises:
        UserError: the name is unknown, or the file is missing, damaged, unsafe, or of another network. The message
            has the file's path.
    """
    with seeded("load_teacher"):
        net = get_model(name, num_classes)
    load_weights(net, path, name)
    return net.eval().requires_grad_(False)


def load_weights(net: nn.Module, path: str | Path, name: str) -> None:
    """Read a file into a network; every key and shape must agree, or nothing is changed.

    The weights may be anywhere in the file's dictionaries, behind any prefix of their keys (see
    :mod:`ickd_pl.weights.search`).

    Args:
        net: the network to fill.
        path: see :func:`load_teacher`.
        name: the network's name, for messages.

    Raises:
        UserError: with the path, the network's name, the first keys that differ, and the likely cause; or with the
            names of the entries, where several differ; or the file's student predicts by a head that ``net`` lacks.
    """
    net = net.net if isinstance(net, HookedNet) else net
    file, named = split_entry(path)
    content = read_file(file)
    head = stated_head(file, content)
    if head is not None and head.adapter and isinstance(net, DeployedNet):
        content = as_deployed(content, head.adapter)
    elif head is not None and named is None and not isinstance(net, DeployedNet):
        layer = net.last_layer() if isinstance(net, FeatureNet) else None
        classes = "" if layer is None else f", num_classes: {len(layer.weight)}"
        raise UserError(
            f"{path} holds a student that predicts by another head than the last layer of {name}: read it with "
            "ickd_pl.load_student; as a teacher give that in Python, or on the command line --model.teacher "
            f"'{{class_path: {DeployedNet.__module__}.DeployedNet, "
            f"init_args: {{network: {name}{classes}, head: {json.dumps(head.spec)}}}}}'"
        )
    own = {key: value for key, value in net.state_dict().items() if isinstance(value, Tensor)}
    found = entries(content, own, named)
    if not found:
        _no_weights(file, content)
    if not found[0].fits:
        _does_not_fit(path, name, own, found[0])
    entry = choose(found, name, file, named)
    _check_values(path, entry.tensors, own)
    net.load_state_dict({**net.state_dict(), **entry.tensors})
    if not (entry.is_plain or entry.name == OF_CHECKPOINT):
        from pytorch_lightning.utilities import rank_zero_info  # slow, and rarely needed

        rank_zero_info(f"weights of {name}: {shown(entry.name)} in {file}")


def _check_values(path: str | Path, state: StateDict, own: StateDict) -> None:
    strange = [key for key, value in state.items() if not _is_plain(value, own[key])]
    if strange:
        value = state[strange[0]]
        raise UserError(
            f"{path} holds {strange[0]} as {value.dtype}, {value.layout}, on {value.device}: expected plain "
            f"numbers, {own[strange[0]].dtype}; save the network's state_dict as it is trained"
        )
    infinite = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if infinite:
        raise UserError(f"{path} holds NaN or infinite weights ({infinite[0]}): its training failed; take another file")
    negative = [key for key, value in state.items() if key.endswith("running_var") and bool((value < 0).any())]
    if negative:
        raise UserError(f"{path} holds negative variances ({negative[0]}), which give NaN: take another file")


def _is_plain(value: Tensor, own: Tensor) -> bool:
    """Whether a tensor can replace the network's: dense, with data, and both real, complex or integer."""
    dense = value.layout == torch.strided and value.device.type != "meta"
    return dense and (value.is_floating_point(), value.is_complex()) == (own.is_floating_point(), own.is_complex())


def _does_not_fit(path: str | Path, name: str, own: StateDict, found: Entry) -> NoReturn:
    missing, unexpected, state = found.missing, list(found.unexpected), found.state
    clash = [f"{k}: {name} has {tuple(own[k].shape)}, the file {tuple(state[k].shape)}" for k in found.clash]
    details = [
        f"{len(keys)} {what} ({', '.join(map(shown, keys[:3]))}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing keys", missing), ("unexpected keys", unexpected), ("other shapes", clash))
        if keys
    ]
    classifier_only = (
        0 < len(clash) <= 2
        and not missing
        and not unexpected
        and all(own[key].shape[1:] == state[key].shape[1:] for key in found.clash)
    )
    known = None if classifier_only else network_of(state)
    other = f"another network, {known}" if known not in (None, name) else "another network"
    cause = (
        "likely cause: it was trained for another number of classes"
        if classifier_only
        else f"likely cause: it is the file of {other}; give the name of the network that was trained"
    )
    raise UserError(f"{path} does not fit {name}: {'; '.join(details)}; {cause}")


def read_state_dict(path: str | Path) -> StateDict:
    """The largest set of weights in a file, of a checkpoint of this project the student; without the keys' prefix.

    Raises:
        UserError: the file is missing, damaged, unsafe, or holds no weights.
    """
    file, _ = split_entry(path)
    content = read_file(file)
    return weights_in(content) or _no_weights(file, content)


def _no_weights(path: Path, content: dict[str, Any]) -> NoReturn:
    what = (
        (shown(str(key)), "no tensor" if isinstance(v, ReadOver) else type(v).__name__) for key, v in content.items()
    )
    kinds = ", ".join(f"{key} ({kind})" for key, kind in islice(what, 5)) or "nothing"
    raise UserError(f"{path} holds no network weights: expected a dict of tensors, at any depth; it has {kinds}")


def split_entry(path: str | Path) -> tuple[Path, str | None]:
    """The file and the entry of ``FILE#ENTRY``; None without one. An existing file may have a ``#`` in its own name."""
    text = str(path)
    if "#" not in text or Path(text).is_file():
        return Path(text), None
    ends = [position for position, letter in enumerate(text) if letter == "#"]
    end = next((position for position in reversed(ends) if Path(text[:position]).is_file()), ends[-1])
    return Path(text[:end]), text[end + 1 :] or WHOLE


def weights_file(path: str | Path) -> Path:
    """The file of ``FILE`` or ``FILE#ENTRY``."""
    return split_entry(path)[0]


def read_file(path: str | Path) -> dict[str, Any]:
    """A weights file's dictionary, read without running anything in it, within seconds and bounded memory.

    Raises:
        UserError: the file is missing, empty, damaged, needs code to be run, or unpacks to more than its size.
    """
    path = Path(path)
    if not path.is_file():
        kind = "does not exist"
        if path.exists():
            kind = "is a folder, not a file" if path.is_dir() else "is a pipe or a device, not a file"
        advice = "give the path of a .pth, .ckpt or .safetensors file; `ickd teachers train NETWORK` makes one"
        raise UserError(f"weights file {path} {kind}: {advice}")
    if path.stat().st_size == 0:
        raise UserError(f"weights file {path} is empty: delete it and get it again")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            check_header(path)
            return dict(load_file(path))
        check_archive(path)
        # RepDistiller's *_last.pth also hold the run's arguments, an argparse.Namespace: plain data, allowed by name.
        with torch.serialization.safe_globals([argparse.Namespace, *STAND_INS]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol; errors are reported below, in one line
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # private: torch message "Weights only load failed"
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error).upper():
            raise UserError(
                f"weights file {path} is refused: it wants to run code when it is read, which weights never need. "
                "Get it from another source, or save its state_dict alone"
            ) from None
        raise UserError(f"weights file {path} is damaged or not a weights file: get it again") from None
    except UserError:
        raise
    except NotPlain as error:
        raise UserError(f"weights file {path} is refused: it holds {error}; save its state_dict alone") from None
    except Exception as error:  # torch, zipfile, pickletools and safetensors each raise their own types
        raise UserError(
            f"weights file {path} is damaged or not a weights file ({type(error).__name__}): get it again"
        ) from error
    if isinstance(content, list | tuple):  # several networks' weights, chosen by their number
        content = {str(position): value for position, value in enumerate(content)}
    if not isinstance(content, dict):
        raise UserError(f"weights file {path} holds a {type(content).__name__}; expected a dictionary of weights")
    check_nesting(path, content)
    return content
