"""Starts the contestants of a group, gives the turns, and collects what they cost."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ladder_parts.rungs import FAST, Contestant, Group

PARTS = Path(__file__).resolve().parent
# Steps of a contestant's first turn, in which memory is allocated and kernels are compiled; the last is timed.
WARM_UP = (2, 1)
# Rounds after which the fastest of the rivals is known.
TRIALS = 2
# Seconds for an answer: the first turn may compile for minutes.
PATIENCE = 900.0


class Failed(Exception):
    """A contestant's process ended or did not answer."""


class Rules(NamedTuple):
    """How a group is measured.

    Attributes:
        steps: at most, in a turn.
        seconds: that a turn should take.
        rounds: turns of each contestant that count.
        threads: of every contestant, over all its ranks.
        shared: part of every contestant's specification, such as the number of images.
        trees: folder of the version of today and of the one before; the latter None where it is not at hand.
        folder: for logs and runs.
    """

    steps: int
    seconds: float
    rounds: int
    threads: int
    shared: dict[str, Any]
    trees: tuple[Path, Path | None]
    folder: Path


class Process:
    """A contestant's process, which takes steps when told."""

    def __init__(self, spec: dict[str, Any], tree: Path, folder: Path, threads: int, more: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log.txt"
        path = os.pathsep.join(map(str, (PARTS.parent, tree)))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), **more}
        environment.pop("LOCAL_RANK", None)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ladder_parts.contestant", json.dumps(spec)],
                cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                bufsize=0, start_new_session=True,
            )  # fmt: skip

    def answer(self) -> dict[str, Any]:
        """Its next answer.

        Raises:
            Failed: there is none.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            raise Failed(f"no answer in {PATIENCE:.0f} s, see {self._log}")
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise Failed(f"ended with status {self._process.wait()}: {' '.join(tail)[:300]} ({self._log})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn(self, lead: int, count: int) -> dict[str, Any]:
        """Take ``lead`` steps, then ``count`` that are measured."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the missing answer says more
            self._process.stdin.write(f"{lead} {count}\n".encode())
        return self.answer()

    def close(self) -> None:
        """End it with all processes that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Runner:
    """A contestant in its group: one process, or one for each method."""

    def __init__(self, group: Group, contestant: Contestant, rules: Rules) -> None:
        self.contestant = contestant
        self.note = ""
        self.found: list[dict[str, float]] = []
        self.processes: list[Process] = []
        self._lead, self._count = WARM_UP
        tree = rules.trees[1] if contestant.before else rules.trees[0]
        if tree is None:
            self.note = "the older version is not at hand"
            return
        base = {**rules.shared, "kind": contestant.kind, "pair": group.pair, "methods": group.methods}
        base |= {"settings": contestant.settings, "pack": dict(contestant.pack), "ranks": 1, "workers": 0}
        base |= {"evaluate": group.table == "evaluation", **contestant.given}
        self._epoch = math.inf if base["evaluate"] else base["images"] // base["batch"]
        specs = [{**base, "methods": [m]} for m in base["methods"]] if contestant.separate else [base]
        threads = max(1, rules.threads // base["ranks"])
        for spec in specs:
            words = (group.name, contestant.label, *(spec["methods"] if contestant.separate else ()))
            name = "".join(c if c.isalnum() else "_" for c in " ".join(words))
            folder = rules.folder / "contestants" / name
            self.processes.append(Process(spec, tree, folder, threads, dict(contestant.environment)))

    def start(self, rules: Rules) -> None:
        """Wait until it is ready, then let it take its first steps; the length of its turns follows from them."""

        def first() -> None:
            for process in self.processes:
                answer = process.answer()
                if "skip" in answer:
                    raise Failed(answer["skip"])
            ms = sum(process.turn(*WARM_UP)["ms"] for process in self.processes)
            wanted = round(1e3 * rules.seconds / max(ms, 1e-3))
            self._count = int(max(1, min(rules.steps, wanted, self._most(rules.rounds))))
            self._lead = self._count // 4 + 1

        self._safely(first)

    def _most(self, rounds: int) -> float:
        """Steps of a turn with which all turns lie within one epoch, so that no evaluation falls into them."""
        return ((self._epoch - sum(WARM_UP)) / rounds - 1) * 4 // 5

    def turn(self) -> None:
        """One turn that counts."""

        def own() -> None:
            found = [process.turn(self._lead, self._count) for process in self.processes]
            self.found.append(
                {
                    **{name: sum(each[name] for each in found) for name in ("ms", "cpu", "faults")},
                    "peak": max(each["peak"] for each in found),
                }
            )

        self._safely(own)

    def _safely(self, work: Callable[[], None]) -> None:
        if self.processes:
            try:
                work()
            except Failed as error:
                self.note, self.found = str(error), []
                self.close()

    def close(self) -> None:
        for process in self.processes:
            process.close()
        self.processes = []

    def result(self) -> dict[str, Any]:
        """What is kept of it."""
        return {
            "label": self.contestant.label,
            "rivals": self.contestant.rivals,
            "given": dict(self.contestant.given),
            "half": any("bf16" in setting or FAST in setting for setting in self.contestant.settings),
            "note": self.note,
            "steps": self._count,
            "found": self.found,
        }


def measure(group: Group, rules: Rules, deadline: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure a group; at least the rounds that choose among rivals and one more, then until the deadline."""
    began = time.perf_counter()
    runners = [Runner(group, contestant, rules) for contestant in group.contestants]
    try:
        for runner in runners:
            runner.start(rules)
            if runner.note:
                say(f"  {runner.contestant.label}: {runner.note}")
        for number in range(rules.rounds):
            if number > min(TRIALS, rules.rounds - 1) and time.perf_counter() > deadline:
                say(f"  stopped after {number} of {rules.rounds} rounds: no time left")
                break
            for runner in runners if number % 2 == 0 else reversed(runners):
                runner.turn()
            if number + 1 == TRIALS:
                _drop_slower(runners)
    finally:
        for runner in runners:
            runner.close()
    return {
        "table": group.table,
        "pair": group.pair,
        "methods": list(group.methods),
        "seconds": time.perf_counter() - began,
        "contestants": [runner.result() for runner in runners],
    }


def _drop_slower(runners: list[Runner]) -> None:
    for rivals in {runner.contestant.rivals for runner in runners} - {""}:
        own = [runner for runner in runners if runner.contestant.rivals == rivals and runner.found]
        for slower in sorted(own, key=lambda runner: min(each["ms"] for each in runner.found))[1:]:
            slower.note = "slower than another number of workers"
            slower.close()
