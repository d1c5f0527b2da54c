"""Which method works on which pair: ``python benchmarks/pairs.py`` writes ``docs/pairs.md``.

"Works" means that the two real networks were built with 100 classes and went forward, backward and through one
optimizer step on a batch of 8, in every stage that the method has, with a finite loss.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from common import CLASSES, fill_class_tables, model_settings, shipped, untrained_teacher
from ickd_pl import Batch, DistillationModule, IncompatiblePair, UserError, model_names
from ickd_pl.errors import near
from ickd_pl.seeding import generator
from ickd_pl.strategies import discover

NUM_SAMPLES = 64


def benchmark_pairs() -> list[tuple[str, str]]:
    """Teacher and student of every shipped pair whose teacher is published (its weights have a place)."""
    models = [model_settings("pairs", name) for name in shipped("pairs")]
    return [(m["teacher"], m["student"]) for m in models if m["teacher_weights"]]


def named_pair(words: str) -> tuple[str, str]:
    """``TEACHER/STUDENT`` as two names.

    Raises:
        UserError: it is no pair, or a network is unknown.
    """
    teacher, slash, student = words.partition("/")
    if not slash:
        raise UserError(f"--pairs: expected TEACHER/STUDENT, such as resnet56/resnet20, got {words}")
    for name in (teacher, student):
        if name not in model_names():
            raise UserError(f"--pairs: unknown network {name!r} in {words}: {near(name, model_names())}")
    return teacher, student


def attempt(method: str, teacher: str, student: str) -> str:
    """``works``, or the method's own words why not."""
    strategy = discover()[method]()
    batch = Batch(torch.randn(8, 3, 32, 32, generator=generator("pairs")), torch.arange(8), torch.arange(8))
    net = untrained_teacher(teacher, batch.image)
    try:
        module = DistillationModule(student, net, strategies=[strategy], num_samples=NUM_SAMPLES)
    except IncompatiblePair as error:
        return str(error)
    fill_class_tables(module, torch.arange(NUM_SAMPLES) % CLASSES)
    optimizer = torch.optim.SGD(module.trainable(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    for first in (True, False) if strategy.pretrain_epochs else (False,):
        module.stages.epoch = 0 if first else None
        total = module.losses(batch)[0]
        if not total.isfinite():
            return f"loss {total.item()}"
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return "works" if all(p.isfinite().all() for p in module.parameters()) else "a weight became infinite or NaN"


def report(pairs: list[tuple[str, str]], methods: list[str]) -> str:
    """The table and the reasons, as Markdown."""
    answers = {(m, p): attempt(m, *p) for p in pairs for m in methods}
    reasons = list(dict.fromkeys(a for a in answers.values() if a != "works"))
    lines = [
        "# Methods and pairs",
        "",
        "Written by `python benchmarks/pairs.py`: both real networks, 100 classes, forward, backward and one optimizer",
        "step on a batch of 8, in every stage of the method. A number is the reason below why the pair is refused.",
        "",
        "| teacher / student | " + " | ".join(methods) + " |",
        "|---|" + ":-:|" * len(methods),
    ]
    for pair in pairs:
        cells = [("yes" if a == "works" else f"{reasons.index(a) + 1}") for a in (answers[m, pair] for m in methods)]
        lines.append(f"| {' / '.join(pair)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1)), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/pairs.md"))
    parser.add_argument("--pairs", nargs="*", help="TEACHER/STUDENT; default: all shipped")
    options = parser.parse_args()
    try:
        pairs = [named_pair(pair) for pair in options.pairs or []] or benchmark_pairs()
    except UserError as error:
        parser.error(str(error))
    options.output.write_text(report(pairs, sorted(discover())), encoding="utf-8")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
