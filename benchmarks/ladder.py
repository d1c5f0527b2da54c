"""From a plain loop, as the neighbours write it, to ours, setting by setting: what a step costs. Writes docs/speed.md.

    python benchmarks/ladder.py --quick                   a minute: one pair, KD
    python benchmarks/ladder.py --check                   is the plain loop as fast as the neighbours' own loops?
    python benchmarks/ladder.py --docs docs/speed.md      all of it; --budget MINUTES bounds it
    python benchmarks/ladder.py --scale                   cost against members of a pack, batch and ranks

Every contestant is a process that stays: whole runs of ``fit`` or of a pack with everything that configs/base.yaml
turns on, stopped between steps until their turn. Only one works at a time, the turns alternate, so that a noisy
machine is noisy for all; ratios are medians over the rounds. What is finished is in OUTPUT/ladder.json: the same
command goes on from there. Settings that the installed version does not have are left out, with a word.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from ladder_parts import report
from ladder_parts.referee import Process, Rules, measure
from ladder_parts.rungs import BEFORE, METHODS, PAIRS, ROWS, Group, check_groups, ladder_groups, scale_groups

REPOSITORY = Path(__file__).resolve().parents[1]
# Seconds that a process takes to start on one core, and that a compiled step takes besides.
START, COMPILE = 9, 60


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shipped = sorted(path.stem for path in (REPOSITORY / "configs" / "pairs").glob("*.yaml"))
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=shipped, metavar="PAIR")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=(*ROWS, "crd"), metavar="METHOD")
    parser.add_argument("--quick", action="store_true", help="one pair and method, few rungs and rounds")
    parser.add_argument("--check", action="store_true", help=f"only the plain loop against {BEFORE}; 1 if it is off")
    parser.add_argument("--scale", action="store_true", help="only cost against members, batch and ranks")
    parser.add_argument("--rungs", nargs="+", metavar="WORD", help="only contestants with one of these in their names")
    parser.add_argument("--rounds", type=int, help="turns of each contestant; default 5, quick 2")
    parser.add_argument("--steps", type=int, default=20, help="of a turn at most")
    parser.add_argument("--seconds", type=float, help="that a turn should take; default 3, quick 1")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of every contestant")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, help="to train on; default 50,000, quick 5,000")
    parser.add_argument("--test_images", type=int, default=2000, help="of an evaluation")
    parser.add_argument("--budget", type=float, default=240, metavar="MINUTES", help="after which nothing is begun")
    parser.add_argument("--before", type=Path, help=f"a folder with {BEFORE}; default: taken from the repository")
    parser.add_argument("--output", type=Path, default=Path("outputs/ladder"))
    parser.add_argument("--docs", type=Path, help="a page whose tables, between its markers, are replaced")
    options = parser.parse_args(words)
    for name, quick, usual in (("rounds", 2, 5), ("seconds", 1.0, 3.0), ("images", 5000, 50_000)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    for name in ("rounds", "steps", "seconds", "threads", "batch", "images", "test_images", "budget"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name}: expected a number above 0, got {getattr(options, name)}")
    if options.test_images > 10_000:
        parser.error(f"--test_images: expected at most 10,000, got {options.test_images:,}")
    if options.quick:
        options.pairs, options.methods = options.pairs[:1], ["kd"] if "kd" in options.methods else options.methods[:1]
    if options.docs is not None and not options.docs.is_file():
        parser.error(f"--docs: there is no {options.docs}")
    return options


def groups_of(options: argparse.Namespace, cuda: bool) -> list[Group]:
    if options.check:
        groups = check_groups(options.pairs, options.methods)
    elif options.scale:
        groups = scale_groups(options.pairs, options.quick, cuda)
    else:
        groups = ladder_groups(options.pairs, options.methods, options.quick, cuda)
    if options.rungs:
        chosen = [
            replace(group, contestants=tuple(c for c in group.contestants if any(w in c.label for w in options.rungs)))
            for group in groups
        ]
        groups = [group for group in chosen if group.contestants]
    return groups


def older_version(given: Path | None, folder: Path) -> Path | None:
    """The folder of the version BEFORE, unpacked from the repository's history; None where there is none."""
    if given is not None:
        return given.resolve()
    if not (folder / "ickd_pl").is_dir():
        done = subprocess.run(
            ["git", "archive", "--format=zip", BEFORE], cwd=REPOSITORY, capture_output=True, check=False
        )
        if done.returncode:
            return None
        with zipfile.ZipFile(io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder)
    return folder.resolve()


