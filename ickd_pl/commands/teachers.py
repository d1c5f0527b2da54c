"""``teachers list|fetch|verify|train``: list, download, verify and train the benchmark's teachers."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ickd_pl.errors import UserError
from ickd_pl.runs.command_parser import CommandParser

if TYPE_CHECKING:
    from ickd_pl.teachers.manifest import Teacher

SUMMARY = "list, fetch, verify and train the benchmark's teachers"


def run(args: Sequence[str]) -> int:
    """Run a subcommand and return its exit status.

    Each ``add_`` function adds a subcommand's parser, with ``run(options, rest) -> int`` and ``parser`` as defaults;
    ``rest`` are the arguments that the parser does not know.
    """
    parser = CommandParser(prog="teachers", description=f"{SUMMARY[0].upper()}{SUMMARY[1:]}.")
    subparsers = parser.add_subparsers(metavar="list|fetch|verify|train", dest="subcommand", required=True)
    for add in (add_list, add_fetch, add_verify, add_train):
        add(subparsers)
    options, rest = parser.parse_known_args(list(args))
    return int(options.run(options, rest))


def add_list(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "list",
        help="show each teacher's published accuracy, local file and sources",
        description="Show each teacher's published CIFAR-100 test accuracy, whether its file is here, and its sources.",
    )
    add_paths(parser)
    parser.set_defaults(run=_list, parser=parser)


def add_fetch(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "fetch",
        help="download teachers from their mirrors, or copy them from a file, folder or archive",
        description="Download teachers from their mirrors, tried in order, or copy them from --from, offline. "
        "A file that is damaged, of another network, or different from the recorded one is refused and not kept.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="see `teachers list`")
    parser.add_argument("--all", action="store_true", help="every teacher of the manifest")
    parser.add_argument(
        "--from",
        dest="origin",
        type=Path,
        metavar="FILE|FOLDER|ARCHIVE",
        help="a .pth file (with one NAME), or a folder, tar or zip archive with NAME_vanilla/ckpt_epoch_240.pth at "
        "any depth, or NAME.pth",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for a silent or slow mirror before trying the next; default 30",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file once the new one is verified")
    add_paths(parser)
    parser.set_defaults(run=_fetch, parser=parser)


def add_verify(subparsers: Any) -> None:
    from ickd_pl.teachers.manifest import TOLERANCE

    parser = subparsers.add_parser(
        "verify",
        help="measure a teacher and compare it with its published accuracy",
        description="Measure a teacher on test images and compare it with its published accuracy. Options of the data "
        "follow: --data CIFAR100 (the default), --data.root DIR, --data.archive PATH.",
    )
    parser.add_argument("name", metavar="NAME", help="the network; see `teachers list`")
    parser.add_argument(
        "--file", type=Path, metavar="FILE", help="weights file, or FILE#ENTRY; default: the one written by fetch"
    )
    parser.add_argument("--expected", type=float, metavar="PERCENT", help="default: as published, on CIFAR-100")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="POINTS",
        help="how far below the expected accuracy is accepted; default %(default)s",
    )
    parser.add_argument(
        "--normalization",
        default="auto",
        metavar="CHOICE",
        help="mean and std of its images: auto (what its file says, else the data's; the default), data, or "
        "'{mean: [R, G, B], std: [R, G, B]}'",
    )
    add_paths(parser)
    parser.set_defaults(run=_verify, parser=parser)


def add_train(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a teacher from scratch with the default recipe",
        description="Train a network with cross entropy alone, by default for 240 epochs on CIFAR-100, and write it in "
        "the format of the published teachers. The run is a `fit` in its usual folder: if stopped, the same command "
        "resumes it. Options of `fit` follow, such as --trainer.devices 2, or --data Digits --trainer.max_epochs 12.",
    )
    parser.add_argument("name", metavar="NAME", help="any built-in network")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: DIR/NAME_vanilla/ckpt_epoch_<epochs>.pth; DIR/<data>/... for data other than CIFAR-100",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR", help="default: checkpoints"
    )
    parser.set_defaults(run=_train, parser=parser)


def add_paths(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--checkpoints`` and ``--manifest``."""
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR", help="default: checkpoints"
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="names, sources and hashes; default: DIR/manifest.json, at first a copy of the packaged one",
    )


