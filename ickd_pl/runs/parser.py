"""Command-line parsers that report an error in one line and accept no abbreviated options."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.cli import LightningArgumentParser

from ickd_pl.errors import UserError, near, printable
from ickd_pl.models.discovery import subclasses
from ickd_pl.runs.command_parser import CommandParser  # noqa: F401  also known by this path
from ickd_pl.runs.near_option import near_option
from ickd_pl.runs.short_help import shortened
from ickd_pl.strategies import LossStrategy

# The classes that an option may name.
BASES: dict[str, type] = {
    "strategies": LossStrategy,
    "data": pl.LightningDataModule,
    "logger": pl.loggers.Logger,
    "callbacks": pl.Callback,
}


class OneLineParser(LightningArgumentParser):
    """LightningCLI's parser; an error names the wrong value and the nearest accepted one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A mistyped option must not be accepted as an abbreviation of another one.
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"error: {printable(one_line(message, option_names(self)))}", file=sys.stderr)
        sys.exit(2)


class ShortHelpParser(OneLineParser):
    """A parser whose help has the options that most runs need."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        return shortened(super().format_help(*args, **kwargs))


class RaisingParser(OneLineParser):
    """A parser whose caller prints the mistake, once and with what it is a part of."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(one_line(message, option_names(self)))


def option_names(parser: Any) -> set[str]:
    """All options of a parser and its subcommands, without leading dashes."""
    names: set[str] = set()
    for action in parser._actions:  # private: argparse ArgumentParser._actions
        names |= {option.lstrip("-") for option in action.option_strings if option.startswith("--")}
        if "subcommand" in str(action.dest):
            for sub in (action.choices or {}).values():
                names |= option_names(sub)
    return {name for name in names if not name.endswith((".help", "+"))}


def one_line(message: str, options: Iterable[str]) -> str:
    """Shorten an error message of jsonargparse; an unknown message is only joined into one line.

    Args:
        message: the parser's message.
        options: known option names, for hints.
    """
    for rule in (_unknown, _unknown_class, _missing, _wrong_value):
        if text := rule(message, options):
            return text
    return " ".join(message.split())


def _unknown(message: str, options: Iterable[str]) -> str | None:
    # private: jsonargparse message "unrecognized arguments"
    if found := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
        flag = found[1].lstrip("-").split("=")[0]
        if not found[1].startswith("-"):
            return f"unexpected argument {found[1]}: options are given as --name value; see --help"
        return f"unknown option --{flag}: {near_option(flag, options)}"
    # private: jsonargparse message "option is not accepted"
    if found := re.search(
        r"does not accept (?:option|nested key) '([^']+)'|(?:[Oo]ption|Key) '([^']+)' is not (?:accepted|expected)",
        message,
    ):
        name = found[1] or found[2]
        return f"unknown setting {name}: {near_option(name, options, inner='.' not in name)}"
    return None


def _unknown_class(message: str, options: Iterable[str]) -> str | None:
    # private: jsonargparse message "dot import path string"
    found = re.search(r"dot import path string: (\S+)", message)
    if not found:
        return None
    key = re.search(r'key "([^"]+)"', message)
    where = key[1] if key else "an option"
    base = BASES.get(where.rpartition(".")[2])
    hints = [near(found[1], _subclass_names(base))] if base else []
    if base not in (LossStrategy, pl.LightningDataModule):
        hints.append("give the class's name, or its full import path")
    hint = " ".join(hints)
    return f"unknown class {found[1]} for {where}: {hint}"


def _missing(message: str, options: Iterable[str]) -> str | None:
    # private: jsonargparse message "is required"
    found = re.search(r"arguments are required: (.+)|Key \"([^\"]+)\" is required", message)
    if not found:
        return None
    # For an argument of a data set or method, the parser's message has only the argument's own name.
    bare = [name.rpartition("init_args.")[2] for name in (found[1] or found[2]).split(", ")]
    names = ", ".join(f"--{name.split('.', 1)[1]}" if "." in name else f"the argument {name}" for name in bare)
    return f"missing {names}: set it, or use a --config file that sets it (see configs/)"


def _wrong_value(message: str, options: Iterable[str]) -> str | None:
    # private: jsonargparse message "NestedArg"
    if found := re.search(r'key "([^"]+)".*NestedArg\(key=\'([\w.]+)\'', message, re.DOTALL):
        return f"{found[1]}.{found[2]}: name the class before its argument, as --{found[1]} CLASS (in a list: += CLASS)"
    # private: jsonargparse message "expected a type"
    if found := re.search(r'key "([^"]+)":\s+Expected an? (.+?)\. Got value: (.*)', message):
        return f"{found[1]}: expected {_plain_type(found[2])}, got {found[3].strip()}"
    # private: jsonargparse message "compute_fn failed"
    if found := re.search(r"Call to compute_fn of link .* failed: (.*)", message, re.DOTALL):
        return " ".join(found[1].split())
    # private: jsonargparse message "given value and subtypes"
    value, expected = re.search(r"Given value: (.*)", message), re.search(r"Subtypes: \[(.*)\]", message)
    key = re.search(r'key "([^"]+)"', message)
    if key and value and expected:
        return f"{key[1]}: expected {_plain_type(expected[1])}, got {value[1].strip()}"
    return None


def _plain_type(text: str) -> str:
    """Simplify ``<class 'int'>, typing.Optional[str]`` to ``int, Optional[str]``."""
    return re.sub(r"typing\.|<class '([\w.]+)'>", lambda found: found[1] or "", text)


def _subclass_names(base: type) -> list[str]:
    return [c.__name__ for c in subclasses(base) if c.__name__[0] != "_" and not inspect.isabstract(c)]
