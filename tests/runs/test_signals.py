"""The handlers of signals; what they do in a run is in test_stop.py."""

from __future__ import annotations

import os
import signal

import pytest

from ickd_pl.runs.signals import SIGNALS, Stopped, handled_signals


@pytest.mark.parametrize("name", SIGNALS.values())
def test_signals_that_a_launcher_has_blocked(name: str) -> None:
    """Children inherit what their parent has blocked; afterwards it is blocked as before."""
    signum = signal.Signals[name]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signum})
    try:
        with pytest.raises(Stopped) as stop, handled_signals():
            os.kill(os.getpid(), signum)
        assert stop.value.signum == signum
        assert signum in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
