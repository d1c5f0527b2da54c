"""How a step is timed, and where it makes the host wait for the device."""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common import wait_for
from gpu_checks.record import Record, Values


def timed(
    record: Record,
    step: Callable[[], Any],
    steps: int | None = None,
    rounds: int | None = None,
    warmup: int | None = None,
) -> Values:
    """Milliseconds of a step: the median round's mean, the fastest and the slowest round's; the first one's seconds.

    On a GPU also the peak memory in MiB, of everything that the process holds.

    Args:
        record: gives the device, and numbers where they are None.
        step: what is timed.
        steps: in a round.
        rounds: of which the median counts.
        warmup: steps before the first round, beside the very first.
    """
    steps, rounds = (1, 1) if record.tiny else (steps or record.steps, rounds or record.rounds)
    warmup = 0 if record.tiny else record.warmup if warmup is None else warmup
    if record.cuda:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    step()
    wait_for(record.device)
    first = time.perf_counter() - began
    for _ in range(warmup):
        step()
    wait_for(record.device)
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(steps):
            step()
        wait_for(record.device)
        found.append(1e3 * (time.perf_counter() - began) / steps)
    values = {**spread(found), "first_s": round(first, 2)}
    return values | ({"peak_MiB": torch.cuda.max_memory_allocated() >> 20} if record.cuda else {})


def spread(milliseconds: list[float]) -> Values:
    """The median round, the fastest and the slowest."""
    middle = statistics.median(milliseconds)
    return {"ms": round(middle, 4), "fastest": round(min(milliseconds), 4), "slowest": round(max(milliseconds), 4)}


def against(baseline: Values, own: Values) -> Values:
    """``own`` with its speedup over the baseline, where there is one."""
    return own | ({"speedup": round(baseline["ms"] / own["ms"], 3)} if baseline else {})


@contextmanager
def host_waits() -> Iterator[Counter[str]]:
    """Count where the host waits for the GPU, by file and line, as CUDA's debug mode reports it."""
    found: Counter[str] = Counter()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    for warning in caught:
        if "synchroniz" in str(warning.message):
            path = Path(warning.filename)
            found[f"{path.parent.name}/{path.name}:{warning.lineno}"] += 1


def waits_per_call(call: Callable[[], Any], calls: int) -> Values:
    """Host waits of ``call``, the first one, which may set things up, left out."""
    call()
    with host_waits() as found:
        for _ in range(calls):
            call()
    return waits(found, calls)


def waits(found: Counter[str], calls: int) -> Values:
    return {"waits": round(sum(found.values()) / calls, 2), "where": dict(found)}
