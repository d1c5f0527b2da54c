"""The signals that stop a process, and what is said and done then. Without Lightning, whose import takes seconds.

The handlers only note the signal. Outside a fit, where there is nothing to save, they end the process at once: by an
exception, so that temporary files, locks and processes are cleaned up, or, before and after the command line's work, by
:func:`leave_at_once`. Systems
without one of the signals (Windows has no SIGUSR1), and threads other than the main one, do without it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ickd_pl.runs.console import log, rank, warn

SIGNALS = {int(getattr(signal, name)): name for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)}
REQUEUE = int(getattr(signal, "SIGUSR1", 0))
"""The signal that SLURM sends before a job's time is up (``#SBATCH --signal=SIGUSR1@90``)."""


class Stopped(SystemExit):
    """The process was stopped by a signal; its ``code`` is 128 + the signal's number, or 0 after a requeue.

    Attributes:
        signum: the signal.
        in_fit: a fit has saved its checkpoint and, in a SLURM job, tried to requeue it.
    """

    def __init__(self, signum: int, code: int | None = None) -> None:
        super().__init__(128 + signum if code is None else code)
        self.signum, self.in_fit = signum, code is not None


class Received:
    """What this process knows of signals.

    Attributes:
        first: the first signal; later ones change nothing.
        waits: a fit is running, or the process is already leaving: the signal is only noted.
        raised: when :class:`Stopped` was raised outside a fit; 0: it was not.
    """

    first: int | None = None
    waits = False
    raised = 0.0


# Leaving takes less. Where an exception got lost, as in a library's bare ``except``, another signal raises it again.
_LEAVING_SECONDS = 5.0


def _handle(signum: int, frame: Any) -> None:
    is_first, Received.first = Received.first is None, Received.first or signum
    lost = Received.raised and time.monotonic() - Received.raised > _LEAVING_SECONDS
    if lost or (is_first and not Received.waits):
        Received.waits, Received.raised = True, time.monotonic()
        raise Stopped(Received.first or signum)


def wait_from_here() -> None:
    """Only note signals from now on: a fit has something to save, or to agree about.

    Raises:
        Stopped: one has come before, whose exception got lost.
    """
    raised, Received.waits, Received.raised = Received.raised, True, 0.0
    if raised:
        raise_if_stopped()


def lost_stop() -> Stopped | None:
    """The :class:`Stopped` of which a library made an error of its own: one that was being imported, or catches all."""
    return Stopped(Received.first) if Received.raised and Received.first is not None else None


def leave_at_once() -> None:
    """Let Ctrl-C end the process as SIGTERM does, without Python's traceback, before and after :func:`handled_signals`.

    There is nothing to clean up then. The shell shows the same statuses, 130 and 143.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_if_stopped() -> None:
    """Raise :class:`Stopped` if a signal came during a fit that has ended since."""
    if Received.first is not None:
        raise Stopped(Received.first)


def handling() -> bool:
    """Whether this process's signals are handled here."""
    return any(signal.getsignal(signum) is _handle for signum in SIGNALS)


@contextmanager
def handled_signals() -> Iterator[None]:
    """Handle the signals of this process by :class:`Stopped`, which is raised at once or after a fit's step."""
    if threading.current_thread() is not threading.main_thread() or handling():
        yield
        return
    old = {signum: signal.getsignal(signum) for signum in SIGNALS}
    Received.first, Received.waits, Received.raised = None, False, 0.0
    for signum in SIGNALS:
        signal.signal(signum, _handle)
    # Some launchers block signals for themselves, which their children inherit.
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS) if hasattr(signal, "pthread_sigmask") else set()
    try:
        yield
    finally:
        if blocked:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for signum, handler in old.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        Received.first, Received.waits, Received.raised = None, False, 0.0


def in_slurm() -> bool:
    """Whether this process belongs to a SLURM job."""
    return "SLURM_JOB_ID" in os.environ


def requeue() -> bool:
    """Requeue this process's SLURM job; tell the user, and return whether it worked."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    if not re.fullmatch(r"[0-9_]+", job):
        warn(f"warning: SLURM_JOB_ID is {job!r}: expected a number; the job is not requeued")
        return False
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        warn(f"warning: job {job} is not requeued: scontrol: {error}")
        return False
    if done.returncode:
        warn(f"warning: job {job} is not requeued: scontrol requeue: {' '.join(done.stderr.split())[:200]}")
        return False
    log(f"job {job} is requeued, and goes on from its last checkpoint")
    return True


def explain(stop: Stopped) -> int:
    """Tell the user why the process ends, requeue a SLURM job where that is not done, and return the exit status."""
    code = int(stop.code or 0)
    if stop.signum == REQUEUE and not stop.in_fit and in_slurm() and rank() == 0:
        code = 0 if requeue() else code
    if code:
        name = "Ctrl-C" if stop.signum == signal.SIGINT else SIGNALS[stop.signum]
        warn(f"stopped by {name}: run the same command to resume")
    return code
