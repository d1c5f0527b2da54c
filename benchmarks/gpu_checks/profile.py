"""Kernels of a step, and the share of its time in which the GPU is busy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile

from common import wait_for
from gpu_checks.record import Record, Values
from gpu_checks.steps import Step
from gpu_checks.timing import timed

PAIRS = ("resnet20_resnet8", "resnet32x4_resnet8x4")


def run(record: Record) -> None:
    for pair in PAIRS[:1] if record.tiny else PAIRS:
        for method in ("ickd",) if record.tiny else ("ickd", "nst", "crd", "vanilla"):
            record.check("kernels", partial(_profiled, record, pair, method), {"pair": pair, "method": method})


def _profiled(record: Record, pair: str, method: str) -> Values:
    step, count = Step(record, pair, method), 1 if record.tiny else 5
    wall = timed(record, step, steps=5, warmup=3)["ms"]
    events = _events(record, step, count)
    kernels = [event for event in events if str(event.device_type).endswith("CUDA")]
    busy = sum(event.device_time for event in kernels) / count / 1e3
    column = "self_device_time_total" if record.cuda else "self_cpu_time_total"
    averages = events.key_averages()  # type: ignore[no-untyped-call]
    longest = sorted(averages, key=lambda event: -getattr(event, column))[:6]
    found: Values = {"ms": wall, "longest": [event.key[:60] for event in longest]}
    if record.cuda:
        found |= {"kernels": len(kernels) // count, "busy_ms": round(busy, 3), "busy_share": round(busy / wall, 3)}
    return found


def _events(record: Record, step: Callable[[], Any], count: int) -> EventList:
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if record.cuda else [])
    with profile(activities=activities) as profiler:
        for _ in range(count):
            step()
        wait_for(record.device)
    events: EventList = profiler.events()
    return events
