"""A loader without workers: batches are taken from images in memory, on the GPU or in files, and made on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ickd_pl.data.augment import Padded, augment, constants, normalise, pad_images, table_needed
from ickd_pl.data.batch import Batch
from ickd_pl.data.images import LazyImages, Pixels, in_host_memory, one_ahead
from ickd_pl.errors import UserError
from ickd_pl.seeding import generator

# Images of an evaluation batch on one rank. On a CPU the maps of a larger one do not fit into the caches; on a GPU
# launching the kernels of a small network takes longer than they run for fewer.
ON_CPU, ELSEWHERE = 125, 2000


def suitable_batch(trainer: Any) -> int:
    """The size of evaluation batches, over all ranks, that suits the trainer's device; None: a CPU."""
    if trainer is None:
        return ON_CPU
    each = ON_CPU if trainer.strategy.root_device.type == "cpu" else ELSEWHERE
    return each * int(trainer.world_size)


class _Draws(NamedTuple):
    """The random choices of one epoch, by position in that epoch."""

    order: Tensor  # (N,) int64
    rows: Tensor  # the same on the CPU
    offset: Tensor  # (N, 2) int64
    flip: Tensor  # (N,) bool


class TensorLoader:
    """Iterates :class:`Batch` over uint8 images.

    Training: what the global batch holds (order, crop, flip) is a function of (seed, epoch, step) alone, so it does not
    depend on the number of ranks, on what was loaded before, or on any global random state. Each rank takes its
    contiguous slice. The last, smaller batch is kept. Evaluation: the images in order, each exactly once over all
    ranks.

    Every rank takes the same number of steps. Shares of an uneven batch differ by at most one sample; a rank whose
    share is empty gets one padding sample with ``index`` -1.

    Lightning calls ``loader.sampler.set_epoch`` and stores :meth:`state_dict` in its checkpoints.

    Of images that are not on the device of the batches, one batch at a time goes there, as uint8; a thread reads the
    next one meanwhile. Crops are cut from borders that the images of a batch get; of a small set (``MIRROR_LIMIT``)
    all images are kept with borders, which is faster. Neither changes a bit of a batch.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64, moved to the device of the batches.
        batch_size: size of the GLOBAL batch, over all ranks.
        mean: per channel, of pixels scaled to 0..1.
        std: per channel.
        train: shuffle and augment. False: in order, normalised only.
        seed: for order and augmentation.
        flip: mirror half of the training images.
        padding: black border in pixels for the random crop, 0 for no crop.
        rank: of this process.
        world_size: number of processes.
        same_order: every epoch has the order of the first, so that the first batches are the same images each time, in
            crops and flips that are drawn anew. For the Trainer's ``overfit_batches``.
        device: of the batches; None: that of ``images``.

    Raises:
        UserError: no images, shapes or dtypes that do not fit, or a batch smaller than the number of ranks.
    """

    epoch_offset: int = 0
    """Added to the epoch that :meth:`set_epoch` gets. Negative where a first stage comes before the main epochs."""

    batch_sampler = None
    """Lightning looks for it wherever there is a ``sampler``."""

    def __init__(
        self,
        images: Pixels,
        labels: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        train: bool = False,
        seed: int = 0,
        flip: bool = True,
        padding: int = 4,
        rank: int = 0,
        world_size: int = 1,
        same_order: bool = False,
        device: torch.device | None = None,
    ) -> None:
        _check(images, labels, batch_size, world_size)
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.flip = flip
        self.rank = rank
        self.world_size = world_size
        self.same_order = same_order
        own = images.device if isinstance(images, Tensor) else torch.device("cpu")
        self._device = own if device is None else device
        self.labels = labels.to(self._device, torch.int64)
        self._padding = padding
        self._padded: Padded | None = None
        # Any: what is read and what lies on the device are taken in the same way.
        self._images: Any = images
        if isinstance(images, Tensor) and own != self._device:
            self._images = in_host_memory(images)
        elif isinstance(images, Tensor) and train and table_needed(images.shape, padding, flip):
            self._padded = pad_images(images, padding, flip)
        self._constants = constants(mean, std, self._device)
        self._order = torch.arange(len(images), device=self._device)
        self._epoch = 0
        self._start = 0
        self._next = 0

    def __len__(self) -> int:
        """Steps in an epoch, the same on every rank."""
        return math.ceil(len(self._images) / self.batch_size)

    @property
    def sampler(self) -> TensorLoader:
        """The loader itself: Lightning calls ``loader.sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; ``epoch_offset`` is added to it."""
        self._epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """The step that comes next. The epoch is left out: Lightning sets it again on resume."""
        return {"step": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Start the next iteration, and only that one, at the stored step (the end of an epoch counts as 0)."""
        self._start = self._next = int(state["step"]) % len(self)

    def share(self, step: int) -> float:
        """This rank's part of the global batch times the number of ranks: 1.0 where all are equal, 0.0 for padding.

        The mean over ranks of ``share * local mean`` is the mean over the global batch.
        """
        first, last = self._bounds(step)
        count = min(self.batch_size, len(self._images) - step * self.batch_size)
        return (last - first) * self.world_size / count

    def __iter__(self) -> Iterator[Batch]:
        # The body runs at the first next(): Lightning creates the iterator before it calls set_epoch.
        start, self._start = self._start, 0
        draws = self._draw(self._epoch + self.epoch_offset) if self.train else None
        steps = range(start, len(self))
        for step, read in zip(steps, self._read_ahead(steps, draws), strict=True):
            self._next = step + 1
            yield self._batch(step, draws, read)

    def batch(self, epoch: int, step: int) -> Batch:
        """This rank's batch at any epoch and step, computed directly; ``epoch_offset`` is not added."""
        draws = self._draw(epoch) if self.train else None
        return self._batch(step, draws, next(iter(self._read_ahead([step], draws))))

    def _bounds(self, step: int) -> tuple[int, int]:
        """Where this rank's slice of the global batch begins and ends, counted from the start of the epoch."""
        begin = step * self.batch_size
        count = min(self.batch_size, len(self._images) - begin)
        each, extra = divmod(count, self.world_size)
        first = begin + self.rank * each + min(self.rank, extra)
        return first, first + each + (self.rank < extra)

    def _draw(self, epoch: int) -> _Draws:
        """Order, crops and flips of one epoch: drawn on the CPU, so the same on every device, then moved."""
        count, device = len(self._images), self._device
        order = torch.randperm(count, generator=generator(self.seed, "order", 0 if self.same_order else epoch))
        crop = generator(self.seed, "crop", epoch)
        offset = torch.randint(0, 2 * self._padding + 1, (count, 2), generator=crop)
        flip = torch.randint(0, 2, (count,), generator=crop).bool()
        if not self.flip:
            flip.zero_()
        return _Draws(order.to(device), order, offset.to(device), flip.to(device))

    def _rows(self, step: int) -> slice:
        """The rank's slice of the epoch; where that is empty, the batch's first image."""
        first, last = self._bounds(step)
        return slice(first, last) if first < last else slice(step * self.batch_size, step * self.batch_size + 1)

    def _read_ahead(self, steps: Sequence[int], draws: _Draws | None) -> Iterable[Tensor | None]:
        """The images of some steps, each read while the step before it is used; None where they are on the device."""
        if self._padded is not None or isinstance(self._images, Tensor):
            return repeat(None, len(steps))
        return one_ahead(self._reading(self._images, self._rows(step), draws) for step in steps)

    def _reading(self, images: LazyImages, rows: slice, draws: _Draws | None) -> Callable[[], Tensor]:
        # Pinned, so that the copy to the GPU waits for nothing. The allocator keeps and reuses such memory.
        shape, pinned = (rows.stop - rows.start, *images.shape[1:]), self._device.type == "cuda"
        into = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        return partial(images.read, rows if draws is None else draws.rows[rows], into)

    def _batch(self, step: int, draws: _Draws | None, read: Tensor | None) -> Batch:
        first, last = self._bounds(step)
        rows = self._rows(step)
        index = (self._order if draws is None else draws.order)[rows]
        if draws is None:
            image = normalise(self._images[rows] if read is None else self._moved(read), self._constants)
        else:
            if self._padded is not None:
                table, chosen = self._padded, index
            else:
                some = self._images.index_select(0, index) if read is None else self._moved(read)
                # Mirrored whatever flip says: that takes less time than crop_flip without.
                table, chosen = pad_images(some, self._padding, True), self._order[: len(index)]
            image = augment(table, chosen, draws.offset[rows], draws.flip[rows], self._constants)
        label = self.labels.index_select(0, index)
        return Batch(image, label, torch.full_like(index, -1) if first == last else index)

    def _moved(self, images: Tensor) -> Tensor:
        return images.to(self._device, non_blocking=True)


def _check(images: Pixels, labels: Tensor, batch_size: int, world_size: int) -> None:
    if images.dtype != torch.uint8 or len(images.shape) != 4 or images.shape[1] != 3 or not len(images):
        raise UserError(
            f"images must be (N, 3, H, W) uint8 with N at least 1, got {tuple(images.shape)} {images.dtype}"
        )
    if labels.shape != images.shape[:1]:
        raise UserError(f"labels must be ({len(images)},), one for each image, got {tuple(labels.shape)}")
    if batch_size < world_size:
        raise UserError(
            f"batch_size is the batch over all ranks and must be at least their number: got {batch_size} for "
            f"{world_size} ranks. Raise batch_size or use fewer devices."
        )
