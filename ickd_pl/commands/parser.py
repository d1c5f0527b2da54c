"""The parser of the small commands: a mistake is one line, and no flag may be abbreviated."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from ickd_pl.errors import UserError, near


class CommandParser(argparse.ArgumentParser):
    """``argparse`` that raises :class:`UserError` instead of printing its usage."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"unrecognized arguments: (\S+)", message):
            known = [option for action in self._actions for option in action.option_strings]
            raise UserError(f"{self.prog}: unknown {found[1]}: {near(found[1].split('=')[0], known)}")
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.+)\)", message):
            choices = re.findall(r"[\w-]+", found[2])
            raise UserError(f"{self.prog}: unknown {found[1]}: {near(found[1], choices)}")
        raise UserError(f"{self.prog}: {message}; see --help")
