"""An untrusted file is only data: nothing that it names is imported, called, opened or downloaded."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ickd_pl import DistillationModule, load_student, load_teacher
from ickd_pl.data import CIFAR100, Digits
from ickd_pl.errors import UserError
from ickd_pl.strategies import from_spec
from ickd_pl.weights import read_config
from tests.benchmark.report.synthetic import cell, plan
from tests.runs.helpers import QUIET, Outcome, Run, cli, fit_args, load

HACKED = Path("hacked")
# Calls its argument; already imported by torch, and annotated to return a module.
KNOWN_TO_TORCH = {
    "class_path": "torch.fx.graph_module.reduce_graph_module",
    "init_args": {
        "body": {"_code": "def forward(self, x): return x"},
        "import_block": "import pathlib; pathlib.Path('hacked').touch()",
    },
}
STRANGER = {"class_path": "stranger.Thing", "init_args": {}}
HARMLESS = {"class_path": "torch.nn.Identity", "init_args": {}}
ASKED_FOR = {
    "a class not imported": STRANGER,
    "a class of torch's that runs code": KNOWN_TO_TORCH,
    "any class": HARMLESS,
}

Change = Callable[[dict[str, Any], Any], Any]


def in_settings(name: str) -> Change:
    return lambda content, asked: content["hyper_parameters"].update({name: asked})


def in_strategy(content: dict[str, Any], asked: Any) -> None:
    content["hyper_parameters"]["strategies"][0]["init_args"]["weight"] = asked


def in_strategies(content: dict[str, Any], asked: Any) -> None:
    content["hyper_parameters"]["strategies"] = [{"class_path": asked, "init_args": {}}]


def in_data(content: dict[str, Any], asked: Any) -> None:
    content["ickd_pl"]["data"] = {"class_path": asked, "init_args": {}}


def in_data_argument(content: dict[str, Any], asked: Any) -> None:
    content["ickd_pl"]["data"]["init_args"]["train_size"] = asked


def by_instantiator(content: dict[str, Any], asked: Any) -> None:
    """Lightning's way to build a module from settings in a file."""
    content["hyper_parameters"] = {
        "_instantiator": "pytorch_lightning.cli.instantiate_module",
        **content["hyper_parameters"],
        "student": asked,
    }


