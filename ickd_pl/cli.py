"""The command line: ``fit``, ``validate``, ``test`` and ``predict`` with YAML files and options, and other commands."""

from __future__ import annotations

import io
import logging
import signal
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ickd_pl import commands
from ickd_pl.errors import LostRank, NonFiniteLoss, UserError, near
from ickd_pl.runs.configs import check_text, find_configs, limit_parser
from ickd_pl.runs.console import warn
from ickd_pl.runs.fit import IckdCLI, with_checkpoint_settings
from ickd_pl.runs.stop import Stopped, explain, handled_signals, report_from
from ickd_pl.runs.user_errors import user_error

LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: the command-line arguments without the program's name; None: those in ``sys.argv``.

    Returns:
        The exit status: 0; 2 after a user's error and 3 after a loss that is infinite or NaN, printed as one line;
        143, 130 and 138 after SIGTERM, Ctrl-C and SIGUSR1, or 0 if SLURM has requeued the job.
    """
    _quiet()
    args = list(sys.argv[1:] if args is None else args)
    with handled_signals(), tempfile.TemporaryDirectory() as scratch:
        try:
            known = [*LIGHTNING_COMMANDS, *commands.names()]
            limit_parser()
            for arg in args:
                flag, equals, value = arg.partition("=")
                check_text(value or arg, flag if equals and flag.startswith("--") else "an argument")
            if not args:
                raise UserError(f"expected a command ({', '.join(known)}); see --help")
            if args[0] in commands.names():
                return int(commands.load(args[0]).run(args[1:]))
            if not args[0].startswith("-") and args[0] not in LIGHTNING_COMMANDS:
                raise UserError(f"unknown command {args[0]}: {near(args[0], known)}")
            IckdCLI(with_checkpoint_settings(find_configs(args), Path(scratch)), _other_commands())
        except Stopped as stop:
            return explain(stop)
        except SystemExit as stop:  # Lightning makes one of an interrupt that did not come by the signal
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            return explain(Stopped(signal.SIGINT))
        except Exception as error:
            cause = user_error(error)
            if cause is None:
                raise
            if isinstance(cause, NonFiniteLoss) and cause.rank is not None:
                return report_from(cause.rank, f"error: {cause}", cause.exit_status)
            if isinstance(cause, LostRank):
                print(f"error: {cause}", file=sys.stderr, flush=True)  # each rank that is left
            else:
                warn(f"error: {cause}")
            return cause.exit_status
    return 0


def _other_commands() -> str:
    lines = [f"{name}: {commands.load(name).SUMMARY}" for name in commands.names()]
    return "Further commands (see NAME --help): " + "; ".join(lines) + "." if lines else ""


def _quiet() -> None:
    """Hide Lightning's warnings about intended behaviour, and its advertisements; print any file's name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # private: lightning messages of warnings
    for message in (
        "LightningCLI's args parameter is intended",
        r"Found \d+ module\(s\) in eval mode",  # the teacher
        "Be aware that when using `ckpt_path`, callbacks used",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}")
    for logger in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):
        logging.getLogger(logger).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    # private: lightning messages of loggers
    return not any(text in record.getMessage() for text in ("Tip:", "Seed set to"))


def script() -> None:
    """The console script ``ickd``, and ``python -m ickd_pl``: they find modules of the current folder.

    As ``python cli.py`` does, but after the installed packages, so that no file there takes the place of one.
    """
    if not getattr(sys.flags, "safe_path", False):
        with suppress(OSError):  # the folder may be gone
            folder = str(Path.cwd())
            sys.path += [] if {"", folder} & set(sys.path) else [folder]
    sys.exit(main())
