"""Kernels of a step, and the share of its time in which the GPU is busy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
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
    found: Values = {"ms": wall, "longest": _longest(kernels if record.cuda else events, record.cuda, count)}
    if record.cuda:
        found |= {"kernels": len(kernels) // count, "busy_ms": round(busy, 3), "busy_share": round(busy / wall, 3)}
    return found


def _longest(events: Iterable[Any], cuda: bool, count: int) -> list[str]:
    """What took most time: microseconds of a step, how often, name."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        times[event.name].append(event.device_time if cuda else event.self_cpu_time_total)
    longest = sorted(times.items(), key=lambda item: -sum(item[1]))[:16]
    return [f"{sum(each) / count:.1f} us, {len(each) // count} x {name[:70]}" for name, each in longest]


def _events(record: Record, step: Callable[[], Any], count: int) -> EventList:
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if record.cuda else [])
    with profile(activities=activities) as profiler:
        for _ in range(count):
            step()
        wait_for(record.device)
    events: EventList = profiler.events()
    return events
