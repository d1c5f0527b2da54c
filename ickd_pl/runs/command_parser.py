"""The parser of the commands besides Lightning's; it needs no Lightning, whose import takes seconds."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import Any, NoReturn

from ickd_pl.errors import UserError, near


class CommandParser(argparse.ArgumentParser):
    """``argparse`` that raises :class:`UserError` instead of printing its usage."""

    def __init__(self, **kwargs: Any) -> None:
        # Raw format, so that tables in an epilog keep their lines; a description is one paragraph.
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs["description"] = textwrap.fill(kwargs.get("description") or "", 80)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        # private: argparse message "unrecognized arguments"
        if found := re.search(r"unrecognized arguments: (\S+)", message):
            known = re.findall(r"--?\w[\w-]*", self.format_usage())
            raise UserError(f"{self.prog}: unknown {found[1]}: {near(found[1].split('=')[0], known)}")
        # private: argparse message "invalid choice"
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.+)\)", message):
            choices = re.findall(r"[\w-]+", found[2])
            raise UserError(f"{self.prog}: unknown {found[1]}: {near(found[1], choices)}")
        raise UserError(f"{self.prog}: {message}; see --help")
