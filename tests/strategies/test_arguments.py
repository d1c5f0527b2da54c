"""Wrong arguments: one line that names class and argument, what was expected and what came."""

from __future__ import annotations

import inspect
import re
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from ickd_pl import DistillationModule, LossStrategy, UserError, get_model
from ickd_pl.checks import NonNegativeFloat, above_zero, between, whole_number, zero_or_more
from ickd_pl.strategies import AB, CRD, FSP, FT, KD, VID, discover
from ickd_pl.strategies.vid import EPS, VariationalHead
from tests.runs.helpers import cli, subprocess_cli

METHODS = discover()
NAN, INF = float("nan"), float("inf")

POSITIVE = (0, -1, NAN, INF, "4", None, True)
NOT_NEGATIVE = (-1, -1e-9, NAN, INF, -INF, "1000", None, True, [1])
WHOLE = (-1, 1.5, 16.0, NAN, "16", None, True)

# Whether 0 is right for an argument of this name. A new method's need not stand here: its own test has its limits.
ZERO_IS_RIGHT = {
    **dict.fromkeys(("weight", "pretrain_epochs", "margin", "momentum", "alpha", "beta", "warmup_epochs"), True),
    **dict.fromkeys(("hint_layer", "distance_weight", "angle_weight"), True),
    **dict.fromkeys(("power", "dim", "negatives", "temperature", "rate", "count", "init_variance"), False),
    "pretrain_lr": False,
}
# Further limits.
REFUSED = {("crd", "momentum"): (1, 2), ("vid", "init_variance"): (EPS / 2, EPS)}
ACCEPTED = {("crd", "momentum"): (0.99,), ("crd", "mode"): ("relax",), ("vid", "init_variance"): (1.1 * EPS, 1000)}


def arguments(name: str) -> dict[str, Any]:
    """The arguments of a method, with their defaults."""
    return {p.name: p.default for p in inspect.signature(METHODS[name]).parameters.values()}


def wrong_values(argument: str, default: Any) -> list[Any]:
    """What an argument with this default must refuse."""
    if isinstance(default, str):
        return ["", f"{default}er", None, 1, True, [default]]
    values: list[Any] = [-1, -1e-9, NAN, INF, -INF, "1", True, False, [1]]
    if not ZERO_IS_RIGHT.get(argument, True):
        values += [0, 0.0]
    if default is not None:
        values.append(None)
    if isinstance(default, int):
        values += [1.5, 16.0]
    return values


def check_message(error: UserError, whose: str, argument: str, value: object) -> None:
    assert str(error).startswith(f"{whose}.{argument}: expected "), error
    assert str(error).endswith(f", got {value!r}"), error
    assert "\n" not in str(error)


