"""config.yaml: what is written is read again as the same values, or refused."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import pytorch_lightning as pl
import torch
import yaml

from ickd_pl import UserError
from ickd_pl.runs.configs import config_root, find_configs
from ickd_pl.runs.fit import IckdCLI
from ickd_pl.runs.written_settings import yaml_text
from tests.runs.helpers import TINY, cli, fit_args, load


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Part:
    def __init__(self, rate: float = 1.0) -> None:
        self.rate = rate


THING, CPU = object(), torch.device("cpu")


class Typed(pl.Callback):
    """Arguments of many types; the last ones are no data."""

    def __init__(
        self,
        number: float = 1e-5,
        infinite: float = float("inf"),
        text: str = "1e-5",
        texts: list[str] = ["null", "true", "1", "0x10", "1_000", "a: b\n# c", "", "~", "12:30"],  # noqa: B006
        either: bool | str = "maybe",
        path: Path = Path("a/b"),
        colour: Colour = Colour.RED,
        pair: tuple[int, str] = (1, "a"),
        unique: set[int] = {1, 2},  # noqa: B006
        by_number: dict[int, float] = {1: 1e-5},  # noqa: B006
        time: datetime.timedelta = datetime.timedelta(seconds=3),
        part: Part | None = None,
        device: torch.device | str = CPU,
        function: Callable[..., Any] = lambda x: x,
        thing: Any = THING,
    ) -> None:
        self.arguments = {name: value for name, value in locals().items() if name not in ("self", "part")}
        self.part = part


def writes_a_sentence() -> bool:
    """Whether this version of the parser dumps a sentence for an object that it cannot write."""
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--any", type=Any)
    try:
        parser.dump(jsonargparse.Namespace(any=THING))
    except yaml.representer.RepresenterError:
        return False
    return True


OLD = pytest.mark.skipif(
    not writes_a_sentence(), reason="this jsonargparse cannot leave out an object that is a default"
)


class Built(IckdCLI):
    """The command line without the training."""

    def fit(self, *args: Any, **kwargs: Any) -> None:
        pass


def built(*words: str) -> Built:
    base = [*TINY, "--model.student=resnet8", "--trainer.max_epochs=1"]
    return Built(find_configs(["fit", *base, *words]))


def again(first: Built) -> Built:
    Path("again.yaml").write_text(yaml_text(first.settings))
    return Built(["fit", "--config=again.yaml"])


@OLD
def test_arguments_of_many_types_are_read_again() -> None:
    name = f"{__name__}.Typed"
    words = ["either=yes", "colour=BLUE", "path=c/1e5", "text=1e6", "by_number={3: 2}", f"part={__name__}.Part"]
    first = built(
        f"--trainer.callbacks+={name}",
        *(f"--trainer.callbacks.{word}" for word in words),
        "--trainer.callbacks.part.rate=1e-3",
    )
    second = again(first)
    one, two = (next(c for c in b.trainer.callbacks if isinstance(c, Typed)) for b in (first, second))
    assert one.arguments == two.arguments and one.arguments["text"] == "1e6" and one.arguments["by_number"] == {3: 2.0}
    assert [type(v) for v in one.arguments.values()] == [type(v) for v in two.arguments.values()]
    assert one.part is not None and two.part is not None and one.part.rate == two.part.rate == 1e-3
    assert first.settings == second.settings
    # YAML as everybody else reads it.
    assert yaml.safe_load(yaml_text(first.settings)) == first.settings
    assert "Unable" not in yaml_text(first.settings)


@OLD
def test_what_cannot_be_written_is_refused() -> None:
    first = built(f"--trainer.callbacks+={__name__}.Typed")
    first.config.fit.trainer.callbacks[-1].init_args.thing = torch.ones(2)
    with pytest.raises(
        UserError, match=r"^trainer.callbacks\[\d\].init_args.thing is tensor\(.*config.yaml cannot hold"
    ):
        first.settings  # noqa: B018


def test_an_object_is_refused_by_any_version() -> None:
    with pytest.raises(UserError, match=r"object object at .*config.yaml cannot hold"):
        first = built(f"--trainer.callbacks+={__name__}.Typed")  # old versions refuse the default already
        first.config.fit.trainer.callbacks[-1].init_args.thing = object()
        first.settings  # noqa: B018


@pytest.mark.parametrize("method", sorted(path.stem for path in (config_root() / "methods").glob("*.yaml")))
def test_a_configuration_given_back_is_the_same(method: str) -> None:
    words = [f"--config=configs/methods/{method}.yaml"]
    if method != "vanilla":
        words.append("--config=configs/pairs/resnet20_resnet8.yaml")
    words += ["--model.teacher_weights=none.pth", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
    first = unread(*TINY, "--model.student=resnet8", "--trainer.max_epochs=1", *words)
    Path("again.yaml").write_text(yaml_text(first.settings))
    second = unread("--config=again.yaml")
    assert first.settings == second.settings and dict(first.model.hparams) == dict(second.model.hparams)


def unread(*words: str) -> Built:
    """As ``built``, without reading the teacher."""

    class Unread(Built):
        def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
            return self.make_trainer(**kwargs)

    return Unread(find_configs(["fit", *words]))


def test_the_config_of_a_run_gives_the_same_weights(tmp_path: Path) -> None:
    accumulate = ["--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling={0: 2}"]
    words = ["--model.student=resnet8", *accumulate, "--trainer.plugins+=LightningEnvironment"]
    assert cli(*fit_args(tmp_path / "a", words)).status == 0
    (config,) = (tmp_path / "a").rglob("config.yaml")
    outcome = cli("fit", f"--config={config}", f"--trainer.default_root_dir={tmp_path / 'b'}")
    assert outcome.status == 0, outcome.err
    one, two = (load(next((tmp_path / name).rglob("last.ckpt"))) for name in "ab")
    assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())
    assert one["hyper_parameters"] == two["hyper_parameters"]
