"""What the machine can do, what a step needs, and the teacher that all contestants read."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import common
from ickd_pl import Batch
from ladder_parts.images import MEAN, STD, random_split
from ladder_parts.turns import TURNS

# Channels and height of 3x3 convolutions as in the networks, batch 64.
SHAPES = ((64, 32), (128, 16), (256, 8))


def run(spec: dict[str, Any]) -> None:
    """Answer with the machine's name, its peak, the operations of a step of each method; write the teachers."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False
    TURNS.answer(
        {
            "name": _name(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "peak": {str(kind): _peak(kind, device, spec["seconds"]) for kind in (torch.float32, torch.bfloat16)},
            "gflop": {pair: _pair(pair, methods, Path(spec["weights"])) for pair, methods in spec["pairs"].items()},
        }
    )


def _name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"


@torch.no_grad()
def _peak(dtype: torch.dtype, device: str, seconds: float) -> float:
    """GFLOP/s of the fastest of the shapes, in the better layout of its weights and images."""
    best = 0.0
    for channels, side in SHAPES:
        operations = 2 * 64 * channels**2 * 9 * side**2
        for layout in (torch.contiguous_format, torch.channels_last):
            images = torch.randn(64, channels, side, side, device=device).to(dtype=dtype, memory_format=layout)
            layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(device, dtype).to(memory_format=layout)
            layer(images)
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                began = time.perf_counter()
                for _ in range(10):
                    layer(images)
                if device == "cuda":
                    torch.cuda.synchronize()
                best = max(best, 10 * operations / (time.perf_counter() - began) / 1e9)
    return best


def _pair(pair: str, methods: list[str], folder: Path) -> dict[str, float]:
    """Gigaflops of a training step for an image, by method; those of both networks and of the project's losses."""
    networks = common.model_settings("pairs", pair)
    pixels, labels = random_split("train", 64)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    image = (pixels.float() / 255 - mean) / std
    teacher = common.untrained_teacher(networks["teacher"], image)
    torch.save({"model": teacher.state_dict()}, folder / f"{networks['teacher']}.pth")
    found = {}
    for method in methods:
        module = common.build(pair, method, teacher, num_samples=1000)
        counter = FlopCounterMode(display=False)
        with counter:
            module.losses(Batch(image, labels, torch.arange(64)))[0].backward()  # type: ignore[no-untyped-call]
        found[method] = counter.get_total_flops() / 64 / 1e9
    return found
