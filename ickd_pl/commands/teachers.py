"""``teachers``: the benchmark's teachers, where they are had, and which are here."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ickd_pl.commands.parser import CommandParser
from ickd_pl.errors import UserError

if TYPE_CHECKING:
    from ickd_pl.weights.manifest import Teacher

SUMMARY = "list and fetch the benchmark's teachers"


def run(words: Sequence[str]) -> int:
    """Hand the words to a subcommand, and return its exit status.

    A subcommand is a function that adds its parser, with ``run(given, rest) -> int`` and ``parser`` among the
    defaults; ``rest`` are the words that its parser does not know.
    """
    parser = CommandParser(prog="teachers", description=f"{SUMMARY[0].upper()}{SUMMARY[1:]}.")
    subparsers = parser.add_subparsers(metavar="list|fetch", dest="subcommand", required=True)
    for add in (add_list, add_fetch):
        add(subparsers)
    given, rest = parser.parse_known_args(list(words))
    return int(given.run(given, rest))


def add_list(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "list",
        help="each teacher, its published accuracy, whether it is here, its sources",
        description="Each teacher, its published CIFAR-100 test accuracy, whether it is here, and its sources.",
    )
    add_places(parser)
    parser.set_defaults(run=_list, parser=parser)


def add_fetch(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "fetch",
        help="get teachers from their mirrors, or from a file, folder or archive",
        description="Get teachers from their mirrors, tried in order, or with --from without a network. A file that "
        "is damaged, of another network, or not the recorded one is refused and leaves nothing behind.",
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
        help="how long a mirror may be silent or crawl before the next is tried; default 30",
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there, once the new one is good")
    add_places(parser)
    parser.set_defaults(run=_fetch, parser=parser)


def add_places(parser: argparse.ArgumentParser) -> None:
    """``--checkpoints`` and ``--manifest``, which all subcommands share."""
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR", help="default: checkpoints"
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="names, sources and hashes; default: DIR/manifest.json, which starts as the shipped one",
    )


def no_rest(given: argparse.Namespace, rest: Sequence[str]) -> None:
    """For a subcommand that takes no words but its own.

    Raises:
        UserError: there are some; with the nearest option.
    """
    if rest:
        given.parser.error(f"unrecognized arguments: {rest[0]}")


def manifest_path(given: argparse.Namespace) -> Path:
    """The manifest that the words name.

    Raises:
        UserError: a ``--manifest`` that is not there.
    """
    from ickd_pl.weights.manifest import manifest_of

    if given.manifest is None:
        return manifest_of(given.checkpoints)
    if not given.manifest.is_file():
        raise UserError(f"--manifest {given.manifest} does not exist: give a file in the form of {manifest_of(Path())}")
    return Path(given.manifest)


def _list(given: argparse.Namespace, rest: Sequence[str]) -> int:
    from ickd_pl.weights.manifest import packaged_manifest, read_manifest

    no_rest(given, rest)
    manifest = manifest_path(given)
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
        here = _here(teacher, given.checkpoints)
        rows.append((teacher.name, f"{teacher.published_acc1:.2f}", measured, teacher.status, here, " ".join(numbers)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nAccuracy: CIFAR-100 test, percent. Sources, in the order in which fetch tries them:")
    for number, shown in enumerate(sources, start=1):
        print(f"  {number}  {shown}")
    print(f"\nFiles: {given.checkpoints / '<teacher>_vanilla' / 'ckpt_epoch_240.pth'}")
    print(f"Manifest: {manifest if manifest.exists() else packaged_manifest()}", flush=True)
    return 0


def _here(teacher: Teacher, checkpoints: Path) -> str:
    from ickd_pl.weights.fetch import sha256_of

    path = teacher.path(checkpoints)
    if not path.is_file():
        return "no"
    if teacher.sha256 is None:
        return "yes, SHA-256 not recorded"
    return "yes, SHA-256 as recorded" if sha256_of(path) == teacher.sha256 else "ANOTHER FILE than recorded"


def _fetch(given: argparse.Namespace, rest: Sequence[str]) -> int:
    from ickd_pl.weights.fetch import fetch
    from ickd_pl.weights.manifest import read_manifest

    no_rest(given, rest)
    manifest = manifest_path(given)
    if given.all == bool(given.names):
        raise UserError("teachers fetch: give the NAMEs of teachers, or --all; `teachers list` shows them")
    names = list(read_manifest(manifest)) if given.all else given.names
    fetch(
        names,
        given.checkpoints,
        manifest,
        given.origin,
        given.timeout,
        given.force,
        say=lambda line: print(line, flush=True),
    )
    return 0


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return value
