"""What all data modules share: splits, sizes, ranks, constants in checkpoints, the command line."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI
from torch import nn

import ickd_pl.data as data_package
from ickd_pl.data import Batch, TensorDataModule, TensorLoader
from ickd_pl.data.base import Images, split_rows
from ickd_pl.data.loader import suitable_batch
from ickd_pl.errors import UserError

K = 6


class Toy(TensorDataModule):
    """60 training and 13 test images of 8x8; counts how often it is read."""

    num_classes = K
    image_size = 8
    num_available = 60

    def __init__(self, batch_size=8, eval_batch_size=5, val_size=0, train_size=None, seed=0):
        self.name = "toy"
        self.reads: list[str] = []
        super().__init__(batch_size, eval_batch_size, val_size, train_size, seed)

    def _read(self, split):
        self.reads.append(split)
        count = 60 if split == "train" else 13
        g = torch.Generator().manual_seed(count)
        return Images(torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=g), torch.arange(count) % K)

    def _read_class_names(self):
        return [f"class {k}" for k in range(K)]


class Probe(pl.LightningModule):
    def __init__(self, num_classes: int = K):
        super().__init__()
        self.net = nn.Linear(3 * 8 * 8, num_classes)

    def training_step(self, batch: Batch, _: int):
        return nn.functional.cross_entropy(self.net(batch.image.flatten(1)), batch.label)

    def test_step(self, batch: Batch, _: int):
        self.log("mean", batch.image.mean(), batch_size=len(batch.label))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(**kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, **quiet, **kwargs)


def test_what_is_known_before_anything_is_read():
    data = Toy(val_size=12, train_size=30)
    assert (data.name, data.num_classes, data.image_size, data.num_train) == ("toy", K, 8, 30)
    assert data.eval_split == "val"
    assert (Toy().num_train, Toy().eval_split) == (60, "test")
    assert data.reads == []
    assert data.state_dict() == {}


@pytest.mark.parametrize(("val_size", "train_size"), [(0, None), (12, None), (0, 18), (13, 20), (54, 6)])
def test_splits_are_disjoint_balanced_and_the_same_for_every_seed(val_size, train_size):
    labels = torch.arange(60) % K
    train, val = split_rows(labels, val_size, train_size)
    assert len(val) == val_size
    assert len(train) == (60 - val_size if train_size is None else train_size)
    assert not set(train.tolist()) & set(val.tolist())
    for rows in (train, val):
        counts = torch.bincount(labels[rows], minlength=K)
        assert counts.max() - counts.min() <= 1
    data = [Toy(val_size=val_size, train_size=train_size, seed=seed) for seed in (0, 1)]
    assert torch.equal(data[0]._part("train").image, data[1]._part("train").image)
    assert torch.equal(data[0]._part("train").image, Toy()._part("train").image[train])
    assert torch.equal(data[0].train_labels, labels[train])


def test_a_smaller_subset_is_part_of_a_larger_one():
    labels = torch.arange(60) % K
    small, large = (set(split_rows(labels, 12, size)[0].tolist()) for size in (10, 25))
    assert small < large


@pytest.mark.parametrize(
    ("split", "label", "needle"),
    [
        ("train", K, rf"labels of the train images of toy must be from 0 to 5 \(6 classes\); the largest is {K}\."),
        ("train", -1, r"labels of the train images .* the smallest is -1\."),
        ("test", 255, r"labels of the test images .* the largest is 255\."),
        ("test", -2, r"labels of the test images .* the smallest is -2\."),
    ],
)
def test_a_label_that_is_no_class_is_named(split, label, needle):
    class Wrong(Toy):
        def _read(self, which):
            images = super()._read(which)
            if which == split:
                images.label[7] = label
            return images

    for val_size in (0, 12):
        with pytest.raises(UserError, match=needle):
            Wrong(val_size=val_size).setup()


def test_an_image_without_label_may_be_in_no_training():
    class Unlabelled(Toy):
        def _read(self, split):
            images = super()._read(split)
            return images if split == "train" else Images(images.image, torch.full_like(images.label, -1))

    Unlabelled().setup()


def test_uneven_classes_are_split_in_proportion_and_never_emptied():
    labels = torch.cat([torch.zeros(80), torch.ones(20), torch.full((1,), 2), torch.full((3,), 3)]).long()
    train, val = split_rows(labels, 26, None)
    assert torch.bincount(labels[val], minlength=4).tolist() == [20, 5, 0, 1]
    assert torch.bincount(labels[split_rows(labels, 100, None)[0]], minlength=4).tolist() == [1, 1, 1, 1]
    assert torch.bincount(labels[split_rows(labels, 0, 12)[0]], minlength=4).tolist() in ([4, 4, 1, 3],)
    assert len(train) == 78


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": -1}, "eval_batch_size must be at least 1, got -1"),
        ({"val_size": 55}, "val_size must be between 0 and 54 .* got 55"),
        ({"val_size": -1}, "val_size"),
        ({"train_size": 5}, "train_size must be between 6 .* got 5"),
        ({"val_size": 20, "train_size": 41}, "and 40 .* got 41"),
    ],
)
def test_wrong_sizes(kwargs, words):
    with pytest.raises(UserError, match=words):
        Toy(**kwargs)


def test_every_stage_reads_what_it_needs_once():
    data = Toy()
    data.setup("test")
    assert data.reads == ["test"]
    data.setup("fit")
    data.setup("fit")
    data.setup()
    data.train_dataloader()
    data.val_dataloader()
    assert data.reads == ["test", "train"]
    split = Toy(val_size=6)
    split.setup("validate")
    split.setup("fit")
    assert split.reads == ["train"]


def test_loaders():
    data = Toy(val_size=12)
    data.setup()
    train, val, test, predict = (
        data.train_dataloader(),
        data.val_dataloader(),
        data.test_dataloader(),
        data.predict_dataloader(),
    )
    assert all(isinstance(loader, TensorLoader) for loader in (train, val, test, predict))
    assert [sum(len(b.label) for b in loader) for loader in (train, val, test, predict)] == [48, 12, 13, 13]
    assert (train.train, val.train, train.batch_size, val.batch_size) == (True, False, 8, 5)
    index = torch.cat([batch.index for batch in train])
    label = torch.cat([batch.label for batch in train])
    assert torch.equal(data.train_labels[index], label)
    assert data.predict_paths() == [str(i) for i in range(13)]
    plain = Toy()
    plain.setup("fit")
    assert sum(len(b.label) for b in plain.val_dataloader()) == 13
    assert Toy(seed=3).train_dataloader().seed == 3


def test_the_test_set_on_two_ranks_holds_every_image_once():
    seen = []
    for rank in range(2):
        data = Toy(eval_batch_size=6)
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu"))
        )
        data.setup("test")
        seen.append([b.index for b in data.test_dataloader()])
    assert len(seen[0]) == len(seen[1])
    index = torch.cat(seen[0] + seen[1])
    assert index[index >= 0].sort().values.tolist() == list(range(13))


@pytest.mark.parametrize(("given", "size"), [(None, 250), (7, 7)])
def test_evaluation_batches_suit_the_device(given, size):
    """For each rank; a size that is given counts."""
    data = Toy(eval_batch_size=given)
    data.setup("test")
    assert data.test_dataloader().batch_size == (given or 125)
    data.trainer = SimpleNamespace(
        global_rank=1, world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    assert data.val_dataloader().batch_size == data.test_dataloader().batch_size == size
    assert data.hparams["eval_batch_size"] == given
    gpu = SimpleNamespace(root_device=torch.device("cuda"))
    assert suitable_batch(SimpleNamespace(world_size=2, strategy=gpu)) == 4000


def test_constants_travel_in_the_state():
    data = Toy()
    data.setup("fit")
    state = data.state_dict()
    assert state == {"mean": data.mean, "std": data.std, "class_names": [f"class {k}" for k in range(K)]}
    assert all(type(value) is list for value in state.values())
    other = Toy()
    other.setup("test")
    other.load_state_dict({"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0], "class_names": state["class_names"]})
    assert other.mean == [0.1, 0.2, 0.3]
    batch = next(iter(other.test_dataloader()))
    raw = other._part("test").image[:5].float() / 255
    expected = (raw - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    torch.testing.assert_close(batch.image, expected)
    assert other.reads == ["test"], "the training images are not needed for their constants"
    with pytest.raises(UserError, match="2 classes, toy has 6"):
        other.load_state_dict({"class_names": ["a", "b"]})
    with pytest.warns(UserWarning, match="class names differ"):
        other.load_state_dict({"class_names": list("abcdef")})


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_keeps_plain_hyper_parameters_and_is_tested_with_its_own_constants(tmp_path):
    cli = LightningCLI(
        Probe,
        TensorDataModule,
        subclass_mode_data=True,
        run=False,
        save_config_callback=None,
        args=[f"--data={__name__}.Toy", "--data.val_size=6", "--trainer.accelerator=cpu", "--trainer.logger=false"],
    )
    assert cli.datamodule.num_train == 54
    assert cli.datamodule.hparams["val_size"] == 6
    fit = trainer()
    fit.fit(Probe(), datamodule=cli.datamodule)
    path = tmp_path / "a.ckpt"
    fit.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    assert stored["datamodule_hyper_parameters"]["val_size"] == 6
    data = Toy(val_size=3)
    trainer().test(Probe(), datamodule=data, ckpt_path=path, weights_only=True, verbose=False)
    assert data.mean == stored["Toy"]["mean"]
    plain = Toy(val_size=5, seed=2)
    assert dict(plain.hparams) == {"batch_size": 8, "eval_batch_size": 5, "val_size": 5, "train_size": None, "seed": 2}


def test_a_batch_on_its_device_is_not_touched():
    data = Toy()
    batch = next(iter(data.test_dataloader()))
    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert isinstance(moved, Batch)
    assert moved.image.device.type == "meta"
    assert data.transfer_batch_to_device({"image": batch.image}, torch.device("cpu"), 0)["image"] is batch.image


def test_importing_the_data_modules_imports_no_image_library():
    for file in Path(data_package.__file__).parent.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"torchvision", "sklearn", "PIL"}, file


@pytest.mark.parametrize("wrong", [[10**400, 0, 0], [True] * 3, [0.5] * 2, 0.5, [float("inf")] * 3])
def test_numbers_of_a_checkpoint_that_are_none(wrong):
    good = [0.5] * 3
    for state in ({"mean": wrong, "std": good}, {"mean": good, "std": wrong}):
        with pytest.raises(UserError, match="the checkpoint's mean or std is damaged: expected three numbers, got"):
            Toy().load_state_dict(state)