def refuse_unknown(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Refuse arguments that the subcommand's parser does not know.

    Raises:
        UserError: there are some; the message names the nearest option.
    """
    if rest:
        options.parser.error(f"unrecognized arguments: {rest[0]}")


def manifest_path(options: argparse.Namespace) -> Path:
    """The path of the manifest.

    Raises:
        UserError: the file of ``--manifest`` does not exist.
    """
    from ickd_pl.teachers.manifest import manifest_of

    if options.manifest is None:
        return manifest_of(options.checkpoints)
    if not options.manifest.is_file():
        raise UserError(
            f"--manifest {options.manifest} does not exist: expected a file in the format of {manifest_of(Path())}"
        )
    return Path(options.manifest)


def _list(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from ickd_pl.teachers.manifest import packaged_manifest, read_manifest

    refuse_unknown(options, rest)
    manifest = manifest_path(options)
    teachers = read_manifest(manifest)
    sources: list[str] = []
    rows = [("teacher", "published", "measured", "status", "here", "sources")]
    for teacher in teachers.values():
        numbers = []
        for source in teacher.sources:
            shown = f"{source.url} (archive)" if source.member else source.url.replace(teacher.file, "<file>")
            if shown not in sources:
                sources.append(shown)
            numbers.append(str(sources.index(shown) + 1))
        measured = "-" if teacher.measured_acc1 is None else f"{teacher.measured_acc1:.2f}"
        here = _here(teacher, options.checkpoints)
        rows.append((teacher.name, f"{teacher.published_acc1:.2f}", measured, teacher.status, here, " ".join(numbers)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nAccuracy: CIFAR-100 test, in %. Sources, in the order in which fetch tries them:")
    for number, shown in enumerate(sources, start=1):
        print(f"  {number}  {shown}")
    print(f"\nFiles: {options.checkpoints / '<teacher>_vanilla' / 'ckpt_epoch_240.pth'}")
    print(f"Manifest: {manifest if manifest.exists() else packaged_manifest()}", flush=True)
    return 0


def _here(teacher: Teacher, checkpoints: Path) -> str:
    from ickd_pl.teachers.fetch import sha256_of

    path = teacher.path(checkpoints)
    if not path.is_file():
        return "no"
    if teacher.sha256 is None:
        return "yes, SHA-256 not recorded"
    return "yes, SHA-256 as recorded" if sha256_of(path) == teacher.sha256 else "SHA-256 DIFFERS from the recorded"


def _fetch(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from ickd_pl.teachers.fetch import fetch
    from ickd_pl.teachers.manifest import read_manifest

    refuse_unknown(options, rest)
    manifest = manifest_path(options)
    if options.all == bool(options.names):
        raise UserError("teachers fetch: expected the NAMEs of teachers, or --all; `teachers list` shows them")
    names = list(read_manifest(manifest)) if options.all else options.names
    fetch(
        names,
        options.checkpoints,
        manifest,
        options.origin,
        options.timeout,
        options.force,
        log=lambda line: print(line, flush=True),
    )
    return 0


def _verify(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from ickd_pl.plain import parse_yaml
    from ickd_pl.teachers.fetch import sha256_of
    from ickd_pl.teachers.manifest import read_manifest, record
    from ickd_pl.teachers.train import hold_to, measure
    from ickd_pl.weights.read import weights_file

    manifest = manifest_path(options)
    known = read_manifest(manifest).get(options.name)
    if options.file is None and known is None:
        raise UserError(f"teachers verify: {options.name} is not in {manifest}: set its weights file with --file FILE")
    if options.tolerance < 0:
        raise UserError(f"--tolerance: expected 0 or more points, got {options.tolerance:g}")
    path = options.file if options.file is not None else known.path(options.checkpoints) if known else Path()
    if not weights_file(path).is_file():
        raise UserError(f"{path} does not exist: get it with `teachers fetch {options.name}`, or set --file FILE")
    try:
        normalization = parse_yaml(options.normalization)
    except ValueError as error:
        raise UserError(f"--normalization: {error}") from error
    data, acc1 = measure(options.name, path, rest, normalization)
    expected, source = options.expected, "expected"
    if expected is None and known is not None and data == "cifar100":
        expected, source = known.published_acc1, "published"
    text = f"{options.name}: {acc1:.2f} percent on the test images of {data}"
    if expected is None:
        print(f"{text}; nothing to compare with (set --expected PERCENT)", flush=True)
        return 0
    otherwise = (
        f"{path} is not that teacher, or was trained with another normalisation: set --normalization, raise "
        f"--tolerance, train the teacher, or fetch it again (fetch accepts only the sha256 recorded in {manifest}; set "
        "it to null there to accept another file)"
    )
    print(hold_to(text, acc1, expected, options.tolerance, source, otherwise), flush=True)
    if known is not None and source == "published" and options.file is None:
        record(manifest, options.name, sha256_of(path), acc1)
    return 0


def _train(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from ickd_pl.teachers.train import train

    train(options.name, options.seed, options.output, options.overwrite, options.checkpoints, rest)
    return 0


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return value
