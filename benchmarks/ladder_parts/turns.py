"""A contestant's side of the turns: it takes a number of steps when told, says what they cost, and waits."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any, TextIO

import torch


class NotHere(Exception):
    """The installed version lacks a setting; the text says which."""


class Turns:
    """Commands come in on standard input, ``LEAD COUNT`` a line; one line of JSON answers each.

    What the program prints goes to standard error, which is the contestant's log.
    """

    def __init__(self) -> None:
        self._answers: TextIO | None = None
        self._taken = self._lead = self._asked = 0
        self._began = _used()

    def open(self) -> None:
        """Take standard output for the answers. Further processes of a run (other ranks) do not call it."""
        self._answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def step(self) -> None:
        """Called before every step: goes on at once, or waits until it is this contestant's turn again."""
        if self._answers is None:
            return
        if self._taken == self._asked:
            self.answer({"ready": True} if not self._asked else self._cost())
            command = sys.stdin.readline().split()
            if not command:  # the referee is gone
                os._exit(0)
            self._lead, count = (int(word) for word in command)
            self._taken, self._asked = 0, self._lead + count
        if self._taken == self._lead:
            self._began = _used()
        self._taken += 1

    def answer(self, content: dict[str, Any]) -> None:
        """Send a line to the referee."""
        if self._answers is not None:
            self._answers.write(json.dumps(content) + "\n")
            self._answers.flush()

    def _cost(self) -> dict[str, Any]:
        steps = self._asked - self._lead
        ms, cpu, faults = ((after - before) / steps for before, after in zip(self._began, _used(), strict=True))
        return {"ms": ms, "cpu": cpu, "faults": faults, "peak": _peak()}


def _used() -> tuple[float, float, float]:
    """Milliseconds on the clock, of all cores together in this process, and its page faults."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    own = resource.getrusage(resource.RUSAGE_SELF)
    return 1e3 * time.perf_counter(), 1e3 * (own.ru_utime + own.ru_stime), own.ru_minflt


def _peak() -> float:
    """Gigabytes: of the card where there is one, else of this process with everything that it imports."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


TURNS = Turns()