def refusal(cls: Callable[..., LossStrategy], argument: str, value: object) -> UserError:
    try:
        cls(**{argument: value})
    except UserError as error:
        return error
    pytest.fail(
        f"{cls.__name__}({argument}={value!r}) is accepted: declare what it may be, as {argument}: PositiveFloat or "
        "another type of ickd_pl/checks.py (where the value is right, let this test know)"
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_argument_refuses_what_it_cannot_be(name: str) -> None:
    for argument, default in arguments(name).items():
        if not isinstance(default, bool):
            for value in (*wrong_values(argument, default), *REFUSED.get((name, argument), ())):
                error = refusal(METHODS[name], argument, value)
                check_message(error, METHODS[name].__name__, argument, value)


@pytest.mark.parametrize("name", METHODS)
def test_every_argument_keeps_what_is_right(name: str) -> None:
    for argument, default in arguments(name).items():
        right = [default, *ACCEPTED.get((name, argument), ())]
        right += [0] if ZERO_IS_RIGHT.get(argument) else []
        right += [1] if argument in ZERO_IS_RIGHT and (name, argument) not in REFUSED else []
        for value in right:
            assert getattr(METHODS[name](**{argument: value}), argument) == value


@pytest.mark.parametrize("name", METHODS)
def test_the_command_line_knows_the_types(name: str) -> None:
    """For its help and conversions; a type that it cannot resolve would be taken as it comes."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LossStrategy, "method")
    for argument, default in arguments(name).items():
        if isinstance(default, float):
            config = parser.parse_args([f"--method={name_of(name)}", f"--method.{argument}=3"])
            assert type(config.method.init_args[argument]) is float
        elif not isinstance(default, str) and default is not None:
            with pytest.raises(ArgumentError, match="Expected a"):
                parser.parse_args([f"--method={name_of(name)}", f"--method.{argument}=text"])


def name_of(name: str) -> str:
    return METHODS[name].__name__


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("lr", POSITIVE),
        ("momentum", (-1, 1, 1.5, NAN, INF, "0.9", None)),
        ("weight_decay", NOT_NEGATIVE),
        ("ce_weight", NOT_NEGATIVE),
        ("num_classes", (0, *WHOLE)),
        ("image_size", (0, *WHOLE)),
        ("num_samples", (0, -1, 1.5, "3", True)),
        ("milestones", ([0], [2, 1], [1, 1], [1.5], [True], ["2"], 3, None)),
    ],
)
def test_refused_by_the_module(argument: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(UserError) as caught:
            DistillationModule(**{"student": "resnet8", argument: value})
        check_message(caught.value, "DistillationModule", argument, value)


class Unchecked(LossStrategy):
    """A method of a user's own that checks nothing."""

    def __init__(self, **values: Any) -> None:
        self.weight = 1.0
        for name, value in values.items():
            setattr(self, name, value)

    def loss(self, *_: Any) -> Tensor:
        return torch.zeros(())


@pytest.mark.parametrize(
    ("argument", "value"),
    [("weight", NAN), ("weight", -1), ("pretrain_epochs", 1.5), ("pretrain_epochs", -1), ("pretrain_lr", 0)],
)
def test_the_module_checks_what_every_method_has(argument: str, value: object) -> None:
    """Also where a class does not, or the value was set afterwards."""
    with pytest.raises(UserError) as caught:
        DistillationModule("resnet8", get_model("resnet8"), strategies=[Unchecked(**{argument: value})])
    check_message(caught.value, "Unchecked", argument, value)
    for method in (FSP(), AB(), FT()):
        setattr(method, argument, value)
        with pytest.raises(UserError, match=f"{type(method).__name__}.{argument}: expected"):
            DistillationModule("resnet8", get_model("resnet8"), strategies=[KD(), method])


if TYPE_CHECKING:
    from collections.abc import Hashable


@dataclass(eq=False)
class Declared(LossStrategy):
    """A user's own, with fields; one of its annotations is known to type checkers only."""

    weight: NonNegativeFloat = 1.0
    key: Hashable = None

    def loss(self, *_: Any) -> Tensor:
        return torch.zeros(())


class Derived(KD):
    """A user's own, with an ``__init__`` over a declared method's."""

    def __init__(self, heat: float = 2.0) -> None:
        super().__init__(temperature=heat)
        self.heat = heat


def test_methods_of_a_users_own() -> None:
    for make, message in (
        (lambda: Declared(weight=-1), "Declared.weight: expected 0 or more, got -1"),
        (lambda: Derived(heat=0), "Derived.temperature: expected a number above 0, got 0"),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            make()
    assert Derived().spec()["init_args"] == {"heat": 2.0}
    assert Declared(key="a").spec()["init_args"] == {"weight": 1.0, "key": "a"}


def test_a_large_variance_is_what_it_says() -> None:
    for variance in (2e-5, 1.0, 5.0, 50.0, 60.0, 1000.0):
        scale = VariationalHead(1, 2, variance).log_scale
        assert (torch.nn.functional.softplus(scale) + EPS).tolist() == pytest.approx([variance] * 2, rel=1e-5)
    assert VID(init_variance=1000).init_variance == 1000


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: above_zero("X", a=1, b=0), "X.b: expected a number above 0, got 0"),
        (lambda: zero_or_more("X", a=0, b="0"), "X.b: expected 0 or more, got '0'"),
        (lambda: between("X", 0, 1, a=0, b=1), "X.b: expected 0 or more and below 1, got 1"),
        (lambda: whole_number("X", 2, a=2, b=2.0), "X.b: expected a whole number, 2 or more, got 2.0"),
        (lambda: whole_number(CRD(), 2, a=1), "CRD.a: expected a whole number, 2 or more, got 1"),
        (lambda: zero_or_more("X", a=10**400, b=-INF), "X.b: expected 0 or more, got -inf"),
    ],
)
def test_messages(check: Callable[[], None], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        check()


@pytest.mark.parametrize(
    ("run", "method", "argument", "value", "message"),
    [
        (subprocess_cli, "VID", "init_variance", "0", "VID.init_variance: expected a number above 1e-05, got 0.0"),
        (cli, "CRD", "dim", "0", "CRD.dim: expected a whole number, 1 or more, got 0"),
        (cli, "FSP", "pretrain_lr", "-1", "FSP.pretrain_lr: expected a number above 0, got -1.0"),
    ],
)
def test_command_line(run: Any, method: str, argument: str, value: str, message: str) -> None:
    """The message alone, without a traceback, and status 2."""
    outcome = run(
        "fit", "--config=configs/base.yaml", "--data=Digits", "--model.student=resnet8", "--model.teacher=resnet20",
        f"--model.strategies+={method}", f"--model.strategies.{argument}={value}",
    )  # fmt: skip
    assert outcome.status == 2, outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert lines == [f"error: {message}"] and "Traceback" not in outcome.err
