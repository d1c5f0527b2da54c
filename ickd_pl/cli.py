"""The command line: ``fit``, ``validate``, ``test`` and ``predict`` with YAML files and options, and other commands."""

from __future__ import annotations

import io
import logging
import signal
import sys
import textwrap
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ickd_pl import commands
from ickd_pl.errors import LostRank, NonFiniteLoss, UserError, near
from ickd_pl.runs.console import warn
from ickd_pl.runs.signals import Stopped, explain, handled_signals, leave_at_once, lost_stop

LIGHTNING_COMMANDS = {
    "fit": "train a student, or go on with a run; without methods also a teacher",
    "validate": "evaluate a trained student on the validation images",
    "test": "evaluate a trained student on the test images",
    "predict": "write a trained student's predictions for images to a file",
}
# Each works on an empty folder after those before it; the images come with scikit-learn.
FIVE = """\
Five things to do, here on small images of digits (no download; a minute or two each):

1. Train a teacher. `{ickd} teachers list` shows those that are published for CIFAR-100.
   {ickd} teachers train resnet20 --data Digits --trainer.max_epochs 12 --model.milestones '[8,9,11]'
2. Train a student that learns from it.
   {ickd} fit --config configs/base.yaml --config configs/pairs/resnet20_resnet8.yaml \\
       --config configs/methods/ickd_kl.yaml --data Digits --trainer.max_epochs 12 --model.milestones '[8,9,11]' \\
       --model.teacher_weights checkpoints/digits/resnet20_vanilla/ckpt_epoch_12.pth
3. Test the student.
   {ickd} test --ckpt_path outputs/digits/resnet20_resnet8/ickd_kd/seed_0/checkpoints/last.ckpt
4. Export it alone, for use elsewhere.
   {ickd} export --ckpt_path outputs/digits/resnet20_resnet8/ickd_kd/seed_0/checkpoints/last.ckpt \\
       --format safetensors
5. Train a whole table of methods and seeds, with a report.
   {ickd} bench run --config configs/benchmarks/demo.yaml --output outputs/demo
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: the command-line arguments without the program's name; None: those in ``sys.argv``.

    Returns:
        The exit status: 0; 2 after a user's error and 3 after a loss that is infinite or NaN, printed as one line;
        143, 130 and 138 after SIGTERM, Ctrl-C and SIGUSR1, or 0 if SLURM has requeued the job; 142 after --minutes.
    """
    import tempfile

    _quiet()
    args = list(sys.argv[1:] if args is None else args)
    with handled_signals(), tempfile.TemporaryDirectory() as scratch:
        try:
            return _run(args, Path(scratch))
        except Stopped as stop:
            return explain(stop)
        except SystemExit as stop:  # Lightning makes one of an interrupt that did not come by the signal
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            return explain(Stopped(signal.SIGINT))
        except Exception as error:
            if lost := lost_stop():
                return explain(lost)
            cause = error if isinstance(error, UserError) else _user_error(error)
            if cause is None:
                raise
            if isinstance(cause, NonFiniteLoss) and cause.rank is not None:
                from ickd_pl.runs.stop import report_from

                return report_from(cause.rank, f"error: {cause}", cause.exit_status)
            if isinstance(cause, LostRank):
                print(f"error: {cause}", file=sys.stderr, flush=True)  # each rank that is left
            else:
                warn(f"error: {cause}")
            return cause.exit_status


def _run(args: list[str], scratch: Path) -> int:
    """Run a command, with a folder for temporary files; returns the exit status."""
    # Imports take up to seconds, in which a signal may come: here they are within main(), Lightning's only if needed.
    from ickd_pl.runs.configs import check_text, find_configs, limit_parser

    known = [*LIGHTNING_COMMANDS, *commands.names()]
    limit_parser()
    for arg in args:
        flag, equals, value = arg.partition("=")
        check_text(value or arg, flag if equals and flag.startswith("--") else "an argument")
    if not args:
        print(FIVE.format(ickd=_program()), file=sys.stderr)
        raise UserError(f"expected a command ({', '.join(known)}); see --help")
    if args[0] in ("-h", "--help"):
        print(_help())
        return 0
    if args[0] in commands.names():
        return int(commands.load(args[0]).run(args[1:]))
    if not args[0].startswith("-") and args[0] not in LIGHTNING_COMMANDS:
        raise UserError(f"unknown command {args[0]}: {near(args[0], known)}")
    from ickd_pl.runs.fit import IckdCLI, with_checkpoint_settings

    IckdCLI(with_checkpoint_settings(find_configs(args), scratch))
    return 0


def _user_error(error: Exception) -> UserError | None:
    from ickd_pl.runs.user_errors import user_error

    return user_error(error)


def _help() -> str:
    """The text of ``--help``: the parser that Lightning would build for it takes seconds."""
    known = {**LIGHTNING_COMMANDS, **{name: commands.load(name).SUMMARY for name in commands.names()}}
    width = 2 + max(map(len, known))
    lines = [
        textwrap.fill(f"{name:{width}}{summary}", 80, initial_indent="  ", subsequent_indent=" " * (2 + width))
        for name, summary in known.items()
    ]
    return "\n".join(
        [
            "usage: ickd COMMAND [options]",
            "",
            "Knowledge distillation.",
            "",
            "commands (COMMAND --help shows its options):",
            *lines,
            "",
            f"{', '.join(LIGHTNING_COMMANDS)} take --config FILE, more than once, and options",
            "such as --model.lr 0.1; --print_config shows the whole configuration, --help=all",
            "every option. Without a command, ickd shows five to begin with.",
        ]
    )


def _program() -> str:
    """How this command line was started, for commands to copy."""
    started = Path(sys.argv[0])
    return {"cli.py": "python cli.py", "__main__.py": "python -m ickd_pl"}.get(started.name, "ickd")


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
    leave_at_once()
    if not getattr(sys.flags, "safe_path", False):
        with suppress(OSError):  # the folder may be gone
            folder = str(Path.cwd())
            sys.path += [] if {"", folder} & set(sys.path) else [folder]
    status = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()  # a signal while Python ends would lose it
    sys.exit(status)
