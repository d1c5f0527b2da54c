"""``data``: say what a copy of CIFAR is."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ickd_pl.errors import UserError, printable
from ickd_pl.runs.command_parser import CommandParser

if TYPE_CHECKING:
    from ickd_pl.data.sources.verify import Split

SUMMARY = "check a copy of CIFAR: its form, digests, mean and std, and images that are there twice"
_FORMS = """PATH is what --data.archive takes: the official archive or its folder; {train,test}/<class>/*.png as folder,
zip or tar; a folder of parquet files with columns img and fine_label (of CIFAR-10: label); or an .npz with x_train,
y_train, x_test and y_test. The content says which of them it is. A copy of CIFAR-100 that is not the published one is
refused, with what differs. Nothing is kept."""


def run(args: Sequence[str]) -> int:
    """Print what a copy is, or refuse it.

    Raises:
        UserError: wrong arguments, or a copy that is missing, damaged or not the published one.
    """
    parser = CommandParser(prog="data", description=f"{SUMMARY[0].upper()}{SUMMARY[1:]}.", epilog=_FORMS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="check")
    check = commands.add_parser("check", description=f"{SUMMARY[0].upper()}{SUMMARY[1:]}.", epilog=_FORMS)
    check.add_argument("path", metavar="PATH", help="see below")
    check.add_argument("--data", default="CIFAR100", choices=["CIFAR100", "CIFAR10"], help="default: CIFAR100")
    from ickd_pl.data.given import given_path, there

    options = parser.parse_args(args)
    if not there(given_path(options.path, "PATH"), "PATH"):
        raise UserError(f"{printable(options.path)} does not exist: give a copy of {options.data}; see --help")
    print(_checked(options.data, options.path), flush=True)
    return 0


def _checked(name: str, path: str) -> str:
    from ickd_pl import data as modules
    from ickd_pl.data.sources.recognise import TITLES
    from ickd_pl.data.sources.verify import Split

    with tempfile.TemporaryDirectory() as root:
        data = getattr(modules, name)(root, download=False, archive=path)
        data.prepare_data()
        splits = {}
        for split in ("train", "test"):
            image, label = data._part(split)
            splits[split] = Split(image.numpy(), label.numpy().astype("uint8"))
        head = f"{name} from {path} ({TITLES[data._form()]}), {'as published' if data.digests else 'not verified'}"
    return "\n".join([head, "", *_table(splits), "", *_repeated(splits)])


def _table(splits: dict[str, Split]) -> list[str]:
    from ickd_pl.data.sources.verify import image_digests, mean_std, set_digest

    lines = []
    for name, split in splits.items():
        mean, std = (" ".join(f"{value:.5f}" for value in values) for values in mean_std(split))
        lines += [
            f"{name:5}  {len(split.label):,} images, mean {mean}, std {std}",
            f"       digest {set_digest(image_digests(split))}",
        ]
    return lines


def _repeated(splits: dict[str, Split]) -> list[str]:
    """Lines on images that are equal pixel by pixel."""
    from ickd_pl.data.sources.verify import SPLITS, image_digests

    labels: dict[str, dict[bytes, list[int]]] = {}
    lines = []
    for name, split in splits.items():
        own = labels[name] = {}
        for digest, label in zip(image_digests(split, labelled=False), split.label.tolist(), strict=True):
            own.setdefault(digest, []).append(label)
        again = [each for each in own.values() if len(each) > 1]
        other = sum(len(set(each)) > 1 for each in again)
        lines.append(f"{len(again)} {SPLITS[name]} images are there more than once, {other} of them under two labels")
    both = [digest for digest, each in labels["test"].items() for _ in each if digest in labels["train"]]
    other = sum(not set(labels["test"][digest]) <= set(labels["train"][digest]) for digest in both)
    lines.append(f"{len(both)} test images equal a training image, {other} of them under another label")
    return lines
