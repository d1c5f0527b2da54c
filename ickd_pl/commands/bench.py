"""``bench plan|run|status|report``: run a whole benchmark table, methods x pairs x seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ickd_pl.errors import UserError
from ickd_pl.runs.command_parser import CommandParser
from ickd_pl.runs.console import log, warn

SUMMARY = "plan, run and report a whole table of methods, pairs and seeds"


def run(args: list[str]) -> int:
    """Run a subcommand and return the exit status.

    Raises:
        UserError: an error in the arguments, the benchmark file or the results folder.
    """
    parser = CommandParser(prog="bench", description=SUMMARY[0].upper() + SUMMARY[1:] + ".")
    subparsers = parser.add_subparsers(dest="what", required=True, metavar="plan|run|status|report")
    for name, function, text in (
        ("plan", _plan, "show the cells, the steps and an estimate of the time"),
        ("run", _run, "run the cells; skip finished ones and resume unfinished ones"),
        ("status", _status, "show the progress of a benchmark"),
        ("report", _report, "write report.md, .csv, .tex and .html"),
    ):
        sub = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(function=function)
        if name in ("plan", "run"):
            needed = "a benchmark file, such as configs/benchmarks/quick.yaml"
            sub.add_argument("--config", metavar="FILE", required=name == "plan", help=needed)
            sub.add_argument("--shard", default="1/1", metavar="I/N", help="only the I-th of N parts (for job arrays)")
        if name == "plan":
            sub.add_argument("--no-timing", action="store_true", help="do not time a few steps for an estimate")
            sub.add_argument("--commands", action="store_true", help="print the command of each cell")
        if name == "run":
            mix = "allow results of different code; the report marks them"
            sub.add_argument("--accept-code", action="store_true", help=mix)
            stop = "stop after N minutes with a checkpoint and status 142; the same command goes on"
            sub.add_argument("--minutes", metavar="N", help=stop)
        sub.add_argument("--output", metavar="DIR", required=name != "plan", type=Path, help="the results folder")
    options = parser.parse_args(args)
    return int(options.function(options))


def _plan(options: Any) -> int:
    from ickd_pl.benchmark.estimate import describe

    benchmark = _benchmark(options)
    for line in describe(benchmark, options.output, _shard(options.shard), not options.no_timing, options.commands):
        log(line)
    return 0


def _run(options: Any) -> int:
    from ickd_pl.benchmark.time_limit import ALARM, minutes_of, stopped_after
    from ickd_pl.runs.signals import Stopped

    minutes = minutes_of(options.minutes)
    try:
        with stopped_after(minutes):  # from here on: the start takes time too
            return _run_cells(options)
    except Stopped as stop:
        if stop.signum != ALARM:
            raise
        warn(f"stopped by --minutes {options.minutes}: run the same command to resume")
        return int(stop.code or 0)


def _run_cells(options: Any) -> int:
    from ickd_pl.benchmark.report.write import write_report
    from ickd_pl.benchmark.runner import Runner

    benchmark = _benchmark(options)
    runner = Runner(benchmark, options.output, _shard(options.shard), options.accept_code, log)
    left = runner.run()
    for path in write_report(options.output):
        log(f"wrote {path}")
    if left.busy:
        log(
            f"left to another process: {len(left.busy)} of this part's runs; "
            f"see `bench status --output {options.output}`"
        )
    if left.no_teacher:
        raise UserError("; ".join(left.no_teacher))
    return 0


def _status(options: Any) -> int:
    from ickd_pl.benchmark.status import status

    log(status(options.output))
    return 0


def _report(options: Any) -> int:
    from ickd_pl.benchmark.report.write import summary_table, write_report

    log(summary_table(options.output))
    for path in write_report(options.output):
        log(f"wrote {path}")
    return 0


def _benchmark(options: Any) -> Any:
    from ickd_pl.benchmark.kept import check_kept
    from ickd_pl.benchmark.plan import Benchmark
    from ickd_pl.benchmark.records import benchmark_file

    if options.config is not None:
        return Benchmark.read(options.config)
    path = options.output / "benchmark.yaml"
    if not path.is_file():
        raise UserError(f"bench run: set --config FILE: {options.output} contains no benchmark to resume")
    settings = benchmark_file(options.output)
    log(check_kept(settings, path))
    return Benchmark.of(settings, path)


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard: expected I/N with I from 1 to N, such as 1/4, got {text}")
    return int(index), int(count)
