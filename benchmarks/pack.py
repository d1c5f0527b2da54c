"""Images per second of the packed rows of the table, and of as many solo runs, in one process with the same settings.

    python benchmarks/pack.py [--pairs resnet32x4_resnet8x4 resnet20_resnet8] [--steps 10] [--rounds 3] [--threads 2]

The packed rows are the thirteen of the table but FSP, whose first stage is its own. Both sides run the project's own
step: teacher, student, loss, backward, SGD, on random images of CIFAR-100's shape at batch 64 (the loader takes under
one percent of a step). Rounds of both sides take turns; the figure is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from common import ROWS, members, shipped
from ickd_pl import Batch, DistillationModule
from ickd_pl.training.build import optimizer_of
from ickd_pl.training.pack import Pack

BATCH = 64


def solo_step(modules: list[DistillationModule]) -> Callable[[Batch], None]:
    """One step of every row, each with its own teacher pass and its own SGD."""
    optimizers = [optimizer_of([module])["optimizer"] for module in modules]

    def step(batch: Batch) -> None:
        for module, optimizer in zip(modules, optimizers, strict=True):
            optimizer.zero_grad()
            module.losses(batch)[0].backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return step


def packed_step(modules: list[DistillationModule]) -> Callable[[Batch], None]:
    """One step of the pack's own ``training_step``, with the little of a trainer that it asks for."""
    pack = Pack(modules, list(ROWS))
    optimizer = optimizer_of(modules)["optimizer"]
    trainer: Any = SimpleNamespace(
        train_dataloader=None, world_size=1, is_last_batch=False, global_step=0, current_epoch=0,
        strategy=SimpleNamespace(pre_backward=lambda loss: None),
    )  # fmt: skip
    for module in (pack, *modules):
        module.trainer = trainer
    pack.optimizers = lambda: optimizer  # type: ignore[method-assign, assignment, return-value]
    counter = itertools.count(1)

    def step(batch: Batch) -> None:
        pack.training_step(batch, next(counter))

    return step


def seconds(step: Callable[[Batch], None], batch: Batch, steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        step(batch)
    return (time.perf_counter() - began) / steps


def compare(pair: str, steps: int, rounds: int) -> str:
    """A line of the table."""
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.randn(BATCH, 3, 32, 32, generator=generator),
        torch.randint(100, (BATCH,), generator=generator),
        torch.arange(BATCH),
    )
    sides = {"solo": solo_step(members(pair)), "pack": packed_step(members(pair))}
    found: dict[str, list[float]] = {name: [] for name in sides}
    for step in sides.values():
        step(batch)  # allocates
    for _ in range(rounds):
        for name, step in sides.items():
            found[name].append(seconds(step, batch, steps))
    solo, pack = (statistics.median(found[name]) for name in ("solo", "pack"))
    images = len(ROWS) * BATCH
    spread = f"{min(found['solo']) / max(found['pack']):.2f} to {max(found['solo']) / min(found['pack']):.2f}"
    return f"| {pair} | {images / solo:,.0f} | {images / pack:,.0f} | {solo / pack:.2f} | {spread} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--pairs",
        nargs="+",
        default=["resnet32x4_resnet8x4", "resnet20_resnet8"],
        choices=shipped("pairs"),
        metavar="PAIR",
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{len(ROWS)} rows, batch {BATCH}, float32, {options.threads} threads, torch {torch.__version__}")
    print("| pair | solo, images/s | packed, images/s | ratio of medians | worst to best |\n|---|---:|---:|---:|---:|")
    for pair in options.pairs:
        print(compare(pair, options.steps, options.rounds), flush=True)


if __name__ == "__main__":
    main()
