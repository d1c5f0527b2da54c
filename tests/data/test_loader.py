"""The loader: batches are a function of (seed, epoch, step), sliced over ranks, resumable at any step."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ickd_pl.data import Batch, TensorLoader
from ickd_pl.data.augment import constants, normalise
from ickd_pl.data.images import LazyImages, in_host_memory
from ickd_pl.errors import UserError

N = 23
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
IMAGES = torch.randint(0, 256, (N, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
LABELS = torch.arange(N) % 5


def make(batch_size: int = 5, train: bool = True, **kwargs: object) -> TensorLoader:
    return TensorLoader(IMAGES, LABELS, batch_size=batch_size, mean=MEAN, std=STD, train=train, **kwargs)  # type: ignore[arg-type]


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)
    )


def join(parts: list[Batch]) -> Batch:
    """The global batch out of the ranks' slices, padding samples left out."""
    real = [part for part in parts if int(part.index[0]) >= 0]
    return Batch(*(torch.cat(tensors) for tensors in zip(*real, strict=True)))


def test_an_epoch_holds_every_image_once_and_keeps_the_last_partial_batch():
    loader = make()
    batches = list(loader)
    assert len(loader) == len(batches) == 5
    assert [len(batch.label) for batch in batches] == [5, 5, 5, 5, 3]
    index = torch.cat([batch.index for batch in batches])
    assert index.sort().values.tolist() == list(range(N))
    assert index.tolist() != list(range(N))
    assert torch.equal(torch.cat([batch.label for batch in batches]), LABELS[index])
    assert batches[0].image.dtype == torch.float32
    assert batches[0].image.shape == (5, 3, 8, 8)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [5, 11, 22, 23, 64])
