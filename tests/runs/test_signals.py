"""The handlers of signals; what they do in a run is in test_stop.py."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ickd_pl.runs import signals
from ickd_pl.runs.signals import SIGNALS, Stopped, handled_signals
from tests.benchmark.helpers import quick
from tests.runs.helpers import REPOSITORY, cli, fit_args

STOPPED = "stopped by {}: run the same command to resume"
FIT = ["--model.student=resnet8"]


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


@pytest.mark.parametrize(
    ("command", "imported", "name"),
    [
        ("fit --config=configs/base.yaml --data=Digits --model.student=resnet8", "ickd_pl.cli", "SIGINT"),
        ("bench run --config=short.yaml --output=out", "numpy", "SIGTERM"),
        ("teachers train resnet8 --data=Digits", "torch.nn", "SIGINT"),
        ("test --ckpt_path=run.ckpt", "torch.nn", "SIGTERM"),
    ],
    ids=["fit", "bench", "teachers", "test"],
)
def test_a_signal_during_imports(command: str, imported: str, name: str) -> None:
    """A real process, which is stopped when it has imported a module: its status, no traceback, and no file."""
    quick()
    Path("run.ckpt").touch()
    before = sorted(Path().rglob("*"))
    words = [sys.executable, "-X", "importtime", str(REPOSITORY / "cli.py"), *command.split()]
    # A job in the background may ignore Ctrl-C, and its children with it.
    heard: Any = {"preexec_fn": partial(signal.signal, signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heard) as process:
        assert process.stderr is not None
        assert any(re.fullmatch(rf"import time:.*\| +{imported}\n", line) for line in process.stderr)
        process.send_signal(getattr(signal, name))
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    # Before the command line has taken over, the signal itself ends the process: in a shell, the same status.
    signum = getattr(signal, name)
    told = [STOPPED.format("Ctrl-C" if name == "SIGINT" else name)]
    assert (process.returncode, said) in ((128 + signum, told), (-signum, [])), err[-2000:]
    assert out == "" and sorted(Path().rglob("*")) == before


OWN = """
import os, signal
from ickd_pl.data import Digits

class Data(Digits):
    pass

try:
    os.kill(os.getpid(), signal.SIGTERM)
except BaseException:
    {}
"""


@pytest.mark.parametrize("becomes", ["raise ImportError('a part is missing') from None", "pass"])
def test_a_stop_from_which_a_library_makes_something_else(
    becomes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules in C make an error of their own of it, others catch everything: the run stops before its first step."""
    name = f"own_{len(becomes)}"
    Path(f"{name}.py").write_text(OWN.format(becomes))
    monkeypatch.syspath_prepend(tmp_path)
    command = [word.replace("--data=Digits", f"--data={name}.Data") for word in fit_args(Path("out"), FIT)]
    outcome = cli(*command)
    assert (outcome.status, outcome.err.splitlines()[-1]) == (143, STOPPED.format("SIGTERM")), outcome.err
    assert "Traceback" not in outcome.err and not list(Path("out").rglob("*.ckpt"))
    if becomes == "pass":  # the module is imported by now
        assert cli(*command).status == 0, "what is there is no hindrance"


def test_another_signal_stops_where_the_first_one_got_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with handled_signals():
        for seconds in (5.0, 0.0):
            monkeypatch.setattr(signals, "_LEAVING_SECONDS", seconds)
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGTERM)
            if seconds:
                os.kill(os.getpid(), signal.SIGTERM)  # it is leaving: only noted
