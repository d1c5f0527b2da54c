"""What a cell depends on: code, methods and data, and folders that other versions started."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ickd_pl import Digits
from ickd_pl.benchmark import fingerprint
from ickd_pl.benchmark.plan import Benchmark, without_paths
from ickd_pl.errors import UserError
from ickd_pl.strategies import CRD, ICKD, KD, LossStrategy
from ickd_pl.training.fingerprint import data_hash
from tests.benchmark.helpers import quick, refused, results, run
from tests.runs.helpers import REPOSITORY, cli, snapshot

# -- code ------------------------------------------------------------------------------------------------------------

# In a copy of the package, before and after each change: the hashes of the shared code and of three methods.
HASHES = """
import json, sys
from pathlib import Path
from ickd_pl.benchmark import fingerprint
from ickd_pl.benchmark.plan import Benchmark, without_paths
from ickd_pl.strategies import CRD, ICKD, KD

def hashes():
    fingerprint.code_hash.cache_clear()
    fingerprint.method_hash.cache_clear()
    return [fingerprint.code_hash(), *map(fingerprint.method_hash, (CRD, ICKD, KD))]

found = [hashes()]
for file, old, new in json.loads(sys.argv[1]):
    path = Path("ickd_pl", file)
    text = path.read_text() if path.exists() else ""
    assert text.count(old) >= 1, (file, old)
    path.write_text(text.replace(old, new, 1))
    found.append(hashes())
    path.write_text(text) if text else path.unlink()
