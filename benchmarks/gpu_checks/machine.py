"""What the card can do: large products, copies, launches of small kernels, and the convolutions of the networks."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from gpu_checks.record import Record, Values
from gpu_checks.steps import use_float32
from gpu_checks.timing import timed, waits_per_call


def run(record: Record) -> None:
    for dtype, mode in ((torch.float32, "strict"), (torch.float32, "tf32"), (torch.bfloat16, "tf32")):
        record.check("product", partial(_product, record, dtype, mode), {"dtype": dtype, "float32": mode})
    record.check("copy", partial(_copy, record))
    record.check("launch", partial(_launch, record))
    for channels, side in ((32, 8),) if record.tiny else ((32, 32), (256, 8)):
        for dtype in (torch.float32, torch.bfloat16):
            for layout in (torch.contiguous_format, torch.channels_last):
                settings = {"channels": channels, "side": side, "dtype": dtype, "layout": layout}
                part = partial(_convolution, record, channels, side, dtype, layout)
                record.check("convolution 3x3", part, settings)
    # What later checks of host waits stand on.
    bounds = {"missed": 0, "waits": 1}
    record.check("one host wait is counted as one", partial(_planted_wait, record), {}, bounds, needs_cuda=True)


def _product(record: Record, dtype: torch.dtype, mode: str) -> Values:
    use_float32(mode)
    size = 256 if record.tiny else 8192
    a, b = (torch.randn(size, size, device=record.device).to(dtype) for _ in range(2))
    found = timed(record, lambda: a @ b, steps=10, warmup=2)
    return {"tflops": round(2 * size**3 / found["ms"] / 1e9, 2)}


def _copy(record: Record) -> Values:
    source = torch.zeros(1 << (20 if record.tiny else 29), device=record.device)
    target = torch.empty_like(source)
    found = timed(record, lambda: target.copy_(source), steps=5, warmup=1)
    return {"GB_per_s": round(2 * source.numel() * source.element_size() / found["ms"] / 1e6, 1)}


def _launch(record: Record) -> Values:
    one = torch.zeros(1, device=record.device)
    return {"us": round(1e3 * timed(record, lambda: one.add_(1), steps=5000, warmup=100)["ms"], 2)}


def _convolution(record: Record, channels: int, side: int, dtype: torch.dtype, layout: torch.memory_format) -> Values:
    images = torch.randn(64, channels, side, side, device=record.device).to(dtype=dtype, memory_format=layout)
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    layer.to(record.device, dtype).to(memory_format=layout)
    with torch.no_grad():
        found = timed(record, lambda: layer(images), steps=50, warmup=5)
    operations = 2 * 64 * channels**2 * 9 * side**2
    return {"us": round(1e3 * found["ms"], 1), "tflops": round(operations / found["ms"] / 1e9, 2)}


def _planted_wait(record: Record) -> Values:
    value = torch.zeros((), device=record.device)
    found = waits_per_call(value.item, 5)
    return found | {"missed": max(0, 1 - found["waits"])}