def version() -> str:
    """The last commit of what is measured, so that writing the pages changes nothing."""
    found = []
    for words in (("log", "-1", "--format=%h"), ("status", "--porcelain")):
        command = ["git", *words, "--", "ickd_pl", "configs", "benchmarks"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            return "no commit"
        found.append(done.stdout.strip())
    return f"commit {found[0]}{' with changes' if found[1] else ''}"


def machine(options: argparse.Namespace, groups: Sequence[Group], folder: Path) -> dict[str, Any]:
    """What the machine can do, and the operations of the steps; writes the teachers that all read."""
    spec = {
        "kind": "machine",
        "seconds": options.seconds / 10,
        "weights": str(folder),
        "pairs": {pair: sorted({g.methods[0] for g in groups if g.pair == pair}) for pair in options.pairs},
    }
    process = Process(spec, REPOSITORY, folder, options.threads, {})
    try:
        return process.answer()
    finally:
        process.close()


def estimate(groups: Sequence[Group], options: argparse.Namespace) -> float:
    """Minutes, roughly: starts, first steps, turns."""
    cores, total = os.cpu_count() or 1, 0.0
    for group in groups:
        runs = sum(len(group.methods) if c.separate else 1 for c in group.contestants)
        compiled = sum(c.kind != "plain" and ("compile" in c.label or "fast" in c.label) for c in group.contestants)
        turns = len(group.contestants) * (options.rounds + 1) * 1.25 * options.seconds
        total += runs * START / cores + compiled * COMPILE + turns
    return total / 60


def rules_of(options: argparse.Namespace, pair: str, folder: Path, scratch: Path, before: Path | None) -> Rules:
    text = (REPOSITORY / "configs" / "pairs" / f"{pair}.yaml").read_text(encoding="utf-8")
    networks = yaml.safe_load(text)["model"]
    shared = {
        "student": networks["student"],
        "teacher": networks["teacher"],
        "weights": str((folder / f"{networks['teacher']}.pth").resolve()),
        "images": options.images,
        "test_images": options.test_images,
        "batch": options.batch,
    }
    return Rules(options.steps, options.seconds, options.rounds, options.threads, shared, (REPOSITORY, before), scratch)


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    began, results = time.perf_counter(), options.output / "ladder.json"
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(options, name) for name in ("batch", "images", "test_images", "threads")}
    found: dict[str, Any] = {"options": settings, "version": version(), "groups": {}}
    if results.is_file():
        stored = json.loads(results.read_text(encoding="utf-8"))
        if (stored["options"], stored["version"]) != (settings, found["version"]):
            print(f"{results} is of {stored['version']}, {stored['options']}: give another --output", file=sys.stderr)
            return 2
        found = stored
    with tempfile.TemporaryDirectory(prefix="ladder-") as scratch:
        folder = options.output.resolve()
        before = older_version(options.before, folder / BEFORE)
        groups = groups_of(options, torch.cuda.is_available())
        left = [group for group in groups if group.name not in found["groups"]]
        print(
            f"{len(left)} of {len(groups)} groups to measure, about {estimate(left, options):.0f} minutes", flush=True
        )
        if left:
            known = machine(options, groups, folder)
            if "machine" in found:
                known["gflop"] = {p: {**found["machine"]["gflop"].get(p, {}), **m} for p, m in known["gflop"].items()}
            found |= {"machine": known, "date": time.strftime("%Y-%m-%d")}
        for number, group in enumerate(left):
            seconds = 60 * options.budget - (time.perf_counter() - began)
            if seconds <= 0:
                print(f"not measured, the budget is used up: {', '.join(each.name for each in left[number:])}")
                break
            print(group.name, flush=True)
            rules = rules_of(options, group.pair, folder, Path(scratch), before)
            deadline = time.perf_counter() + seconds / (len(left) - number)
            found["groups"][group.name] = measure(group, rules, deadline, lambda text: print(text, flush=True))
            results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(Path(scratch) / "contestants", ignore_errors=True)
    text, right = report.as_text(found), True
    print(text)
    if options.check:
        verdict, right = report.accepted(found)
        print(verdict)
    (options.output / "ladder.md").write_text(text, encoding="utf-8")
    pictures = [options.output / "ladder.png"]
    if options.docs is not None:
        pictures.append(options.docs.with_suffix(".png"))
        picture = f"![bars of the time of a step]({pictures[-1].name})"
        report.write_between_markers(options.docs, "ladder", f"{picture}\n\n{text}")
    try:
        for picture in pictures:
            report.draw(found, picture)
    except ImportError:
        print("no picture: matplotlib is not installed (pip install '.[demo]' in the clone)")
    print(f"{time.perf_counter() - began:.0f} seconds; {results}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