ROUTES: dict[str, Change] = {
    "student": in_settings("student"),
    "teacher": in_settings("teacher"),
    "teacher's file": in_settings("teacher_weights"),
    "strategy's argument": in_strategy,
    "strategy's class": in_strategies,
    "layer map": in_settings("student_layers"),
    "a number": in_settings("lr"),
    "a list": lambda content, asked: content["hyper_parameters"].update(milestones=[asked]),
    "data": in_data,
    "data's argument": in_data_argument,
    "instantiator": by_instantiator,
}


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that must not be imported; it writes a file if it is."""
    Path("stranger.py").write_text(
        "import pathlib, torch\npathlib.Path('hacked').touch()\nclass Thing(torch.nn.Identity): ...\n"
    )
    monkeypatch.syspath_prepend(str(Path().resolve()))


def check_nothing_ran() -> None:
    assert not HACKED.exists()
    assert sys.modules.pop("stranger", None) is None


def check_refused(outcome: Outcome, *needles: str) -> None:
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    for needle in needles:
        assert needle in outcome.err


def hostile(student: Run, change: Change, asked: Any) -> Path:
    content = load(student.last)
    change(content, asked)
    torch.save(content, "bad.ckpt")
    return Path("bad.ckpt")


COMMANDS = {
    "test": lambda path: ["test", "--ckpt_path", path, *QUIET],
    "validate": lambda path: ["validate", "--ckpt_path", path, *QUIET],
    "predict": lambda path: ["predict", "--ckpt_path", path, *QUIET],
    "correlations": lambda path: ["correlations", "--ckpt_path", path, "--output", "c.png", "--images", "9"],
    "correlations --before": lambda path: [
        "correlations",
        "--ckpt_path",
        "good.ckpt",
        "--before",
        path,
        "--images",
        "9",
    ],
    "export": lambda path: ["export", "--ckpt_path", path, "--format", "repdistiller", "--output", "s.pth"],
    "fit": lambda path: [*fit_args(Path("out"), ["--model.student=resnet8"]), "--ckpt_path", path],
}
ENTRIES: dict[str, Callable[[Path], Any]] = {
    "load_from_checkpoint": DistillationModule.load_from_checkpoint,
    "load_from_checkpoint, unsafe": lambda path: DistillationModule.load_from_checkpoint(path, weights_only=False),
    "data": Digits.load_from_checkpoint,
    "load_student": load_student,
    "read_config": read_config,
    "load_teacher": lambda path: load_teacher("resnet8", path, 10),
}


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize("asked", ASKED_FOR)
@pytest.mark.parametrize("route", ROUTES)
def test_a_checkpoint_that_asks_for_a_class(student: Run, route: str, asked: str) -> None:
    shutil.copy(student.last, "good.ckpt")
    spec = ASKED_FOR[asked]
    # The commands share one reader: test all of them once, otherwise one command and all Python functions.
    for value, names in ((spec, COMMANDS if spec is KNOWN_TO_TORCH else ["test"]), (spec["class_path"], ["test"])):
        path = hostile(student, ROUTES[route], value)
        for name, args in ((name, COMMANDS[name]) for name in names):
            outcome = cli(*args(path))
            check_nothing_ran()
            assert outcome.status in (0, 2), (name, outcome)
            if outcome.status == 2:
                check_refused(outcome)
        for entry in ENTRIES.values():
            try:
                entry(path)
            except UserError as error:
                assert "\n" not in str(error)
            check_nothing_ran()


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize(
    ("route", "needle"),
    [
        ("student", "its student is {'class_path': 'torch.fx.graph_module"),
        ("teacher", "--model.teacher NAME"),
        ("strategy's argument", "strategies[0]: init_args.weight is {"),
        ("layer map", "its student_layers is {"),
        ("a number", "give --model.lr"),
        ("instantiator", "'_instantiator', which is not a setting"),
        ("data's argument", "its data: init_args.train_size is {"),
    ],
)  # fmt: skip
def test_the_setting_is_named(student: Run, route: str, needle: str) -> None:
    path = hostile(student, ROUTES[route], KNOWN_TO_TORCH)
    check_refused(cli("test", "--ckpt_path", path, *QUIET), "bad.ckpt", needle)
    with pytest.raises(UserError) as caught:
        DistillationModule.load_from_checkpoint(path)
    assert needle in str(caught.value)


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize(
    "named", ["stranger.Thing", "pytorch_lightning.demos.boring_classes.BoringDataModule", "Thing"]
)
def test_data_of_an_unknown_class(student: Run, named: str) -> None:
    """Refused with what to set instead; that setting is then used."""
    path = hostile(student, in_data, named)
    check_refused(cli("test", "--ckpt_path", path, *QUIET), f"its data module '{named}'", "set --data NAME")
    assert cli("test", "--ckpt_path", path, "--data=Digits", *QUIET).status == 0
    check_nothing_ran()


def test_a_path_instead_of_a_name_is_not_opened(student: Run) -> None:
    Path("secret.yaml").write_text("class_path: torch.nn.Identity\n")
    for name in ("student", "teacher"):
        for text in ("secret.yaml", str(Path("secret.yaml").resolve()), "/etc/passwd", "https://example.org/net"):
            outcome = cli("test", "--ckpt_path", hostile(student, in_settings(name), text), *QUIET)
            # A message shortens what is long, as the folders of parallel tests are.
            check_refused(outcome, f"its {name} is '{text[:40]}", f"--model.{name} NAME")
            assert "root:" not in outcome.err
            assert "Identity" not in outcome.err


def test_the_user_can_name_the_student(student: Run) -> None:
    """What the message recommends works."""
    path = hostile(student, in_settings("student"), KNOWN_TO_TORCH)
    assert cli("test", "--ckpt_path", path, "--model.student=resnet8", *QUIET).status == 0
    check_nothing_ran()


def test_paths_and_downloads_are_used_only_if_the_run_has_them(student: Run) -> None:
    """CIFAR-100 from a folder, archive or download in the file: refused unless the run's config.yaml has the same."""
    for name, value in (("root", "/srv/images"), ("archive", "https://example.org/cifar.tgz"), ("root", "../up")):
        content = load(student.last)
        spec = {"class_path": "ickd_pl.data.cifar.CIFAR100", "init_args": {"download": False, name: value}}
        content["ickd_pl"]["data"] = spec
        content["hyper_parameters"]["num_classes"] = 100
        path = Path("run/checkpoints/bad.ckpt")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
        Path("run/config.yaml").write_text("data: {class_path: CIFAR100, init_args: {root: elsewhere}}\n")
        args = ["test", "--ckpt_path", path, *QUIET]
        check_refused(cli(*args), "a file's paths are used only")
        Path("run/config.yaml").write_text(yaml.safe_dump({"data": spec}))
        own = cli(*args)
        assert "data of the checkpoint: CIFAR100" in own.out
        assert repr(value) in own.out
        assert own.status == 2, "there are no images"


