"""An unknown option gets a hint that works when followed, or none."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from ickd_pl.models.discovery import subclasses
from ickd_pl.runs import near_option as near_option_module
from ickd_pl.runs import parser
from ickd_pl.runs.near_option import ELSEWHERE, near_option
from tests.runs.helpers import cli

HINTS = {
    "batch_size": "data.batch_size",
    "bs": "data.batch_size",
    "model.batch_size": "data.batch_size",
    "data-dir": "data.root (of CIFAR10, CIFAR100, ImageFolder)",
    "dataset": "data",
    "epochs": "trainer.max_epochs",
    "max_epochs": "trainer.max_epochs",
    "trainer.max_epoch": "trainer.max_epochs",
    "Trainer.Max_Epochs": "trainer.max_epochs",
    "lr": "model.lr",
    "learning_rate": "model.lr",
    "trainer.lr": "model.lr",
    "model.lrr": "model.lr",
    "wd": "model.weight_decay",
    "gpus": "trainer.devices",
    "device": "trainer.devices",
    "amp": "trainer.precision",
    "method": "model.strategies",
    "teacher": "model.teacher",
    "student": "model.student",
    "temperature": "model.strategies.temperature",
    "temprature": "model.strategies.temperature",
    "mutual_weight": "model.strategies.mutual_weight (of ITRD)",
    "seed": "seed_everything",
    "resume": "ckpt_path",
}
NO_HINTS = ("optimizer", "model.optimizer", "num_workers", "dropout", "zzz", "nesterov", "x", "")


@pytest.fixture(autouse=True)
def of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have classes of their own."""

    def own(base: type) -> list[type]:
        return [cls for cls in subclasses(base) if cls.__module__.startswith(("ickd_pl.", "pytorch_lightning."))]

    monkeypatch.setattr(near_option_module, "subclasses", own)


@pytest.fixture(scope="module")
def options() -> set[str]:
    """All options of ``fit``, as its parser has them when it refuses one."""
    found: set[str] = set()

    def keep(message: str, known: Iterable[str]) -> str:
        found.update(known)
        return message

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parser, "one_line", keep)
        cli("fit", "--config=configs/base.yaml", "--nothing=1")
    assert {"model.lr", "trainer.max_epochs", "data"} <= found
    return found


@pytest.mark.parametrize("name", HINTS)
def test_the_hint_is_the_option_that_is_meant(name: str, options: set[str]) -> None:
    assert near_option(name, options) == f"did you mean {HINTS[name]}?"


@pytest.mark.parametrize("name", NO_HINTS)
def test_no_hint_is_better_than_a_wrong_one(name: str, options: set[str]) -> None:
    assert near_option(name, options) == "see fit --help=all for all options"


def test_every_hint_for_other_projects_words_is_an_option(options: set[str]) -> None:
    for option, words in ELSEWHERE.items():
        assert option in options or option in ("data.batch_size", "data.root"), option
        for word in words:
            assert option in near_option(word, options), word


def test_arguments_of_a_class_that_was_named() -> None:
    assert near_option("batchsize", [], inner=True) == "did you mean batch_size?"
    assert near_option("root_dir", [], inner=True) == "did you mean root?"
    assert near_option("temperature", [], inner=True).startswith("it is an argument of CRD, ")
    assert near_option("zzz", [], inner=True) == "see fit --help=all for all options"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--data=Digits", "--batch_size=8"], "unknown option --batch_size: did you mean data.batch_size?"),
        (["--data=Digits", "-lr=8"], "unknown option --lr: did you mean model.lr?"),
        (["--model.strategies.temperature=3"], "model.strategies.temperature: name the class before its argument"),
        (["--trainer.logger=NoLogger"], "unknown class NoLogger for trainer.logger: did you mean"),
        (["--trainer.callbacks+=EarlyStoping"], "did you mean EarlyStopping"),
    ],
)
def test_on_the_command_line(words: list[str], line: str) -> None:
    outcome = cli("fit", "--config=configs/base.yaml", "--model.student=resnet8", *words)
    assert outcome.status == 2 and outcome.err.startswith("error: ") and line in outcome.err
    assert outcome.err.count("\n") == 1
