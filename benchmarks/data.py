"""Images per second of the package's augmentation against torchvision's pipeline, one thread each.

Both crop, flip, scale and normalise batches of 64 images of 32x32 pixels, and both draw their own offsets. torchvision
works on PIL images, one by one, as a loader without workers does; the package's function is the one that
tests/data/test_augment.py shows to be equal bit for bit. Five interleaved rounds; the last line is the median ratio.

    python benchmarks/data.py
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from PIL import Image
from torchvision import transforms

from ickd_pl.data.augment import Padded, augment, constants, pad_images
from ickd_pl.data.cifar import CIFAR100

BATCH, ROUNDS = 64, 5
MEAN, STD = CIFAR100.known_constants


def torchvision_rate(images: list[Image.Image]) -> float:
    """Images per second of RandomCrop, RandomHorizontalFlip, ToTensor and Normalize, batches stacked."""
    pipeline = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    start = time.perf_counter()
    order = torch.randperm(len(images)).tolist()
    for begin in range(0, len(order), BATCH):
        torch.stack([pipeline(images[i]) for i in order[begin : begin + BATCH]])
    return len(images) / (time.perf_counter() - start)


def package_rate(padded: Padded, count: int) -> float:
    """Images per second of :func:`ickd_pl.data.augment.augment`, draws included."""
    consts = constants(MEAN, STD)
    start = time.perf_counter()
    order = torch.randperm(count)
    offset = torch.randint(0, 9, (count, 2))
    flip = torch.randint(0, 2, (count,)).bool()
    for rows in zip(order.split(BATCH), offset.split(BATCH), flip.split(BATCH), strict=True):
        augment(padded, *rows, consts)
    return count / (time.perf_counter() - start)


def main() -> None:
    """Print both rates of every round, then the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000, help="size of the data set (random pixels)")
    parser.add_argument(
        "--torchvision-images", type=int, default=16_000, help="how many of them torchvision is timed on"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (args.images, 3, 32, 32), dtype=torch.uint8)
    some = pixels[: args.torchvision_images].permute(0, 2, 3, 1).contiguous().numpy()
    pil_images = [Image.fromarray(image) for image in some]
    padded = pad_images(pixels)
    package_rate(padded, args.images)
    ratios = []
    for number in range(ROUNDS):
        theirs, ours = torchvision_rate(pil_images), package_rate(padded, args.images)
        ratios.append(ours / theirs)
        print(f"round {number + 1}: torchvision {theirs:,.0f} images/s, ickd_pl {ours:,.0f} images/s")
    print(f"{statistics.median(ratios):.1f} times")


if __name__ == "__main__":
    main()