@pytest.mark.usefixtures("stranger")
def test_the_stored_configuration_of_a_run(student: Run) -> None:
    """config.yaml of a run folder is compared, never instantiated."""
    shutil.copytree(student.path, "out" / student.path.relative_to(student.root))
    config = "out" / student.path.relative_to(student.root) / "config.yaml"
    good = yaml.safe_load(config.read_text())
    for key, inner in (("model", "student"), ("model", "teacher"), ("data", "class_path"), ("trainer", "callbacks")):
        for asked in (KNOWN_TO_TORCH, "stranger.Thing"):
            config.write_text(yaml.safe_dump({**good, key: {**good[key], inner: asked}}))
            outcome = cli(*fit_args(Path("out"), student.args, epochs=3))
            check_nothing_ran()
            assert outcome.status in (0, 2)
            assert cli("test", "--ckpt_path", config.parent / "checkpoints/last.ckpt", *QUIET).status in (0, 2)
            check_nothing_ran()


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize("file", ["result.json", "identity.json", "benchmark.yaml"])
@pytest.mark.parametrize("asked", ASKED_FOR)
def test_the_files_of_a_results_folder(file: str, asked: str) -> None:
    """``bench`` reads numbers and settings from them, and instantiates nothing that they name."""
    value = ASKED_FOR[asked]
    plain: dict[str, Any] = {
        "data": {"class_path": "Digits", "init_args": {"train_size": 50}},
        "pairs": ["resnet20_resnet8"],
        "methods": ["kd"],
        "seeds": [0],
        "trainer": {"accelerator": "cpu", "max_epochs": 1},
    }
    cell = Path("results/cells/teachers/resnet20/seed_0")
    cell.mkdir(parents=True)
    changes: list[dict[str, Any]] = [{}]
    if file == "benchmark.yaml":
        changes = [
            {"data": value},
            {"data": {"class_path": "Digits", "init_args": {"train_size": value}}},
            {"data": {"class_path": "Digits", "init_args": {"train_size": value["class_path"]}}},
            {"model": {"student_layers": value}},
            {"model": {"lr": value["class_path"]}},
            {"teachers": {"data": value}},
            {"teachers": {"trainer": {"logger": value}}},
            *({"trainer": {key: v}} for key in ("logger", "plugins", "strategy") for v in (value, value["class_path"])),
            {"trainer": {"profiler": [value]}},
        ]
    else:
        content = {
            "recipe": value,
            "status": "done",
            "reason": None,
            "code_hash": value,
            "data_hash": "",
            "cell": value,
        }
        (cell / file).write_text(json.dumps({**content, "teacher_hash": None, "identities": [value]}))
    for change in changes:
        Path("results/benchmark.yaml").write_text(yaml.safe_dump({**plain, **change}))
        for command in ("run", "status", "report"):
            outcome = cli("bench", command, "--output", "results")
            check_nothing_ran()
            if command == "run":
                check_refused(outcome)
                assert file != "benchmark.yaml" or "set --config FILE" in outcome.err


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize("asked", ASKED_FOR)
def test_teachers_files_and_manifest(student: Run, asked: str) -> None:
    value = ASKED_FOR[asked]
    weights = load_student(student.last).state_dict()
    torch.save({"model": weights, "epoch": 1, "best_acc": value, "opt": value, "config": {"network": value}}, "t.pth")
    assert load_teacher("resnet8", "t.pth", 10) is not None
    check_nothing_ran()
    with pytest.raises(UserError, match="network: expected a name"):
        read_config("t.pth")
    teacher = {"name": "resnet8", "file": value, "sources": [value], "published_acc1": value, "sha256": value}
    Path("manifest.json").write_text(json.dumps({"teachers": {"resnet8": teacher}, "resnet8": teacher}))
    for args in (["list"], ["fetch", "resnet8"], ["verify", "resnet8", "--file", "t.pth", "--data=Digits"]):
        check_refused(cli("teachers", *args, "--manifest", "manifest.json"))
        check_nothing_ran()


@pytest.mark.usefixtures("stranger")
def test_a_method_is_looked_up_but_not_imported() -> None:
    for spec in (
        {"class_path": "stranger.Thing"},
        STRANGER,
        KNOWN_TO_TORCH,
        {"class_path": STRANGER},
        {"init_args": {}},
    ):
        with pytest.raises(UserError):
            from_spec(spec)
    with pytest.raises(UserError, match=r"unknown argument .heat"):
        from_spec({"class_path": "KD", "init_args": {"heat": 4}})
    check_nothing_ran()


def test_data_of_a_checkpoint_in_python(student: Run) -> None:
    assert Digits.load_from_checkpoint(student.last).train_size == 100
    assert Digits.load_from_checkpoint(student.last, train_size=50).train_size == 50
    with pytest.raises(UserError, match="stores other data"):
        CIFAR100.load_from_checkpoint(student.last)
    with pytest.raises(UserError, match="does not exist"):
        Digits.load_from_checkpoint("none.ckpt")


