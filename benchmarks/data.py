"""Images per second of the package's augmentation against torchvision's pipeline, one thread each.

Both crop, flip, scale and normalise batches of 64 images of 32x32 pixels, and both draw their own offsets. torchvision
works on PIL images, one by one, as a loader without workers does; the package's function is the one that
tests/data/test_augment.py shows to be equal bit for bit. Five interleaved rounds; the last line is the median ratio.

    python benchmarks/data.py

With ``--folder 20000``: an image folder of as many JPEG files of 224 pixels and a tenth for the test, made in a
temporary folder (``--in``; 0.5 GB, with the cache file 3.8 GB) and deleted afterwards. For each ``data.cache``, in a
process of its own: seconds of the first start and of a later one (reading or decoding, mean and std) and of the data's
hash, which every ``fit`` takes, images per second of a training epoch and of an evaluation, the peak of memory (VmHWM)
beyond the imports, and what of it is the process's own and what is of files at the end.

    python benchmarks/data.py --folder 20000
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from ickd_pl.data.augment import Padded, augment, constants, pad_images
from ickd_pl.data.cifar import CIFAR100
from ickd_pl.data.image_folder import ImageFolder
from ickd_pl.training.fingerprint import data_hash

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


def write_folder(root: Path, count: int, size: int) -> None:
    """Files of 64 pictures that are about as hard to decode as photographs, in ten classes."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(64):
        coarse = Image.fromarray(random.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(file := io.BytesIO(), "JPEG", quality=90)
        pictures.append(file.getvalue())
    for split, images in (("train", count), ("test", count // 10)):
        for number in range(images):
            path = root / split / str(number % 10) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pictures[number % 64])


def memory() -> dict[str, float]:
    """Memory of this process in GB: the peak, and of now that of its own and that of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 / 1e9 for name in ("VmHWM", "RssAnon", "RssFile")}


def one_start(root: str, cache: str, size: int) -> dict[str, float]:
    """One process that reads the folder and goes once through its training and its test images."""
    before = memory()
    found = {}

    def lap(name: str, images: int = 0) -> None:
        nonlocal start
        seconds, start = time.perf_counter() - start, time.perf_counter()
        found[name] = images / seconds if images else seconds

    start = time.perf_counter()
    data = ImageFolder(root, image_size=size, cache=cache)
    data.setup("fit")
    lap("start s")
    data_hash(data)
    lap("hash s")
    for name, loader in (("train images/s", data.train_dataloader()), ("test images/s", data.val_dataloader())):
        start = time.perf_counter()
        lap(name, sum(len(batch.label) for batch in loader))
    after = memory()
    return {
        **found,
        "peak GB": after["VmHWM"] - before["VmHWM"],
        **{k: v - before[k] for k, v in after.items() if k != "VmHWM"},
    }


def folders(count: int, size: int, where: str | None) -> None:
    """Print a line for each kind of cache, first and later start."""
    with tempfile.TemporaryDirectory(dir=where) as root:
        write_folder(Path(root), count, size)
        for cache in ("disk", "memory", "none"):
            for which in ("first", "later") if cache != "none" else ("every",):
                if which == "first":
                    for file in Path(root).glob(".ickd_cache/*.images"):
                        file.unlink()
                own = [sys.executable, __file__, "--start", root, cache, "--size", str(size)]
                found = json.loads(subprocess.run(own, check=True, capture_output=True, text=True).stdout)
                print(
                    f"{cache:6} {which:5} " + "  ".join(f"{k} {v:,.{0 if v > 50 else 2}f}" for k, v in found.items()),
                    flush=True,
                )


def main() -> None:
    """Print both rates of every round, then the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000, help="size of the data set (random pixels)")
    parser.add_argument(
        "--torchvision-images", type=int, default=16_000, help="how many of them torchvision is timed on"
    )
    parser.add_argument("--folder", type=int, help="measure an image folder of this many training images instead")
    parser.add_argument("--size", type=int, default=224, help="height and width of its images")
    parser.add_argument("--in", dest="where", help="where to make it; the system's temporary folder by default")
    parser.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        print(json.dumps(one_start(*args.start, args.size)))
        return
    if args.folder:
        folders(args.folder, args.size, args.where)
        return
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
