"""A part's checks: what each found, or why it found nothing. One that fails does not keep the next from running."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

Outcome = Literal["passed", "failed", "measured", "not measured"]
Values = dict[str, Any]
SMALLEST = "resnet20_resnet8"


class NotMeasured(Exception):
    """Raised by a check that finds out that it cannot be made here; the text says why."""


class Record:
    """Makes checks and writes a line of JSON for each.

    Args:
        part: name of the part.
        path: file that the lines are appended to.
        seconds: how long the part may take; checks that would begin later are not measured.
        tiny: one step of each on the smallest pair, for testing the script itself.
        pair: networks of the part, as in ``configs/pairs``.

    Attributes:
        cuda: whether there is a GPU; everything is measured on ``device``.
        batch_size: images a step.
        num_images: of the random data set.
        steps: in a round of a timing, after ``warmup`` steps.
        rounds: of which the median counts.
    """

    def __init__(self, part: str, path: Path, seconds: float, tiny: bool, pair: str = SMALLEST) -> None:
        self.part, self.tiny, self.pair = part, tiny, SMALLEST if tiny else pair
        self._path, self._end = path, time.perf_counter() + seconds
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.batch_size, self.num_images = (4, 160) if tiny else (64, 50_000)
        self.steps, self.warmup, self.rounds = (1, 0, 1) if tiny else (40, 12, 3)

    def seconds_left(self) -> float:
        return self._end - time.perf_counter()

    def check(
        self,
        name: str,
        measure: Callable[[], Values],
        settings: Mapping[str, Any] | None = None,
        at_most: Mapping[str, float] | None = None,
        needs_cuda: bool = False,
    ) -> Values:
        """Make one check.

        Args:
            name: what is checked.
            measure: does it and returns what it found.
            settings: under which; kept beside the values.
            at_most: upper bounds of some of the values: within them the check is passed, else it failed. None: there
                is nothing to pass, the values are measured.
            needs_cuda: without a GPU nothing is measured.

        Returns:
            The values; empty where there are none.
        """
        settings = settings or {}
        if needs_cuda and not self.cuda:
            return self._write(name, "not measured", "no CUDA", settings)
        if self.seconds_left() < (0 if self.tiny else 2):
            return self._write(name, "not measured", "out of time", settings)
        began = time.perf_counter()
        try:
            values = measure()
            wrong = [
                f"{key} is {values[key]:.4g}, at most {bound:g} was expected"
                for key, bound in (at_most or {}).items()
                if not values[key] <= bound  # so that NaN fails
            ]
            outcome: Outcome = "failed" if wrong else "measured" if at_most is None else "passed"
            why = "; ".join(wrong)
        except NotMeasured as reason:
            values, outcome, why = {}, "not measured", str(reason)
        except Exception as error:
            values, outcome, why = {}, "failed", _described(error)
        self._free_memory()
        return self._write(name, outcome, why, settings, values, time.perf_counter() - began)

    def skip(self, name: str, why: str) -> None:
        """A check that cannot be made here."""
        self._write(name, "not measured", why, {})

    def fail(self, name: str, error: Exception) -> None:
        """What went wrong outside any check."""
        self._write(name, "failed", _described(error), {})

    def _free_memory(self) -> None:
        if not self.cuda:
            return
        gc.collect()
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # what a broken kernel left; the next check says more
            print(f"{self.part}: {error}", flush=True)

    def _write(
        self,
        name: str,
        outcome: Outcome,
        why: str,
        settings: Mapping[str, Any],
        values: Values | None = None,
        seconds: float = 0.0,
    ) -> Values:
        line = {
            "part": self.part,
            "name": name,
            "outcome": outcome,
            "why": why,
            "device": self.device.type,
            "settings": dict(settings),
            "values": values or {},
            "seconds": round(seconds, 2),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
        print(as_text(line), flush=True)
        return values or {}


def as_text(line: Mapping[str, Any]) -> str:
    """A line for people."""
    settings = ", ".join(str(value) for value in line["settings"].values())
    values = (f"{key} {f'{value:.4g}' if isinstance(value, float) else value}" for key, value in line["values"].items())
    found = line["why"] or ", ".join(values)
    return f"{line['outcome']:12} {line['part']}: {line['name']}{f' ({settings})' if settings else ''}: {found}"


def _described(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:400]
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"