def test_invalid_normalisation_constants_of_a_checkpoint(student: Run) -> None:
    for name, value in (("mean", STRANGER), ("std", ["x", "y", "z"]), ("class_names", 5), ("mean", [0.1])):
        content = load(student.last)
        content["Digits"][name] = value
        torch.save(content, "bad.ckpt")
        check_refused(cli("test", "--ckpt_path", "bad.ckpt", *QUIET), "damaged")


def test_a_data_module_does_not_follow_a_files_paths(student: Run) -> None:
    content = load(student.last)
    arguments = {"root": "elsewhere", "download": True}
    content["ickd_pl"]["data"] = {"class_path": "ickd_pl.data.cifar.CIFAR100", "init_args": arguments}
    torch.save(content, "bad.ckpt")
    with pytest.raises(UserError, match=r"init_args.root is 'elsewhere', and a file's paths are not followed"):
        CIFAR100.load_from_checkpoint("bad.ckpt")
    content["CIFAR100"] = {}
    torch.save(content, "bad.ckpt")
    assert CIFAR100.load_from_checkpoint("bad.ckpt", root="here").root == "here"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Digits", None),
        ("Digits", True),
        ("callbacks", [1]),
        ("loops", "x"),
        ("pytorch-lightning_version", 1.0),
        ("ickd_pl", {"best_acc1": "x"}),
        ("hyper_parameters", {"class_path": "stranger.Thing"}),
        ("state_dict", {"class_path": "stranger.Thing"}),
    ],
)
def test_damage_is_one_line(student: Run, key: str, value: Any) -> None:
    torch.save({**load(student.last), key: value}, "bad.ckpt")
    check_refused(cli("test", "--ckpt_path", "bad.ckpt", *QUIET))
    if key not in ("Digits",):
        with pytest.raises(UserError) as caught:
            DistillationModule.load_from_checkpoint("bad.ckpt")
        assert "\n" not in str(caught.value)


def laughs(levels: int) -> str:
    """Aliases of aliases in one line of YAML: nine times as much on every level."""
    parts = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    parts += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "{" + ", ".join(parts) + "}"


BOMBS = {
    "brackets": "[" * 5000,
    "aliases": laughs(9),
    "aliases in a string": f"model: {{lr: {json.dumps(laughs(9))}}}",
    "values": "model: {milestones: [" + "1, " * 400_000 + "1]}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_yaml_bomb_is_one_line_wherever_it_is(bomb: str) -> None:
    Path("bomb.yaml").write_text(BOMBS[bomb])
    began = time.perf_counter()
    check_refused(cli(*fit_args(Path("out"), ["--model.student=resnet8", "--config=bomb.yaml"])))
    check_refused(cli("bench", "plan", "--config", "bomb.yaml", "--no-timing"))
    for option in ("--data", "--model", "--trainer"):  # a file that the parser itself opens
        check_refused(cli(*fit_args(Path("out"), ["--model.student=resnet8", f"{option}=bomb.yaml"])))
    if len(BOMBS[bomb]) < 100_000:  # as much as an argument can have
        for option in ("--data", "--model.lr", "--trainer.callbacks"):
            check_refused(cli(*fit_args(Path("out"), ["--model.student=resnet8", f"{option}={BOMBS[bomb]}"])))
        check_refused(cli("teachers", "verify", "resnet8", "--file", "none.pth", "--data", BOMBS[bomb]))
    assert time.perf_counter() - began < 30


TABLE = {
    "deep": b"[[" * 100_000,
    "large": b"[" + b"1, " * 3_000_000 + b"1]",
    "no UTF-8": b"\xff\xfe\0",
    "a long field": b"epoch,test/acc1,seconds\n1," + b"9" * 200_000 + b",1\n",
    "infinite": b"epoch,test/acc1,seconds\ninf,nan,1" + b"0" * 400 + b"\n",
    "terminal codes": b'{"\x1b[31m": 1}',
    "a pipe": None,
}


@pytest.mark.parametrize("file", ["result.json", "identity.json", "metrics.csv", "predictions.npz", "benchmark.yaml"])
def test_a_hostile_results_folder(file: str) -> None:
    """``bench`` reports it, or names the file in a line."""
    right = np.arange(50) % 3 > 0
    for content in TABLE.values():
        shutil.rmtree("results", ignore_errors=True)
        plan(Path("results"), methods=["kd", "vanilla"], seeds=[0])
        for method in ("kd", "vanilla"):
            folder = cell(Path("results"), "resnet20_resnet8", method, 0, right, curve={1: 50.0})
        path = Path("results", file) if file == "benchmark.yaml" else folder / file
        path.unlink(missing_ok=True)
        os.mkfifo(path) if content is None else path.write_bytes(content)
        for command in ("status", "report"):
            outcome = cli("bench", command, "--output", "results")
            assert "\x1b" not in outcome.out + outcome.err
            if outcome.status != 0 or file == "result.json":
                check_refused(outcome, file)
