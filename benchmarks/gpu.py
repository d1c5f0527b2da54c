"""Measures and checks the package on one GPU; with --tiny the script itself, in a minute, on a CPU too.

    python benchmarks/gpu.py [PART ...] [--budget 470] [--output gpu.json] [--tiny]

Parts, in this order, each in a process of its own with its own limit: what crashes or hangs costs only itself. Without
PART all of them. A line per check is printed; the file has the card's name, the versions and every check with one of
four outcomes: "passed" and "failed" where something was expected, "measured" where a number was all that was wanted,
"not measured" with the reason, such as "no CUDA". Ratios named "speedup" are times of a baseline, measured in the same
process, over the own time. Needs no network and no data but scikit-learn's digits, without which one part is left out.

Exit status: 0 nothing failed; 1 a check failed, or a part crashed or hung; 2 the options are wrong, or there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
LIBRARIES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "numpy", "scikit-learn")
# A child that fills its limit still has to write down its last check.
GRACE = 6.0


class Part(NamedTuple):
    """A part: its module, which has ``run(record)``; how long it may take, in seconds; and its networks."""

    module: str
    seconds: float
    about: str
    pair: str = "resnet20_resnet8"


LARGE = "resnet32x4_resnet8x4"
# The most important first: when the time is up the others are left out.
PARTS: dict[str, Part] = {
    "machine": Part("gpu_checks.machine", 25, "speed of products, copies, launches and convolutions"),
    "loader": Part("gpu_checks.loader", 25, "batches as on the CPU bit for bit, as torchvision's, time, host waits"),
    "correctness": Part("gpu_checks.correctness", 30, "losses and gradients against float64 on the CPU, AMP"),
    "steps20": Part("gpu_checks.steps", 90, "a step of five methods in several precisions, memory, host waits"),
    "steps32": Part("gpu_checks.steps", 70, "the same on the larger pair", LARGE),
    "profile": Part("gpu_checks.profile", 30, "kernels of a step, and how much of it the GPU is busy"),
    "graphs": Part("gpu_checks.graphs", 40, "the whole step as one CUDA graph"),
    "captured20": Part("gpu_checks.captured", 90, "captured steps and fused packs against eager, separate ones"),
    "captured32": Part("gpu_checks.captured", 90, "the same on the larger pair", LARGE),
    "pack32": Part("gpu_checks.packs", 50, "packed rows against solo runs, host waits, memory", LARGE),
    "pack20": Part("gpu_checks.packs", 35, "the same on the smaller pair"),
    "determinism": Part("gpu_checks.determinism", 50, "two runs with trainer.deterministic, bit for bit"),
    "column": Part("gpu_checks.column", 90, "hours of the table's packed rows, projected", "resnet56_resnet20"),
    "fit": Part("gpu_checks.fits", 60, "Trainer.fit in several precisions against a plain loop, host waits"),
    "digits": Part("gpu_checks.digits", 50, "accuracy of bf16-mixed and 16-mixed against float32"),
    "ddp": Part("gpu_checks.ddp", 30, "DDP over NCCL against one process"),
    "compile": Part("gpu_checks.compiled", 70, "a step under torch.compile"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    options = parse(arguments)
    if not options.tiny and not _has_cuda():
        print("no CUDA device: run this on a machine with a GPU; --tiny tests the script itself", file=sys.stderr)
        return 2
    began, end = time.time(), time.monotonic() + options.budget
    result: dict[str, Any] = {"machine": {}, "versions": versions(), "tiny": options.tiny, "checks": []}
    # Each start imports torch anew, which would be most of a tiny run.
    names = options.parts or list(PARTS)
    for group in [names] if options.tiny else [[name] for name in names]:
        left = end - time.monotonic() - GRACE
        if left < (0 if options.tiny else GRACE):
            lines = [_line(name, "not measured", "out of time") for name in group]
        else:
            lines = run(group, left, options.tiny)
        result["machine"] = next((line["machine"] for line in lines if "machine" in line), result["machine"])
        result["checks"] += [line for line in lines if "outcome" in line]
        result["seconds"] = round(time.time() - began, 1)
        result["outcomes"] = dict(Counter(line["outcome"] for line in result["checks"]))
        # After each group: what was found is kept should the machine be taken away.
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result["outcomes"].items()))
    print(f"{counts}, in {result['seconds']:.0f} s: {options.output}")
    return 1 if "failed" in result["outcomes"] else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parts = "\n".join(f"  {name:12} {part.about} ({part.pair})" for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"parts:\n{parts}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="see below; default: all")
    parser.add_argument("--tiny", action="store_true", help="one step of everything, to test this script")
    parser.add_argument("--budget", type=float, default=470, metavar="SECONDS", help="of all parts; default: 470")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), metavar="FILE", help="default: gpu.json")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]}: expected one of {', '.join(PARTS)}")
    if not options.budget > 0:
        parser.error(f"--budget: expected seconds above 0, got {options.budget:g}")
    if not options.output.parent.is_dir():
        parser.error(f"--output: there is no folder {options.output.parent}")
    return options


def versions() -> dict[str, str | None]:
    """Of the libraries that results depend on; None where one is not installed."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def run(names: Sequence[str], seconds: float, tiny: bool) -> list[dict[str, Any]]:
    """Run parts in one process of their own, at most so many seconds; the lines that it wrote.

    A crash, or the limit, is a line of its own: ``failed`` for the part that did not end, ``not measured`` for those
    behind it.
    """
    parts = [{"name": name, **PARTS[name]._asdict()} for name in names]
    limit = seconds
    for part in parts:
        part["seconds"] = seconds if tiny else min(part["seconds"], seconds)
        limit = part["seconds"] + GRACE
    with tempfile.TemporaryDirectory() as folder:
        path, errors = Path(folder) / "lines.jsonl", Path(folder) / "stderr.txt"
        path.touch()
        began = time.monotonic()
        status = _start([json.dumps(parts), str(path), "tiny" if tiny else "full"], errors, limit)
        lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
        if status != 0:
            last = " ".join(errors.read_text(encoding="utf-8", errors="replace").split())[-600:]
            seconds = time.monotonic() - began
            why = f"exit status {status}: {last}" if status is not None else f"stopped after {seconds:.0f} s: {last}"
            ended = [line["ended"] for line in lines if "ended" in line]
            broken, *others = [name for name in names if name not in ended] or [names[-1]]
            lines.append(_line(broken, "failed", why))
            lines += [_line(name, "not measured", f"part {broken} ended the process") for name in others]
    return lines


def _start(arguments: list[str], errors: Path, limit: float) -> int | None:
    """The exit status, or None where it had to be stopped."""
    paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "gpu_checks.child", *arguments]
    with errors.open("wb") as file:
        # A group of its own: the ranks that a part starts end with it.
        child = subprocess.Popen(command, stderr=file, env=environment, start_new_session=True)
        try:
            return child.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _line(part: str, outcome: str, why: str) -> dict[str, Any]:
    """A line about a whole part."""
    line = {"part": part, "name": "the part itself", "outcome": outcome, "why": why, "device": None}
    print(f"{outcome:12} {part}: {why}", flush=True)
    return {**line, "settings": {}, "values": {}, "seconds": 0.0}


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
