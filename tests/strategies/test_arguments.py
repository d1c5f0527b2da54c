"""Wrong arguments: one line that names class and argument, what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ickd_pl import DistillationModule, LossStrategy, UserError, get_model
from ickd_pl.checks import above_zero, between, whole_number, zero_or_more
from ickd_pl.strategies import AB, CRD, FSP, FT, KD, VID, discover
from ickd_pl.strategies.vid import EPS, VariationalHead
from tests.runs.helpers import cli, subprocess_cli

METHODS = discover()
NAN, INF = float("nan"), float("inf")

POSITIVE = (0, -1, NAN, INF, "4", None, True)
NOT_NEGATIVE = (-1, -1e-9, NAN, INF, -INF, "1000", None, True, [1])
WHOLE = (-1, 1.5, 16.0, NAN, "16", None, True)

# Class and argument -> what is refused. The arguments that every class has are added below.
REFUSED: dict[tuple[str, str], tuple[Any, ...]] = {
    ("ab", "margin"): NOT_NEGATIVE,
    ("at", "power"): POSITIVE,
    ("cc", "dim"): (0, *WHOLE),
    ("crd", "dim"): (0, *WHOLE),
    ("crd", "negatives"): (0, *WHOLE),
    ("crd", "temperature"): (-0.07, *POSITIVE),
    ("crd", "momentum"): (2, 1, -1, NAN, INF, "0.5", None, False),
    ("crd", "mode"): ("relaxed", "", None, 1, ["exact"]),
    ("dkd", "alpha"): NOT_NEGATIVE,
    ("dkd", "beta"): NOT_NEGATIVE,
    ("dkd", "temperature"): POSITIVE,
    ("dkd", "warmup_epochs"): (-5, *WHOLE),
    ("fitnet", "hint_layer"): ("2", 1.0, *WHOLE),
    ("ft", "rate"): POSITIVE,
    ("kd", "temperature"): POSITIVE,
    ("kdsvd", "count"): (0, *WHOLE),
    ("rkd", "distance_weight"): (-25, *NOT_NEGATIVE),
    ("rkd", "angle_weight"): (-50, *NOT_NEGATIVE),
    ("vid", "init_variance"): (EPS, EPS / 2, *POSITIVE),
}
TWO_STAGES = ("ab", "fsp", "ft")
ONE_FOR_ALL: dict[tuple[str, str], tuple[Any, ...]] = {
    **{(name, "weight"): NOT_NEGATIVE for name in METHODS},
    **{(name, "pretrain_epochs"): ("3", *WHOLE) for name in TWO_STAGES},
    **{(name, "pretrain_lr"): tuple(value for value in POSITIVE if value is not None) for name in TWO_STAGES},
}
TABLE = [(*key, value) for key, values in {**REFUSED, **ONE_FOR_ALL}.items() for value in values]

# Values at the edge that are right.
ACCEPTED: list[tuple[str, str, Any]] = [
    *((name, "weight", value) for name in METHODS for value in (0, 0.5, 3)),
    *((name, "pretrain_epochs", 0) for name in TWO_STAGES),
    *((name, "pretrain_lr", value) for name in TWO_STAGES for value in (None, 1, 1e-4)),
    ("ab", "margin", 0),
    ("at", "power", 1),
    ("cc", "dim", 1),
    ("crd", "momentum", 0),
    ("crd", "momentum", 0.99),
    ("crd", "negatives", 1),
    ("crd", "mode", "relax"),
    ("dkd", "warmup_epochs", 0),
    ("fitnet", "hint_layer", 0),
    ("rkd", "angle_weight", 0),
    ("vid", "init_variance", 1000),
]


def check_message(error: UserError, whose: str, argument: str, value: object) -> None:
    assert str(error).startswith(f"{whose}.{argument}: expected "), error
    assert str(error).endswith(f", got {value!r}"), error
    assert "\n" not in str(error)


def test_every_argument_of_these_methods_is_in_the_table() -> None:
    """A new method's own arguments are left to its own test."""
    here = {name for name, _ in REFUSED} | set(TWO_STAGES)
    ours = {(name, argument) for name in here for argument in METHODS[name]().spec()["init_args"]}  # type: ignore[call-arg]
    assert ours == {key for key in (*REFUSED, *ONE_FOR_ALL) if key[0] in here}


@pytest.mark.parametrize(("name", "argument", "value"), TABLE)
def test_refused(name: str, argument: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        METHODS[name](**{argument: value})
    check_message(caught.value, METHODS[name].__name__, argument, value)


@pytest.mark.parametrize(("name", "argument", "value"), ACCEPTED)
def test_accepted(name: str, argument: str, value: object) -> None:
    assert getattr(METHODS[name](**{argument: value}), argument) == value


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
        (subprocess_cli, "VID", "init_variance", "0", "VID.init_variance: expected a number above 0, got 0.0"),
        (cli, "CRD", "dim", "0", "CRD.dim: expected a whole number, 1 or more, got 0"),
        (cli, "CRD", "negatives", "-1", "CRD.negatives: expected a whole number, 1 or more, got -1"),
        (cli, "KDSVD", "count", "-1", "KDSVD.count: expected a whole number, 1 or more, got -1"),
        (cli, "AT", "power", ".nan", "AT.power: expected a number above 0, got nan"),
        (cli, "KD", "weight", ".inf", "KD.weight: expected 0 or more, got inf"),
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
