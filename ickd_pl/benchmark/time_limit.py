"""Stops a benchmark after some minutes, as a signal stops a fit: after the current step, with a checkpoint."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ickd_pl.errors import UserError
from ickd_pl.runs.signals import Received, handling

ALARM = int(getattr(signal, "SIGALRM", 0))
"""The signal that this process sends to itself. Windows has none."""
MOST = 60 * 24 * 365
"""Minutes: a year, which every system's timer can count."""


def minutes_of(text: str | None) -> float | None:
    """The value of ``--minutes``; None: no limit.

    Raises:
        UserError: it is not a number of minutes.
    """
    if text is None:
        return None
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes <= MOST:
        raise UserError(f"--minutes: expected a number above 0 and up to {MOST} (a year), such as 9, got {text}")
    return minutes


@contextmanager
def stopped_after(minutes: float | None) -> Iterator[None]:
    """Note :data:`ALARM` when the time is up: a fit stops after its step, the benchmark before its next run.

    Both raise :class:`~ickd_pl.runs.signals.Stopped`.

    Raises:
        UserError: this system or thread has no such timer.
    """
    if minutes is None:
        yield
        return
    if not ALARM or not handling():
        raise UserError(
            "--minutes: expected a system with SIGALRM, and the main thread of the process, got another: leave it out, "
            "and stop the run by Ctrl-C, which saves a checkpoint too"
        )
    old = signal.signal(ALARM, _time_is_up)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(ALARM, old)


def _time_is_up(signum: int, frame: Any) -> None:
    # Only noted: unlike a signal from outside, it is in no hurry, and what a fit has trained is evaluated first.
    Received.first = Received.first or signum