print(json.dumps(found))
"""
CODE = "from __future__ import annotations\n"
METHOD = "from ickd_pl.strategies.base import LossStrategy\nclass LSR(LossStrategy):\n    weight = 1.0\n"
# File, old text, new text: whether the hashes of the shared code, CRD, ICKD and KD change.
CHANGES: dict[tuple[str, str, str], list[bool]] = {
    ("strategies/kd.py", CODE, f"{CODE}# a remark\n"): [False, False, False, False],
    ("strategies/kd.py", '"""', '"""In other words: '): [False, False, False, False],
    ("strategies/kd.py", "class KD(LossStrategy):\n", "class KD(LossStrategy):\n\n"): [False, False, False, False],
    ("training/module.py", '"""', '"""In other words: '): [False, False, False, False],
    ("strategies/lsr.py", "", METHOD): [False, False, False, False],
    ("commands/export.py", CODE, f"{CODE}X = 1\n"): [False, False, False, False],
    ("benchmark/report/tables.py", CODE, f"{CODE}X = 1\n"): [False, False, False, False],
    ("strategies/kd.py", "PositiveFloat = 4.0", "PositiveFloat = 5.0"): [
        False,
        False,
        False,
        True,
    ],
    ("strategies/kd.py", CODE, f"{CODE}X = 1\n"): [False, False, False, True],
    ("strategies/crd.py", "needs_index = True", "needs_index = False"): [False, True, False, False],
    ("strategies/base.py", "NonNegativeInt = 0", "NonNegativeInt = 1"): [
        True,
        False,
        False,
        False,
    ],
    ("strategies/components/shapes.py", CODE, f"{CODE}X = 1\n"): [True, False, False, False],
    ("training/more.py", "", "X = 1\n"): [True, False, False, False],
    ("models/resnet.py", CODE, f"{CODE}X = 1\n"): [True, False, False, False],
    ("benchmark/cells.py", CODE, f"{CODE}X = 1\n"): [True, False, False, False],
    ("seeding.py", CODE, f"{CODE}X = 1\n"): [True, False, False, False],
}


@pytest.fixture(scope="module")
def hashed(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The four hashes before the changes and after each."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(REPOSITORY / "ickd_pl", folder / "ickd_pl", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", HASHES, json.dumps(list(CHANGES))]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return found


def test_the_hashes_are_of_the_code_and_not_of_its_folder(hashed: list[list[str]]) -> None:
    assert hashed[0] == [fingerprint.code_hash(), *map(fingerprint.method_hash, (CRD, ICKD, KD))]
    assert len(set(hashed[0])) == 4
    assert fingerprint.method_hash(ICKD, KD) not in hashed[0]


@pytest.mark.parametrize("number", range(len(CHANGES)), ids=[f"{file}: {new}" for file, _, new in CHANGES])
def test_a_change_counts_where_it_is_used(hashed: list[list[str]], number: int) -> None:
    changed = [one != other for one, other in zip(hashed[0], hashed[number + 1], strict=True)]
    assert changed == list(CHANGES.values())[number]


def test_what_is_hashed_of_the_benchmark_is_there() -> None:
    """A file that was moved would silently not be hashed."""
    for name in (*fingerprint._HASHED_OF_BENCHMARK, *fingerprint._NOT_HASHED):
        assert Path(fingerprint.__file__).parents[1].joinpath(name).exists()


def test_a_method_of_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its module is hashed, and so are its imports: modules next to it, and methods of the package."""
    Path("factors.py").write_text("FACTOR = 2\n")
    Path("warm.py").write_text(
        "from ickd_pl.strategies import KD\n\nclass Warm(KD):\n    def weight_at(self, epoch):\n"
        "        from factors import FACTOR\n\n        return FACTOR * self.weight\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    warm: type[LossStrategy] = importlib.import_module("warm").Warm
    assert set(fingerprint._modules_of([warm])) == {"warm", "factors", "ickd_pl.strategies.kd"}
    seen = {fingerprint.method_hash(warm)}
    for file, text, other in (("factors.py", "FACTOR = 2  # twice\n", False), ("factors.py", "FACTOR = 3\n", True)):
        Path(file).write_text(text)
        fingerprint.method_hash.cache_clear()
        assert (fingerprint.method_hash(warm) not in seen) == other
        seen.add(fingerprint.method_hash(warm))


def test_a_method_without_a_file_is_refused() -> None:
    nowhere: type[LossStrategy] = type("Nowhere", (KD,), {"__module__": "nowhere"})
    with pytest.raises(UserError, match="the methods of nowhere have no source file: define them in a module"):
        fingerprint.method_hash(nowhere)


def test_another_method_stops_the_cells_that_use_it(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(done, "out")
    quick()
    kept = snapshot(Path("out"))
    original = fingerprint.method_hash
    monkeypatch.setattr(
        "ickd_pl.benchmark.folder.method_hash", lambda *classes: "0" * 64 if ICKD in classes else original(*classes)
    )
    message = refused("run", "--config", "short.yaml", "--output", "out")
    assert "cell resnet20_resnet8/ickd/seed_0, done before, was trained with different code of its method" in message
    assert "move out/cells/resnet20_resnet8/ickd/seed_0 away" in message and "--accept-code" in message
    assert snapshot(Path("out")) == kept
    for name in ("ickd", "ickd_kl"):
        shutil.rmtree(f"out/cells/resnet20_resnet8/{name}")
    outcome = run()
    assert outcome.status == 0, outcome.err
    now = snapshot(Path("out"))
    others = [p for p in kept if "/cells/" in p and "/ickd" not in p and not Path(p).name.startswith(".")]
    assert len(others) > 10 and all(now[path] == kept[path] for path in others)
    found = results(Path("out"))
    assert {name for name, result in found.items() if result["method_hash"] == "0" * 64} == {
        f"resnet20_resnet8/{method}/seed_{seed}" for method in ("ickd", "ickd_kl") for seed in (0, 1)
    }
    assert not any(result["accepted_code"] for result in found.values())


# -- data ------------------------------------------------------------------------------------------------------------


def test_where_images_are_kept_is_no_part_of_a_recipe() -> None:
    own = {"class_path": "ImageFolder", "init_args": {"root": "images", "cache": "disk", "image_size": 64}}
    assert without_paths(own) == {"class_path": "ImageFolder", "init_args": {"image_size": 64}}


def test_the_hash_of_data_follows_their_constants() -> None:
    data = Digits(train_size=64)
    before = data_hash(data)
    mean, std = data.mean, data.std
    data._constants = [value + 0.1 for value in mean], std
    assert data_hash(data) != before
    assert torch.is_tensor(data._part("train").image)


OWN = """
import os, torch, pytorch_lightning as pl
from torch.utils.data import DataLoader, TensorDataset

SHIFT, SEED = 0.0, None

class Own(pl.LightningDataModule):
    def __init__(self, size: int = 40, batch_size: int = 20):
        super().__init__()
        self.num_classes, self.num_train, self.batch_size = 10, size, batch_size

    def images(self, count, seed):
        draw = torch.Generator().manual_seed(seed)
        return TensorDataset(torch.randn(count, 3, 32, 32, generator=draw) + SHIFT, torch.arange(count) % 10)

    def train_dataloader(self):
        draw = None if SEED is None else torch.Generator().manual_seed(SEED)
        return DataLoader(self.images(self.num_train, 1), self.batch_size, shuffle=True, generator=draw)

    def val_dataloader(self):
        return DataLoader(self.images(30, 2), 30)

    def test_dataloader(self):
        return DataLoader(self.images(50, 3), 30)
"""


DRAWN = "SEED = int.from_bytes(os.urandom(4), 'big')\n        draw = torch.Generator()"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A benchmark file with a custom data module, stored next to it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_data", raising=False)
    Path("own_data.py").write_text(OWN)
    teachers = {"trainer": {"max_epochs": 1}, "model": {"milestones": []}}
    return quick(data={"class_path": "own_data.Own"}, methods=["vanilla", "kd"], seeds=[0], teachers=teachers)


def test_a_data_module_of_the_users_own(own: str) -> None:
    planned = cli("bench", "plan", "--config", own)
    assert planned.status == 0 and "packed: vanilla, kd: 2 epochs x 2 steps, about" in planned.out, planned.err
    assert run().status == 0
    found = results(Path("out"))["resnet20_resnet8/kd/seed_0"]
    assert (found["data"], found["split"], found["num_test"]) == ("own", "test", 50)
    assert found["acc1_best"] is None  # it is for the validation split, which the report does not show
    before = snapshot(Path("out/cells"))
    assert run().status == 0 and snapshot(Path("out/cells")) == before
    assert "3 cells: 3 done" in cli("bench", "status", "--output", "out").out
    report = cli("bench", "report", "--output", "out")
    assert report.status == 0 and f"{found['acc1_last']:.2f}" in report.out
    assert "set --config FILE" in refused("run", "--output", "out")


@pytest.mark.parametrize("change", ["SHIFT = 0.5", "SEED = 7"])
def test_other_images_or_another_order_of_the_users_own(own: str, change: str) -> None:
    data = importlib.import_module("own_data")
    before = data_hash(data.Own())
    assert data_hash(data.Own()) == before
    exec(change, vars(data))
    assert data_hash(data.Own()) != before


@pytest.mark.parametrize(
    ("old", "new", "needle"),
    [
        ("def test_dataloader", "def tests", "data module Own lacks test_dataloader: a benchmark needs num_classes"),
        ("self.num_classes, self.num_train", "self.num_classes, self.count", "data module Own lacks num_train"),
        ("draw = None if SEED is None else torch.Generator()", DRAWN, "yields different batches each time"),
        (
            "self.images(50, 3), 30)",
            "[['a', 1]], 30)",
            "Own: expected test batches of tensors, got tuple and Tensor",
        ),
        ("% 10)", "% 11)", "Own: labels of the train batches must be from 0 to 9 (num_classes 10), got 0 to 10"),
    ],
)
def test_a_data_module_that_cannot_be_compared(own: str, old: str, new: str, needle: str) -> None:
    assert OWN.count(old) == 1
    Path("own_data.py").write_text(OWN.replace(old, new))
    assert needle in refused("run", "--config", own, "--output", "out")
    assert not Path("out").exists()


def test_a_method_that_needs_more_than_custom_data_have(own: str) -> None:
    """Refused before the folder is written; what the message says to add is named, and no more than that."""
    content = yaml.safe_load(Path(own).read_text())
    Path(own).write_text(yaml.safe_dump({**content, "methods": ["vanilla", "crd"]}))
    message = refused("run", "--config", own, "--output", "out")
    assert "crd needs train_labels, the labels of all training images and batches of (image, label, index)" in message
    Path("own_data.py").write_text(OWN + "\n    train_labels = torch.arange(40) % 10\n")
    sys.modules.pop("own_data")
    message = refused("run", "--config", own, "--output", "out")
    assert "crd needs batches of (image, label, index), which data module Own lacks" in message
    assert not Path("out").exists()


def test_a_choice_with_a_custom_data_module_needs_val_size(own: str) -> None:
    content = yaml.safe_load(Path(own).read_text())
    content |= {"choices": {"kd": {"KD.temperature": [1.0, 8.0]}}, "val_size": 5}
    Path(own).write_text(yaml.safe_dump(content))
    assert "the data module must take val_size" in refused("run", "--config", own, "--output", "out")
    assert not Path("out").exists()


# -- folders of other versions ---------------------------------------------------------------------------------------


def as_form(folder: Path, form: int) -> None:
    """Rewrite a folder as of another version: form 1 has neither ``form`` nor ``method_hash``."""
    for path in folder.glob("cells/**/*.json"):
        content: dict[str, Any] = json.loads(path.read_text())
        content["form"] = form
        if form == 1:
            content.pop("form")
            content.pop("method_hash", None)
            if "identities" in content:
                content["identities"] = [["0" * 64, *identity[1:3]] for identity in content["identities"]]
            else:
                content["code_hash"] = "0" * 64
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("half", [False, True])
def test_a_folder_of_an_older_version_is_read_and_not_continued(done: Path, half: bool) -> None:
    shutil.copytree(done, "out")
    quick()
    as_form(Path("out"), 1)
    if half:
        for path in Path("out").glob("cells/**/result.json"):
            path.unlink()
    counted = "half done" if half else "done"
    assert f"9 cells: 9 {counted}" in cli("bench", "status", "--output", "out").out
    report = cli("bench", "report", "--output", "out")
    last = results(done)["resnet20_resnet8/kd/seed_0"]["acc1_last"]
    assert report.status == 0 and (half or str(last) in Path("out/report.csv").read_text())
    before = snapshot(Path("out/cells"))
    for args in ([], ["--config", "short.yaml"]):
        message = refused("run", *args, "--output", "out")
        assert "was started by an older version of ickd_pl" in message and "set --output to a new folder" in message
        assert "`bench report --output out` still read it" in message
    assert snapshot(Path("out/cells")) == before
    if not half:
        shutil.rmtree("out/cells/resnet20_resnet8/kd")
        assert run("--accept-code").status == 0
        assert results(Path("out"))["resnet20_resnet8/kd/seed_0"]["accepted_code"] is True


def test_a_folder_of_a_newer_version_is_not_mixed_at_all(done: Path) -> None:
    shutil.copytree(done, "out")
    as_form(Path("out"), 99)
    message = refused("run", "--config", quick(), "--output", "out", "--accept-code")
    assert (
        "was started by a newer version of ickd_pl (file format 99, this version reads up to 2): install that version"
        in message
    )


def test_fused_packs_are_part_of_the_identity(done: Path) -> None:
    """Only of packed cells; a folder without it is not continued with it, nor one of a version that did not know it."""
    plain, fused = (Benchmark.of(yaml.safe_load(Path(quick(fused=value)).read_text()), "x") for value in (False, True))
    for one, other in zip(plain.cells, fused.cells, strict=True):
        recipe = (other.kind == "student" and {"fused": True}) or {}
        assert {**plain.recipe(one), **recipe} == fused.recipe(other)
    shutil.copytree(done, "out")
    kept = yaml.safe_load(Path("out/benchmark.yaml").read_text())
    assert kept.pop("fused") is False
    Path("out/benchmark.yaml").write_text(yaml.safe_dump(kept))
    quick()
    assert run().status == 0
    quick(fused=True)
    assert "contains another benchmark" in (message := refused("run", "--config", "short.yaml", "--output", "out"))
    assert "fused: False -> True" in message
    quick(fused=True, pack=False)
    assert "pack is false: set it to true" in refused("plan", "--config", "short.yaml")
