"""A training batch of one image is refused where batch norm cannot use it, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ickd_pl import Digits, DistillationModule, LayerMap, UserError
from ickd_pl.data.loader import TensorLoader
from ickd_pl.strategies import ICKD, KD  # type: ignore[attr-defined]
from ickd_pl.training.pack import Pack

LAYERS = LayerMap(stem="0", stages=("0",), final="0", pooled="3")


def net(norm: bool = True, spread: int = 1) -> nn.Sequential:
    """A network whose map is ``spread`` wide, with or without a batch norm on its pooled vector."""
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.AdaptiveAvgPool2d(spread),
        nn.Flatten(),
        nn.Identity(),
        nn.Linear(4 * spread**2, 10),
    ]
    layers[3] = nn.BatchNorm1d(4 * spread**2) if norm else layers[3]
    return nn.Sequential(*layers)


def own(norm: bool = True) -> DistillationModule:
    return DistillationModule(net(norm), student_layers=LAYERS, num_classes=10)


def trainer(tmp_path: Path, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, **{"max_epochs": 1, **settings},
    )  # fmt: skip


def loader(count: int, size: int = 4, pixels: int = 32, **settings: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(count, 3, pixels, pixels), torch.arange(count) % 10), size, **settings)


REFUSED = r"the last training batch, 1 of 9 images in batches of 4, is a single image, and batch norm in student"


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}, {"limit_train_batches": 3}])
def test_it_is_refused_before_the_first_step(settings: dict[str, Any], tmp_path: Path) -> None:
    run, module = trainer(tmp_path, **settings), own()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(
        UserError, match=REFUSED + r" Sequential .*: choose another batch_size, or drop_last"
    ) as refused:
        run.fit(module, loader(9))
    assert run.global_step == 0 and "\n" not in str(refused.value)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (loader(8), {}),
        (loader(10), {}),
        (loader(9, drop_last=True), {}),
        (loader(9, size=3), {}),
        (loader(9), {"limit_train_batches": 2}),
    ],
)
def test_what_works_goes_on(data: DataLoader[Any], settings: dict[str, Any], tmp_path: Path) -> None:
    trainer(tmp_path, **settings).fit(own(), data)


def test_networks_that_can_use_one_image(tmp_path: Path) -> None:
    trainer(tmp_path).fit(own(norm=False), loader(9))
    trainer(tmp_path).fit(DistillationModule("resnet8", num_classes=10), Digits(train_size=33, batch_size=32))
    trainer(tmp_path).fit(DistillationModule("resnet8", num_classes=10), loader(2, size=1))


def test_it_depends_on_the_size_of_the_images(tmp_path: Path) -> None:
    trainer(tmp_path).fit(DistillationModule("vgg8", num_classes=10), loader(3, size=2))
    with pytest.raises(UserError, match=r"1 of 3 images in batches of 2.*batch norm in student vgg8"):
        trainer(tmp_path).fit(DistillationModule("vgg8", num_classes=10), loader(3, size=2, pixels=8))
    with pytest.raises(UserError, match=r"a training batch of 1 is a single image.*batch norm in student vgg8"):
        trainer(tmp_path).fit(DistillationModule("vgg8", num_classes=10, image_size=8), loader(3, size=1, pixels=8))


def test_a_batch_norm_of_a_method(tmp_path: Path) -> None:
    layers = LayerMap(stem="0", stages=("0",), final="1", pooled="3")
    for strategy in (KD(), ICKD()):
        module = DistillationModule(
            net(False), net(False), strategies=[strategy], student_layers=layers, teacher_layers=layers, num_classes=10
        )
        if isinstance(strategy, KD):
            trainer(tmp_path).fit(module, loader(9))
            continue
        with pytest.raises(UserError, match="batch norm in ICKD"):
            trainer(tmp_path).fit(module, loader(9))


def test_a_pack(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=REFUSED):
        trainer(tmp_path).fit(Pack([DistillationModule("resnet8", num_classes=10), own()], ["a", "b"]), loader(9))


def test_trying_it_draws_nothing(tmp_path: Path) -> None:
    class Watch(pl.Callback):
        drawn: torch.Tensor

        def on_train_epoch_start(self, *_: Any) -> None:
            self.drawn = torch.rand(3)

    drawn = []
    for count in (8, 9):
        watch = Watch()
        student = nn.Sequential(*net(False)[:4], nn.Dropout(), net()[4])
        module = DistillationModule(student, student_layers=LAYERS, num_classes=10)
        data = loader(count)
        pl.seed_everything(1, verbose=False)
        trainer(tmp_path, callbacks=[watch]).fit(module, data)
        drawn.append(watch.drawn)
    assert torch.equal(*drawn)


def test_a_stream_is_not_counted(tmp_path: Path) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(TensorDataset(torch.randn(9, 3, 32, 32), torch.arange(9)))

    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        trainer(tmp_path).fit(own(), DataLoader(Stream(), 4))


@pytest.mark.parametrize(
    ("images", "size", "ranks", "single"),
    [(12, 4, 2, False), (13, 4, 2, True), (14, 4, 2, True), (15, 4, 2, True), (16, 4, 2, False), (12, 3, 2, True)],
)
def test_shares_of_ranks(images: int, size: int, ranks: int, single: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from ickd_pl.training import one_image

    class Run:
        num_training_batches = 99

    shares = set()
    for rank in range(ranks):
        ours = TensorLoader(
            torch.zeros(images, 3, 8, 8, dtype=torch.uint8), torch.zeros(images), batch_size=size, mean=(0, 0, 0),
            std=(1, 1, 1), rank=rank, world_size=ranks,
        )  # fmt: skip
        shares |= {len(batch.label) for batch in ours}
        run: Any = Run()
        run.train_dataloader = ours
        found = one_image._single(run)
        assert (found is not None) == single
        assert found is None or ("on 2 ranks" in found[0] and "fewer devices" in found[1])
    assert (1 in shares) == single
