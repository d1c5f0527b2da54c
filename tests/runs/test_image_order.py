"""A run continues whatever form CIFAR's images come in, and not one that an older version began in another order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ickd_pl.data import CIFAR100
from ickd_pl.errors import UserError
from ickd_pl.runs.decide import Asked, differences
from tests.data.sources.made_up import MadeUp, make, npz, tree
from tests.runs.helpers import QUIET, Outcome, cli


def config(name: str, **arguments: Any) -> dict[str, Any]:
    return {"data": {"class_path": f"ickd_pl.data.cifar.{name}", "init_args": arguments}}


NEW = {"data": "b" * 64, "image_order": "by content"}


@pytest.mark.parametrize("before", [None, config("CIFAR100")])
@pytest.mark.parametrize("inputs", [{}, {"data": "a" * 64}, {"data": "a" * 64, "image_order": None}])
def test_another_order_is_refused_in_one_line(before: Any, inputs: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        differences(Asked(before, inputs), Asked(config("CIFAR100"), NEW), Path("run"))
    text = str(caught.value)
    assert text.startswith("run is of a run that an older version of ickd_pl began, with the images of CIFAR100 in ")
    assert "\n" not in text


def test_other_data_is_a_difference_like_any_other() -> None:
    old = Asked(config("Digits"), {"data": "a" * 64})
    found = differences(old, Asked(config("CIFAR100"), NEW), Path("run"))
    assert found[0].startswith("data.class_path: ") and found[1].startswith("images and labels: aaaa")


def test_the_archive_counts_only_where_the_images_are_not_known() -> None:
    one, two = config("CIFAR100", archive="one"), config("CIFAR100", archive="two")
    assert differences(Asked(one, NEW), Asked(two, NEW), Path("run")) == []
    unknown = {**NEW, "data": None}
    found = differences(Asked(one, unknown), Asked(two, unknown), Path("run"))
    assert found == ["data.init_args.archive: one -> two"]


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    return make(tmp_path / "src", monkeypatch)


def fit(archive: Path, epochs: int = 1) -> Outcome:
    command = ["fit", "--config=configs/base.yaml", "--data=CIFAR100", f"--data.archive={archive}", *QUIET]
    command += [f"--data.root={archive.parent}", "--data.download=false", f"--trainer.max_epochs={epochs}"]
    command += ["--model.student=resnet8", "--model.milestones=[9]", "--trainer.default_root_dir=out"]
    return cli(*command)


def test_a_run_goes_on_with_another_form_of_the_images(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tree(Path("data/images").resolve(), made_up.splits), npz(Path("data/file").resolve(), made_up.splits)
    with monkeypatch.context() as patch:
        patch.setattr(CIFAR100, "image_order", None)  # as versions before had it
        assert fit(one).status == 0
    refused = fit(one)
    assert refused.status == 2 and "with the images of CIFAR100 in another order" in refused.err
    assert len([line for line in refused.err.splitlines() if line.startswith("error")]) == 1
    Path("out").rename("old")
    assert fit(one).status == 0
    finished = fit(two)
    assert finished.status == 0 and "finished" in finished.out, finished.err
