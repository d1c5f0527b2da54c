"""Look through a pickle before torch reads it: torch refuses code, but not what takes its memory, time or stack."""

from __future__ import annotations

import pickletools
from pickle import UnpicklingError
from typing import IO, NamedTuple, NoReturn

from ickd_pl.errors import UserError

MAX_DEPTH = 100
"""Levels of tuples: the hash of a very deep one, as a key of a dictionary, would end the process."""
MAX_STEPS = 2_000_000
"""Instructions of one pickle; a checkpoint with an optimizer has about a hundred for each tensor."""
# Functions that torch allows and that go through what they are given, one value after the other.
_GOES_THROUGH = ("collections Counter", "collections OrderedDict", "torch Size", "builtins set", "__builtin__ set")
# Makes as many bytes as it is told to; weights never need it.
_BYTEARRAY = ("builtins bytearray", "__builtin__ bytearray")


class _Value(NamedTuple):
    """What is known of a value on the pickle's stack.

    Attributes:
        depth: levels of tuples in it.
        made: it is the result of a call, whose size is unknown.
        given: a tuple of arguments with such a result.
        function: the name, of a function.
    """

    depth: int = 0
    made: bool = False
    given: bool = False
    function: str = ""


def check_pickle(path: object, source: bytes | IO[bytes]) -> None:
    """Follow one pickle without building anything.

    Args:
        path: of the file, for the message.
        source: the pickle; a file is left at its end.

    Raises:
        UserError: it nests too deep, is too long, or makes values of any size.
        UnpicklingError: it is not a pickle.
    """
    try:
        _follow(path, source)
    except UserError:
        raise
    except Exception as error:  # pickletools raises many types
        raise UnpicklingError(f"not a pickle: {error}") from error


def _follow(path: object, source: bytes | IO[bytes]) -> None:
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[object, _Value] = {}
    for step, (code, argument, _) in enumerate(pickletools.genops(source)):
        name = code.name
        below, to_mark = _TAKES[name]
        if step >= MAX_STEPS:
            _refuse(path, f"it has more than {MAX_STEPS} values")
        if name == "MARK":
            marks.append(len(stack))
        elif "PUT" in name or name == "MEMOIZE":
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_Value(function=str(argument)))
            if argument in _BYTEARRAY:
                _refuse(path, "it makes bytes of any number")
        elif not below and not to_mark:
            stack.append(_PLAIN)
        else:
            start = (marks.pop() if to_mark else len(stack)) - below
            taken = stack[start:]
            del stack[start:]
            if code.stack_after:
                stack.append(_result(path, name, taken))


def _result(path: object, name: str, taken: list[_Value]) -> _Value:
    depth = max((value.depth for value in taken), default=0) + name.startswith("TUPLE")
    if depth > MAX_DEPTH:
        _refuse(path, f"its values are more than {MAX_DEPTH} levels deep")
    if name == "REDUCE" and taken[0].function in _GOES_THROUGH and taken[1].given:
        _refuse(path, f"it calls {taken[0].function.rpartition(' ')[2]} on a value of any size")
    made = name in ("REDUCE", "NEWOBJ", "BINPERSID")
    return _Value(depth, made, name.startswith("TUPLE") and any(value.made for value in taken))


def _refuse(path: object, why: str) -> NoReturn:
    raise UserError(f"weights file {path} is refused: {why}, which weights never need: get it from another source")


_PLAIN = _Value()
# By instruction: how many values it takes from the stack, below the mark if it takes all above the last mark.
_TAKES = {
    code.name: (list(map(id, code.stack_before)).index(id(pickletools.markobject)), True)
    if any(value is pickletools.markobject for value in code.stack_before)
    else (len(code.stack_before), False)
    for code in pickletools.opcodes
}
