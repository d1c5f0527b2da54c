"""Images per second of the packed rows of the table, and of as many solo runs, in one process with the same settings.

    python benchmarks/pack.py [--pairs resnet32x4_resnet8x4 resnet20_resnet8] [--steps 10] [--rounds 3] [--threads 2]
        [--fused] [--bf16] [--channels_last]

With ``--fused``, the same rows as a fused pack against the pack, instead of the pack against solo runs.

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
from typing import Any, NamedTuple

import torch

from common import ROWS, members, shipped
from ickd_pl import Batch, DistillationModule
from ickd_pl.training.build import optimizer_of
from ickd_pl.training.pack import Pack

BATCH = 64


class Setting(NamedTuple):
    """How both sides compute."""

    bf16: bool = False
    channels_last: bool = False

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)

    def __str__(self) -> str:
        return ("bf16-mixed" if self.bf16 else "float32") + (", channels_last" if self.channels_last else "")


def solo_step(modules: list[DistillationModule], setting: Setting) -> Callable[[Batch], None]:
    """One step of every row, each with its own teacher pass and its own SGD."""
    optimizers = [optimizer_of([module])["optimizer"] for module in modules]

    def step(batch: Batch) -> None:
        for module, optimizer in zip(modules, optimizers, strict=True):
            optimizer.zero_grad()
            with setting.autocast():
                loss = module.losses(batch)[0]
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return step


def packed_step(modules: list[DistillationModule], setting: Setting, fused: bool) -> Callable[[Batch], None]:
    """One step of the pack's own ``training_step``, with the little of a trainer that it asks for."""
    pack = Pack(modules, list(ROWS), fused=fused)
    optimizer = optimizer_of(modules)["optimizer"]
    trainer: Any = SimpleNamespace(
        train_dataloader=None, world_size=1, is_last_batch=False, global_step=0, current_epoch=0,
        strategy=SimpleNamespace(pre_backward=lambda loss: None),
        precision_plugin=SimpleNamespace(forward_context=setting.autocast),
    )  # fmt: skip
    for module in (pack, *modules):
        module.trainer = trainer
    pack.optimizers = lambda: optimizer  # type: ignore[method-assign, assignment]
    pack.arrange()
    counter = itertools.count(1)

    def step(batch: Batch) -> None:
        with setting.autocast():
            pack.training_step(batch, next(counter))

    return step


def seconds(step: Callable[[Batch], None], batch: Batch, steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        step(batch)
    return (time.perf_counter() - began) / steps


def compare(pair: str, setting: Setting, fused: bool, steps: int, rounds: int) -> str:
    """A line of the table."""
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.randn(BATCH, 3, 32, 32, generator=generator),
        torch.randint(100, (BATCH,), generator=generator),
        torch.arange(BATCH),
    )
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    batch = batch._replace(image=batch.image.contiguous(memory_format=layout))
    baseline, other = ([module.to(memory_format=layout) for module in members(pair)] for _ in range(2))
    sides = {
        "baseline": packed_step(baseline, setting, False) if fused else solo_step(baseline, setting),
        "other": packed_step(other, setting, fused),
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for step in sides.values():
        step(batch)  # allocates
    for _ in range(rounds):
        for name, step in sides.items():
            found[name].append(seconds(step, batch, steps))
    one, two = (statistics.median(found[name]) for name in sides)
    images = len(ROWS) * BATCH
    worst, best = min(found["baseline"]) / max(found["other"]), max(found["baseline"]) / min(found["other"])
    return f"| {pair} | {images / one:,.0f} | {images / two:,.0f} | {one / two:.2f} | {worst:.2f} to {best:.2f} |"


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
    parser.add_argument("--fused", action="store_true", help="the fused pack against the pack")
    parser.add_argument("--bf16", action="store_true", help="bf16-mixed")
    parser.add_argument("--channels_last", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    setting = Setting(options.bf16, options.channels_last)
    print(f"{len(ROWS)} rows, batch {BATCH}, {setting}, {options.threads} threads, torch {torch.__version__}")
    names = ("packed", "fused") if options.fused else ("solo", "packed")
    print(f"| pair | {names[0]}, images/s | {names[1]}, images/s | ratio of medians | worst to best |")
    print("|---|---:|---:|---:|---:|")
    for pair in options.pairs:
        print(compare(pair, setting, options.fused, options.steps, options.rounds), flush=True)


if __name__ == "__main__":
    main()
