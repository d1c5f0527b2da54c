"""What a result depends on, as hashes: the code that trains, the data, the teacher."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ickd_pl.version import __version__

# Files of the package that take part in training. The command line, reading, export and the report do not.
_TRAINING = (
    "accounting.py",
    "adapters.py",
    "arguments.py",
    "class_table.py",
    "features.py",
    "module.py",
    "networks.py",
    "pairs.py",
    "seeding.py",
    "stages.py",
    "benchmark/pack.py",
    "data",
    "models",
    "strategies",
)


@cache
def code_hash() -> str:
    """SHA-256 over the package's files that take part in training, by name and content."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for place in _TRAINING:
        path = root / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def data_hash(data: Any) -> str:
    """SHA-256 over the images and labels that a run trains on and is evaluated on, in their order."""
    digest = hashlib.sha256()
    for split in ("train", data.eval_split, "test"):
        images, labels = data._part(split)
        _update(digest, ((f"{split} image", images), (f"{split} label", labels)))
    return digest.hexdigest()


def network_hash(net: nn.Module) -> str:
    """SHA-256 over a network's weights and buffers by name, whatever file they came from."""
    digest = hashlib.sha256()
    _update(digest, sorted(net.state_dict().items()))
    return digest.hexdigest()


def _update(digest: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in tensors:
        whole = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(whole.shape)} {whole.dtype}".encode())
        digest.update(whole.reshape(-1).view(torch.uint8).numpy())


def versions() -> dict[str, str]:
    """Of everything that moves numbers."""
    return {
        "ickd_pl": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "torchvision", "pytorch-lightning", "torchmetrics")},
    }


def device_name(device: torch.device) -> str:
    """The device a run was on, as a person would name it."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
