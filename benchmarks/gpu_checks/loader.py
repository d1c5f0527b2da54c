"""The loader on the GPU: the CPU's batches and torchvision's, bit for bit, its time, and no host waits."""

from __future__ import annotations

from functools import partial
from itertools import islice

import torch
from PIL import Image
from torchvision.transforms import functional as tv

from common import random_images
from gpu_checks.record import Record, Values
from gpu_checks.steps import endless, loader_of
from gpu_checks.timing import timed, waits_per_call
from ickd_pl import CIFAR100
from ickd_pl.data.augment import augment, constants, pad_images
from ickd_pl.seeding import generator

MEAN, STD = CIFAR100.known_constants


def run(record: Record) -> None:
    same = {"differing": 0, "largest": 0}
    for flip in (True, False):
        differing = partial(_differing, record, record.batch_size, flip=flip)
        record.check("training batches, GPU against CPU", differing, {"flip": flip}, same, needs_cuda=True)
    differing = partial(_differing, record, record.batch_size, host=True)
    record.check("training batches of images in host memory", differing, {}, same, needs_cuda=True)
    differing = partial(_differing, record, 500, train=False)
    record.check("evaluation batches, GPU against CPU", differing, {}, same, needs_cuda=True)
    record.check("against torchvision, image by image", partial(_against_torchvision, record), {}, {"differing": 0})
    loader = loader_of(record)
    batches = endless(loader)
    record.check("a batch", partial(timed, record, partial(next, batches), steps=300))
    record.check("an epoch's draws and a batch", partial(timed, record, partial(loader.batch, 3, 0), 3, warmup=0))
    record.check("host waits", partial(waits_per_call, partial(next, batches), 20), {}, {"waits": 0}, needs_cuda=True)
    read = partial(next, endless(loader_of(record, host=True)))
    record.check("a batch of images in host memory", partial(timed, record, read, steps=300))
    waits = partial(waits_per_call, read, 20)
    record.check("host waits, images in host memory", waits, {}, {"waits": 0}, needs_cuda=True)


def _differing(record: Record, batch_size: int, train: bool = True, flip: bool = True, host: bool = False) -> Values:
    """Batches of two epochs of which any tensor differs, and the largest difference of a pixel."""
    here = loader_of(record, batch_size, train, device="cpu", flip=flip)
    there = loader_of(record, batch_size, train, flip=flip, host=host)
    count, differing, largest = 0, 0, 0.0
    for epoch in (0, 1):
        here.set_epoch(epoch)
        there.set_epoch(epoch)
        for ours, theirs in islice(zip(here, there, strict=True), 100):
            on_cpu = [tensor.cpu() for tensor in theirs]
            count += 1
            differing += not all(torch.equal(a, b) for a, b in zip(ours, on_cpu, strict=True))
            largest = max(largest, float((ours.image - on_cpu[0]).abs().max()))
    return {"differing": differing, "largest": largest, "batches": count}


def _against_torchvision(record: Record) -> Values:
    """Images of a batch on this device that torchvision's functions, with the same draws, make otherwise."""
    count, draws = record.batch_size, generator("benchmarks", "draws")
    pixels, _ = random_images(count)
    offset = torch.randint(0, 9, (count, 2), generator=draws)
    flip = torch.randint(0, 2, (count,), generator=draws).bool()
    padded = pad_images(pixels.to(record.device))
    index, where, mirrored = (x.to(record.device) for x in (torch.arange(count), offset, flip))
    found = augment(padded, index, where, mirrored, constants(MEAN, STD, record.device)).cpu()
    differing = 0
    for number in range(count):
        image = tv.pad(Image.fromarray(pixels[number].permute(1, 2, 0).numpy()), 4)
        image = tv.crop(image, *offset[number].tolist(), 32, 32)
        image = tv.hflip(image) if flip[number] else image
        differing += not torch.equal(tv.normalize(tv.to_tensor(image), MEAN, STD), found[number])
    return {"differing": differing, "images": count}
