"""``bench plan|run|status|report``: a whole table, methods x pairs x seeds, with one command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ickd_pl.errors import UserError
from ickd_pl.runs.parser import CommandParser

SUMMARY = "plan, run and report a whole table of methods, pairs and seeds"


def run(words: list[str]) -> int:
    """Run one of the subcommands; returns the exit status.

    Raises:
        UserError: a mistake in the words, the benchmark file or the results folder.
    """
    parser = CommandParser(prog="bench", description=SUMMARY[0].upper() + SUMMARY[1:] + ".")
    subparsers = parser.add_subparsers(dest="what", required=True, metavar="plan|run|status|report")
    for name, function, text in (
        ("plan", _plan, "show the cells, the steps and an estimate of the time"),
        ("run", _run, "do the cells; what is done is skipped, what is half done goes on"),
        ("status", _status, "show how far a benchmark is"),
        ("report", _report, "write report.md, .csv, .tex and .html"),
    ):
        sub = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(function=function)
        if name in ("plan", "run"):
            needed = "a benchmark file, such as configs/benchmarks/quick.yaml"
            sub.add_argument("--config", metavar="FILE", required=name == "plan", help=needed)
            sub.add_argument("--shard", default="1/1", metavar="I/N", help="only the I-th of N parts (for job arrays)")
        if name == "plan":
            sub.add_argument("--no-timing", action="store_true", help="no estimate: do not time a few steps")
            sub.add_argument("--commands", action="store_true", help="print each cell as a command of its own")
        if name == "run":
            mix = "mix results of different code; the report marks them"
            sub.add_argument("--accept-code", action="store_true", help=mix)
        sub.add_argument("--output", metavar="DIR", required=name != "plan", type=Path, help="the results folder")
    given = parser.parse_args(words)
    return int(given.function(given))


def _plan(given: Any) -> int:
    from ickd_pl.benchmark.estimate import describe

    benchmark = _benchmark(given)
    for line in describe(benchmark, given.output, _shard(given.shard), not given.no_timing, given.commands):
        _say(line)
    return 0


def _run(given: Any) -> int:
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    from ickd_pl.benchmark.report.write import write_report
    from ickd_pl.benchmark.runner import Runner

    benchmark = _benchmark(given)
    runner = Runner(benchmark, given.output, _shard(given.shard), given.accept_code, _say)
    try:
        left = runner.run()
    except SIGTERMException:
        raise
    except (KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C within a fit into an exit of its own
        print("stopped by Ctrl-C: the same command goes on", file=sys.stderr, flush=True)
        return 130
    for path in write_report(given.output):
        _say(f"wrote {path}")
    if left.busy:
        _say(
            f"left to another process: {len(left.busy)} of this part's runs; see `bench status --output {given.output}`"
        )
    if left.untaught:
        raise UserError("; ".join(left.untaught))
    return 0


def _status(given: Any) -> int:
    from ickd_pl.benchmark.status import status

    print(status(given.output))
    return 0


def _report(given: Any) -> int:
    from ickd_pl.benchmark.report.write import summary_table, write_report

    _say(summary_table(given.output))
    for path in write_report(given.output):
        _say(f"wrote {path}")
    return 0


def _benchmark(given: Any) -> Any:
    from ickd_pl.benchmark.kept import check_kept
    from ickd_pl.benchmark.plan import Benchmark
    from ickd_pl.benchmark.records import benchmark_file

    if given.config is not None:
        return Benchmark.read(given.config)
    path = given.output / "benchmark.yaml"
    if not path.is_file():
        raise UserError(f"bench run: give --config FILE; {given.output} holds no benchmark that could go on")
    settings = benchmark_file(given.output)
    _say(check_kept(settings, path))
    return Benchmark.of(settings, path)


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard: expected I/N with I from 1 to N, such as 1/4, got {text}")
    return int(index), int(count)


def _say(text: str) -> None:
    print(text, flush=True, file=sys.stdout)
