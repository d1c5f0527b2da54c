"""Folders of images: listing, decoding and everything that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ickd_pl.data import ImageFolder
from ickd_pl.errors import UserError

CLASSES = ("ant", "bee", "cat")


def pixels(seed: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write(path: Path, seed: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, size)).save(path)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "zoo"
    for c, name in enumerate(CLASSES):
        for i in range(4):
            write(folder / "train" / name / f"{i}.png", 10 * c + i)
        write(folder / "test" / name / "0.png", 100 + c)
    write(folder / "train" / "bee" / "deep" / "er" / "9.PNG", 50)
    (folder / "train" / "bee" / "notes.txt").write_text("no image")
    (folder / "train" / ".hidden").mkdir()
    (folder / "classes.tsv").write_text("left alone")
    return folder


def make(root: Path, **kwargs: object) -> ImageFolder:
    return ImageFolder(str(root), image_size=8, **kwargs)  # type: ignore[arg-type]


def test_images_labels_and_constants(root):
    data = make(root)
    assert (data.name, data.num_classes, data.num_train, data.image_size) == ("zoo", 3, 13, 8)
    data.setup("fit")
    assert data.class_names == list(CLASSES)
    assert data.train_labels.tolist() == [0] * 4 + [1] * 5 + [2] * 4
    train = data._part("train").image
    assert torch.equal(train[5], torch.from_numpy(pixels(11)).permute(2, 0, 1))
    assert torch.equal(train[8], torch.from_numpy(pixels(50)).permute(2, 0, 1))
    assert data.mean == pytest.approx((train.double() / 255).mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx((train.double() / 255).std((0, 2, 3), correction=0).tolist())
    test = list(data.test_dataloader())
    assert test[0].label.tolist() == [0, 1, 2]
    assert data.predict_paths() == [str(root / "test" / name / "0.png") for name in CLASSES]
    assert (root / "classes.tsv").read_text() == "left alone"


def test_constants_are_of_all_training_images_whatever_is_split_off(root):
    assert make(root, val_size=3, train_size=6).mean == make(root).mean
    assert len(make(root, val_size=3, train_size=6).train_labels) == 6


def test_other_modes_and_sizes(root):
    write(root / "train" / "ant" / "0.png", 1, (17, 30))
    Image.fromarray(pixels(3)).convert("L").save(root / "train" / "ant" / "1.png")
    Image.fromarray(pixels(4)).convert("P").save(root / "train" / "ant" / "2.png")
    Image.fromarray(pixels(5)).convert("RGBA").save(root / "train" / "ant" / "3.png")
    train = make(root)._part("train").image
    resized = Image.fromarray(pixels(1, (17, 30))).resize((8, 8), Image.Resampling.BILINEAR)
    assert torch.equal(train[0], torch.from_numpy(np.array(resized)).permute(2, 0, 1))
    assert torch.equal(train[1, 0], train[1, 2])
    assert torch.equal(train[3], torch.from_numpy(pixels(5)).permute(2, 0, 1))
    assert ImageFolder(str(root), image_size=16)._part("train").image.shape == (13, 3, 16, 16)


def test_flip_and_padding_are_the_caller_s(root):
    loader = make(root, flip=False, padding=0).train_dataloader()
    assert not loader._draw(0).flip.any()
    assert not loader._draw(0).offset.any()
    assert make(root, padding=2).train_dataloader()._draw(0).offset.max() == 4


@pytest.mark.parametrize("nested", [True, False])
def test_predict_root(root, tmp_path, nested):
    folder = tmp_path / "new"
    paths = [folder / ("sub/1.png" if nested else "1.png"), folder / "0.jpeg"]
    for seed, path in enumerate(paths):
        write(path, seed)
    data = make(root, predict_root=str(folder))
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert batch.label.tolist() == [-1, -1]
    assert data.predict_paths() == [str(folder / "0.jpeg"), str(paths[0])]
    assert len(data.test_dataloader().labels) == 3


def test_a_corrupt_image_is_named(root):
    bad = root / "train" / "cat" / "2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(UserError, match=r"train/cat/2\.png cannot be read as an image"):
        make(root).setup("fit")
    bad.write_text("text")
    with pytest.raises(UserError, match=r"train/cat/2\.png"):
        make(root).setup("fit")
    bad.unlink()
    make(root).setup("fit")


def test_a_file_that_vanished_is_named(root):
    data = make(root)
    (root / "train" / "cat" / "2.png").unlink()
    with pytest.raises(UserError, match=r"train/cat/2\.png"):
        data.setup("fit")


def test_folders_that_are_wrong(root, tmp_path):
    with pytest.raises(UserError, match=r"nowhere is not a folder; expected .*/train/<class>"):
        make(tmp_path / "nowhere")
    (root / "test").rename(root / "val")
    with pytest.raises(UserError, match=r"zoo/test is not a folder.*found in .*: train, val"):
        make(root)
    (root / "val").rename(root / "test")
    write(root / "test" / "cot" / "0.png", 0)
    with pytest.raises(UserError, match=r"class cot of .* did you mean cat"):
        make(root)
    (root / "test" / "cot").rename(root / "test" / ".cot")
    (root / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="train/empty holds no images"):
        make(root)
    (tmp_path / "bare" / "train").mkdir(parents=True)
    (tmp_path / "bare" / "test").mkdir()
    with pytest.raises(UserError, match="bare/train holds no folders"):
        make(tmp_path / "bare")
    write(tmp_path / "bare" / "train" / "a" / "0.png", 0)
    with pytest.raises(UserError, match="bare/test holds no images"):
        make(tmp_path / "bare")


def test_other_wrong_arguments(root, tmp_path):
    with pytest.raises(UserError, match=r"predict_root: .*gone is not a folder"):
        make(root, predict_root=str(tmp_path / "gone"))
    (tmp_path / "hollow").mkdir()
    with pytest.raises(UserError, match=r"predict_root: .*hollow holds no images"):
        make(root, predict_root=str(tmp_path / "hollow"))
    with pytest.raises(UserError, match="image_size"):
        ImageFolder(str(root), image_size=0)
    with pytest.raises(UserError, match="val_size must be between 0 and 10"):
        make(root, val_size=11)
