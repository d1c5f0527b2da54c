"""``correlations``: compare a student's correlation matrices with its teacher's, before and after distillation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ickd_pl.errors import UserError
from ickd_pl.runs.command_parser import CommandParser

if TYPE_CHECKING:
    from ickd_pl.correlations.figure import Comparison

SUMMARY = "draw the correlations of a student's channels and logits beside its teacher's, before and after distillation"
_MORE = """Upper row: inter-channel correlation as in ICKD's loss (Gram matrix of the map before the pooling, with
rows of unit length), averaged over test images; the checkpoint's ICKD adapter, if any, is applied to the student.
Lower row: correlation of the class logits over the same images. "Before" is the student's initial weights, recreated
from the run's seed, or the student of --before. Options of the data may follow, such as --data ImageFolder
--data.root DIR; others are taken from the checkpoint. Needs matplotlib: pip install '.[demo]' in the clone."""


def run(args: Sequence[str]) -> int:
    """Write the picture and print the distances that it shows.

    Raises:
        UserError: wrong arguments, a file that is missing, damaged or of another network, or a picture that cannot
            be written.
    """
    from ickd_pl.correlations.figure import Comparison, check_picture, write_picture
    from ickd_pl.correlations.inputs import Request, read_inputs
    from ickd_pl.correlations.measures import compare
    from ickd_pl.runs.run_folder import folder_of

    options, rest = _parsed(args)
    path = options.output or folder_of(options.ckpt_path) / "correlations.png"
    check_picture(path)
    inputs = read_inputs(
        Request(options.ckpt_path, options.before, options.teacher, options.teacher_weights, options.images, rest)
    )
    teacher, students = compare(inputs.images, inputs.teacher, {"before": inputs.before, "after": inputs.after})
    adapted = inputs.after.adapter is not None
    shown = Comparison(teacher, students["before"], students["after"], inputs.title, inputs.names, adapted, inputs.note)
    write_picture(shown, path)
    source = f"{inputs.source}\n" if inputs.source else ""
    notes = "".join(f"note: {note}\n" for note in (shown.channels_apart, shown.note) if note)
    print(f"{shown.title}\n\n{table(shown)}\n\n{notes}{source}wrote {path}", flush=True)
    return 0


def table(shown: Comparison) -> str:
    """A text table of the distances to the teacher before and after; ``-`` if one is undefined."""
    before, after = shown.students
    channels, logits = len(shown.teacher.channels), len(shown.teacher.classes)
    rows: list[tuple[str, Sequence[float | None]]] = [
        (f"channels, {channels} x {channels}", shown.channel_distances() or (None, None)),
        (f"class logits, {logits} x {logits}", shown.logit_distances()),
        ("ICKD's loss, mean over the images", (before.loss, after.loss)),
    ]
    lines = [f"{'mean |difference| to the teacher':36}{'before':>9}{'after':>9}"]
    for label, values in rows:
        lines.append(f"{label:36}" + "".join(f"{'-' if value is None else f'{value:.4f}':>9}" for value in values))
    return "\n".join(lines)


def _parsed(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the arguments into the command's own options and those of the data."""
    parser = CommandParser(prog="correlations", description=f"{SUMMARY[0].upper()}{SUMMARY[1:]}.", epilog=_MORE)
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, metavar="FILE", help="the checkpoints/last.ckpt of a run")
    add("--before", type=Path, metavar="FILE", help="another run's, such as Vanilla's; default: the initial weights")
    add("--teacher", metavar="NAME", help="default: the checkpoint's")
    add("--teacher_weights", type=Path, metavar="FILE", help="default: the checkpoint's")
    add("--images", type=int, default=1000, metavar="N", help="test images, evenly spaced; default 1000, or all")
    add("--output", type=Path, metavar="FILE", help=".png, .svg or .pdf; default: correlations.png in the run's folder")
    options, rest = parser.parse_known_args(list(args))
    if options.images < 2:
        raise UserError(f"--images: expected 2 or more, got {options.images}")
    unknown = [a for a in rest if a.startswith("-") and a.split("=")[0] != "--data" and not a.startswith("--data.")]
    if unknown:
        parser.error(f"unrecognized arguments: {unknown[0]}")
    return options, rest
