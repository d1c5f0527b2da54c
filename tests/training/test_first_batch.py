"""Batches of an own loader are checked before they train, evaluate or predict anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from ickd_pl import Digits, DistillationModule, LayerMap, UserError, get_model
from ickd_pl.strategies import CRD, KD  # type: ignore[attr-defined]
from ickd_pl.training.pack import Pack

IMAGE, LABEL = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(6)


def loader(image: Tensor = IMAGE, label: Tensor = LABEL, *index: Tensor, size: int = 3) -> DataLoader[Any]:
    return DataLoader(TensorDataset(image, label, *index), batch_size=size)


def spoilt(value: float, where: int = 0) -> Tensor:
    image = IMAGE.clone()
    image[where, 1, 2, 3] = value
    return image


def module(*strategies: Any, **settings: Any) -> DistillationModule:
    teacher = get_model("resnet8", 10) if strategies else None
    return DistillationModule("resnet8", teacher, strategies=list(strategies), num_classes=10, **settings)


def trainer(tmp_path: Path, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **settings,
    )  # fmt: skip


WRONG: dict[str, tuple[DataLoader[Any], str]] = {
    "no class": (loader(label=LABEL + 5), r"label from 0 to 9 \(10 classes\), got 10"),
    "negative": (loader(label=LABEL - 2), r"label from 0 to 9 \(10 classes\), got -2"),
    "nan": (loader(spoilt(float("nan"))), "finite images, got NaN or infinity"),
    "infinite": (loader(spoilt(float("-inf"))), "finite images, got NaN or infinity"),
    "grey": (loader(IMAGE[:, :1]), r"images \(B, 3, H, W\), got"),
    "pixels": (loader(IMAGE.byte()), "floating-point type, got uint8"),
}


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_batches_are_refused(kind: str, stage: str, tmp_path: Path) -> None:
    data, message = WRONG[kind]
    if kind == "no class":
        data = loader(label=LABEL + 5, size=6)
    built = module()
    before = [p.clone() for p in built.parameters()]
    if stage == "predict" and "label" in message:  # no label is read
        assert trainer(tmp_path).predict(built, data)
        return
    with pytest.raises(UserError, match=f"^expected batches with .*{message}") as refused:
        getattr(trainer(tmp_path), stage)(built, data)
    assert "\n" not in str(refused.value)
    assert all(torch.equal(one, other) for one, other in zip(before, built.parameters(), strict=True))


@pytest.mark.parametrize("kind", sorted(set(WRONG) - {"no class"}))
def test_a_wrong_evaluation_loader_is_refused_before_the_first_step(kind: str, tmp_path: Path) -> None:
    data, message = WRONG[kind]
    stopped = trainer(tmp_path)
    with pytest.raises(UserError, match=f"{message}.*"):
        stopped.fit(module(), loader(), data)
    assert stopped.global_step == 0


def test_looking_at_the_evaluation_loader_draws_nothing(tmp_path: Path) -> None:
    class Drawing(TensorDataset):
        """Its images are drawn from the global generator."""

        def __getitem__(self, index: int) -> Any:
            return torch.rand(3, 32, 32), super().__getitem__(index)[1]

    class Watch(pl.Callback):
        drawn: Tensor

        def on_train_epoch_start(self, *_: Any) -> None:
            self.drawn = torch.rand(3)

    drawn = []
    for evaluated in (DataLoader(Drawing(IMAGE, LABEL), 3), loader()):
        pl.seed_everything(1, verbose=False)
        watch = Watch()
        trainer(tmp_path, callbacks=[watch]).fit(module(), loader(), evaluated)
        drawn.append(watch.drawn)
    assert torch.equal(*drawn)


def test_an_index_that_is_no_training_image(tmp_path: Path) -> None:
    class Labelled(pl.LightningDataModule):
        train_labels = LABEL

        def train_dataloader(self) -> DataLoader[Any]:
            return loader(IMAGE, LABEL, LABEL + 4, size=6)

    with pytest.raises(UserError, match=r"index from -1 to 5 \(6 training images, num_samples\), got 9"):
        trainer(tmp_path).fit(module(CRD(negatives=2), num_samples=6), Labelled())
    trainer(tmp_path).fit(module(KD()), Labelled())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_are_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    data = loader(IMAGE.to(dtype), LABEL.int())
    built, run = module(KD()), trainer(tmp_path)
    run.fit(built, data, data)
    pack = Pack([module(), module(KD())])
    trainer(tmp_path).fit(pack, data, data)
    assert run.global_step == 2 and not pack.stopped


def test_a_size_that_the_network_does_not_take(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 10))

    class Fixed(nn.Sequential):
        def forward(self, image: Tensor) -> Any:
            assert image.shape[-1] == 32, "Input width doesn't match\nthe model"
            return super().forward(image)

    layers = LayerMap(stem="0", stages=("1",), final="1", pooled="2")
    built = DistillationModule(Fixed(*net()), student_layers=layers, num_classes=10)  # type: ignore[misc]
    with pytest.raises(UserError, match=r"Fixed does not take images of 3x24x32: Input width|3x32x24: Input width"):
        trainer(tmp_path).fit(built, loader(IMAGE[..., :24]))
    free = DistillationModule(net(), student_layers=layers, num_classes=10)
    trainer(tmp_path).fit(free, loader(IMAGE[..., :24]))


def test_pixels_that_were_not_normalised_are_noticed(tmp_path: Path) -> None:
    pixels = torch.arange(6 * 3 * 32 * 32).remainder(256).reshape(IMAGE.shape).float()
    with pytest.warns(UserWarning, match="look like pixels"):
        trainer(tmp_path).validate(module(), loader(pixels), verbose=False)


class Waits(TorchDispatchMode):
    """Counts the reads of a tensor's value by the host."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


def test_only_the_first_batch_waits_for_the_device() -> None:
    built = module(KD())
    counts = []
    for _ in range(3):
        with Waits() as waits:
            built.as_batch((IMAGE, LABEL))
        counts.append(waits.count)
    assert counts[0] > 0 and counts[1:] == [0, 0]
    built.first_batch.forget()
    with Waits() as waits:
        built.as_batch((IMAGE, LABEL))
    assert waits.count > 0


def test_our_own_data_pass(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(module(CRD(negatives=2), num_samples=20), Digits(train_size=20, batch_size=8))
    assert run.global_step == 3
