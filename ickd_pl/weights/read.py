"""Read a network's weights from any of the formats in use, without ever running code from the file."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ickd_pl.errors import UserError
from ickd_pl.models import get_model
from ickd_pl.models.base import FeatureNet
from ickd_pl.seeding import seeded
from ickd_pl.weights.recognise import network_of

StateDict = dict[str, Tensor]


def load_teacher(name: str, path: str | Path, num_classes: int = 100) -> FeatureNet:
    """A trained network in eval mode, frozen.

    Args:
        name: the network's name, such as ``resnet32x4``.
        path: RepDistiller's ``.pth`` (new or old format), a checkpoint of this project, ``.safetensors``, or a bare
            state dict.
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

    Args:
        net: the network to fill.
        path: see :func:`load_teacher`.
        name: the network's name, for messages.

    Raises:
        UserError: with the path, the network's name, the first keys that differ, and the likely cause.
    """
    state = read_state_dict(path)
    own = net.state_dict()
    # Files of old torch versions have no num_batches_tracked, and evaluation does not use it.
    state = {**{k: v for k, v in own.items() if k.endswith("num_batches_tracked") and k not in state}, **state}
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    clash = [
        f"{k}: {name} has {tuple(own[k].shape)}, the file {tuple(state[k].shape)}"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    if not (missing or unexpected or clash):
        strange = [key for key, value in state.items() if not _is_plain(value, own[key])]
        if strange:
            value = state[strange[0]]
            raise UserError(
                f"{path} holds {strange[0]} as {value.dtype}, {value.layout}, on {value.device}: expected plain "
                f"numbers, {own[strange[0]].dtype}; save the network's state_dict as it is trained"
            )
        infinite = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
        if infinite:
            raise UserError(
                f"{path} holds NaN or infinite weights ({infinite[0]}): its training failed; take another file"
            )
        net.load_state_dict(state)
        return
    details = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing keys", missing), ("unexpected keys", unexpected), ("other shapes", clash))
        if keys
    ]
    others = [key.partition(":")[0] for key in clash]
    classifier_only = (
        0 < len(clash) <= 2
        and not missing
        and not unexpected
        and all(own[key].shape[:1] != state[key].shape[:1] for key in others)
    )
    known = None if classifier_only else network_of(state)
    other = f"another network, {known}" if known not in (None, name) else "another network"
    cause = (
        "likely cause: it was trained for another number of classes"
        if classifier_only
        else f"likely cause: it is the file of {other}; give the name of the network that was trained"
    )
    raise UserError(f"{path} does not fit {name}: {'; '.join(details)}; {cause}")


def _is_plain(value: Tensor, own: Tensor) -> bool:
    """Whether a tensor can replace the network's: dense, with data, and both real, complex or integer."""
    dense = value.layout == torch.strided and value.device.type != "meta"
    return dense and (value.is_floating_point(), value.is_complex()) == (own.is_floating_point(), own.is_complex())


def read_state_dict(path: str | Path) -> StateDict:
    """The network's tensors in a file, with prefixes such as ``module.`` and ``student.`` taken off.

    Raises:
        UserError: the file is missing, damaged, unsafe, or holds no weights.
    """
    content: Any = read_file(path)
    name = next((name for name in ("state_dict", "model") if isinstance(content.get(name), dict)), None)
    # Keys that are not strings fit no network, but must not fail before the message that says so.
    content = {str(key): value for key, value in (content[name] if name else content).items()}
    # A checkpoint of this project: the student's part, without adapters.
    if name == "state_dict" and any(k.startswith("student.") for k in content):
        content = {k: v for k, v in content.items() if k.startswith("student.")}
    if not content or not all(isinstance(v, Tensor) for v in content.values()):
        kinds = ", ".join(list(content)[:5]) or "nothing"
        raise UserError(
            f"{path} holds no network weights: expected a state dict, or one under 'model' or 'state_dict'; "
            f"it has {kinds}"
        )
    for prefix in ("student.", "module.", "model.", "module."):
        if all(k.startswith(prefix) for k in content):
            content = {k[len(prefix) :]: v for k, v in content.items()}
    return dict(content)


def read_file(path: str | Path) -> dict[str, Any]:
    """A weights file's dictionary, read without running anything in it.

    Raises:
        UserError: the file is missing, empty, damaged, or needs code to be run.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UserError(f"weights file {path} {kind}: give the path of a .pth, .ckpt or .safetensors file")
    if path.stat().st_size == 0:
        raise UserError(f"weights file {path} is empty: delete it and get it again")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        _check_sums(path)
        # RepDistiller's *_last.pth also hold the run's arguments, an argparse.Namespace: plain data, allowed by name.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
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
    except Exception as error:  # torch, zipfile and safetensors each raise their own types
        raise UserError(
            f"weights file {path} is damaged or not a weights file ({type(error).__name__}): get it again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"weights file {path} holds a {type(content).__name__}; expected a dictionary of weights")
    return content


def _check_sums(path: Path) -> None:
    """Compare the checksums of the zip-based format: torch does not, and a flipped bit would read as another number."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise UserError(f"weights file {path} is damaged (checksum of {bad}): get it again")