def test_ranks_slice_the_same_global_batches(train, world_size, batch_size):
    solo = list(make(batch_size, train))
    ranks = [make(batch_size, train, rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [list(loader) for loader in ranks]
    assert {len(part) for part in parts} == {len(solo)}
    assert same([join(list(step)) for step in zip(*parts, strict=True)], solo)
    for step in range(len(solo)):
        sizes = [int((part[step].index >= 0).sum()) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        total = sum(sizes)
        shares = [loader.share(step) for loader in ranks]
        assert shares == pytest.approx([size * world_size / total for size in sizes])
        assert sum(shares) == pytest.approx(world_size)


def test_a_rank_with_an_empty_share_gets_a_padding_sample():
    loader = make(22, rank=1, world_size=2)
    last = list(loader)[-1]
    assert last.index.tolist() == [-1]
    assert last.image.shape == (1, 3, 8, 8)
    assert 0 <= int(last.label) < 5
    assert (loader.share(0), loader.share(1)) == (1.0, 0.0)
    assert make(22, rank=0, world_size=2).share(1) == 2.0


def test_batches_are_a_function_of_seed_epoch_and_step():
    first, second = make(), make()
    batches = list(first)
    torch.manual_seed(99)
    assert same(batches, list(second))
    assert same(batches, list(first))
    assert same([first.batch(0, 3)], batches[3:4])
    second.set_epoch(1)
    later = list(second)
    assert not same(batches, later)
    assert same([first.batch(1, 4)], later[4:])
    assert not same(batches, list(make(seed=1)))
    state = torch.random.get_rng_state()
    list(first)
    assert torch.equal(state, torch.random.get_rng_state())


def test_crops_and_flips_differ_between_epochs_for_the_same_image():
    loader = make(N)
    views = set()
    for epoch in range(6):
        batch = loader.batch(epoch, 0)
        views.add(batch.image[batch.index == 0].numpy().tobytes())
    assert len(views) > 3


def test_negative_epochs_come_before_and_change_nothing_after():
    loader = make()
    loader.epoch_offset = -2
    epochs = []
    for told in range(4):
        loader.sampler.set_epoch(told)
        epochs.append(list(loader))
    plain = make()
    assert same(epochs[2], list(plain))
    assert same(epochs[0], [plain.batch(-2, step) for step in range(5)])
    assert all(not same(a, b) for a, b in itertools.combinations(epochs, 2))


@pytest.mark.parametrize("step", range(6))
def test_resume_gives_the_remaining_batches(step):
    whole, stopped, resumed = make(), make(), make()
    for loader in (whole, stopped, resumed):
        loader.set_epoch(3)
    rest = list(whole)
    for _ in zip(range(step), stopped, strict=False):
        pass
    state = stopped.state_dict()
    assert set(state) == {"step"}
    if step:
        assert state["step"] == step
        resumed.load_state_dict(state)
    assert same(list(resumed), rest[step % 5 :])
    assert same(list(resumed), rest), "the step holds for one iteration only"


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("options", [{}, {"padding": 0}, {"flip": False}, {"rank": 1, "world_size": 3}])
def test_the_same_batches_from_a_table_from_memory_and_from_a_file(train, options, monkeypatch):
    """A small set is kept with borders; else a batch gets them, and is read while the last one is used if need be."""
    table = make(11, train, **options)
    assert (table._padded is not None) == train
    monkeypatch.setattr("ickd_pl.data.augment.MIRROR_LIMIT", 0)
    read: list[int] = []

    def noted(rows: list[int], into: Tensor) -> None:
        read.append(len(rows))
        into[:] = IMAGES.flip(0)[rows]

    backwards = torch.arange(N).flip(0)
    lazy = LazyImages(noted, tuple(IMAGES.shape)).subset(backwards)
    for images in (IMAGES, lazy, in_host_memory(IMAGES)):
        other = TensorLoader(images, LABELS, batch_size=11, mean=MEAN, std=STD, train=train, **options)
        assert other._padded is None
        for epoch in (0, 2):
            for loader in (table, other):
                loader.set_epoch(epoch)
            batches = list(table)
            assert same(list(other), batches)
            other.load_state_dict({"step": 1})
            assert same(list(other), batches[1:])
            assert same([other.batch(epoch, 2)], batches[2:])
    assert len(read) == 2 * 6, "each batch is read once"


def test_an_image_that_cannot_be_read_ends_the_epoch_at_its_batch():
    def broken(rows: list[int], into: Tensor) -> None:
        if 12 in rows:
            raise UserError("image 12")

    loader = TensorLoader(
        LazyImages(broken, tuple(IMAGES.shape)), LABELS, batch_size=5, mean=MEAN, std=STD, train=False
    )
    batches = iter(loader)
    assert next(batches).index.tolist() == [0, 1, 2, 3, 4]
    next(batches)
    with pytest.raises(UserError, match="image 12"):
        next(batches)


def test_an_iterator_that_is_never_used_takes_nothing():
    """Lightning makes an iterator before it tells the epoch, and may drop it unused."""
    loader = make()
    loader.load_state_dict({"step": 2})
    iter(loader)
    kept = iter(loader)
    loader.set_epoch(7)
    assert same(list(kept), [make().batch(7, step) for step in (2, 3, 4)])


def test_evaluation_is_in_order_and_plain():
    loader = make(10, train=False)
    loader.set_epoch(4)
    batches = list(loader)
    assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(N))
    assert torch.equal(torch.cat([batch.image for batch in batches]), normalise(IMAGES, constants(MEAN, STD)))
    assert torch.equal(torch.cat([batch.label for batch in batches]), LABELS)


def test_no_crop_and_no_flip():
    batch = make(N, padding=0, flip=False).batch(0, 0)
    assert torch.equal(batch.image, normalise(IMAGES, constants(MEAN, STD))[batch.index])


@pytest.mark.parametrize(
    ("images", "labels", "kwargs", "words"),
    [
        (IMAGES, LABELS, {"batch_size": 2, "world_size": 3}, "got 2 for 3 ranks"),
        (IMAGES.float(), LABELS, {}, "uint8"),
        (IMAGES[:, :1], LABELS, {}, "uint8"),
        (IMAGES[:0], LABELS[:0], {}, "at least 1"),
        (IMAGES, LABELS[:4], {}, "one for each image"),
    ],
)
def test_wrong_input(images, labels, kwargs, words):
    with pytest.raises(UserError, match=words):
        TensorLoader(images, labels, mean=MEAN, std=STD, **{"batch_size": 4, **kwargs})


class Recorder(pl.LightningModule):
    """Notes the images of every training step: what Lightning really asks of the loader."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3 * 8 * 8, 5)
        self.seen: list[tuple[int, list[int], float]] = []

    def training_step(self, batch: Batch, _: int) -> Tensor:
        self.seen.append((self.current_epoch, batch.index.tolist(), float(batch.image.sum())))
        return nn.functional.cross_entropy(self.net(batch.image.flatten(1)), batch.label)

    def validation_step(self, batch: Batch, _: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def run(folder: Path, resume: Path | None = None) -> tuple[Recorder, Path]:
    saver = pl.callbacks.ModelCheckpoint(folder / "ckpt", "{step}", save_top_k=-1, every_n_train_steps=1)
    ends = pl.callbacks.ModelCheckpoint(folder / "ends", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=[saver, ends] if resume is None else [],
        enable_checkpointing=resume is None,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    module = Recorder()
    trainer.fit(module, make(), make(10, train=False), ckpt_path=resume, weights_only=True)
    return module, folder


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_with_exactly_the_remaining_batches(tmp_path):
    whole, folder = run(tmp_path)
    assert len(whole.seen) == 15
    assert [entry[1:] for entry in whole.seen[5:10]] == [
        (b.index.tolist(), float(b.image.sum())) for b in (make().batch(1, step) for step in range(5))
    ]
    for step in (1, 4, 5, 7, 10, 13):
        resumed, _ = run(tmp_path, folder / "ckpt" / f"step={step}.ckpt")
        assert resumed.seen == whole.seen[step:], step
    for epoch in (0, 1):
        resumed, _ = run(tmp_path, folder / "ends" / f"epoch={epoch}.ckpt")
        assert resumed.seen == whole.seen[5 * (epoch + 1) :], epoch
