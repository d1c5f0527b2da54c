"""Digests of images that do not depend on their order or container, the order by them, and what a wrong copy has."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ickd_pl.data.sources.facts import Facts
from ickd_pl.errors import UserError

SPLITS = {"train": "training", "test": "test"}
"""Names of the splits, and as they are called in a sentence."""
ANOTHER = "Give archive= another copy."
_NEAR = 0.005  # what a lossy copy changes of a mean or std


class Split(NamedTuple):
    """Images and labels of one split, in memory.

    Attributes:
        image: (N, 3, 32, 32) uint8.
        label: (N,) uint8.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]


def image_digests(split: Split, labelled: bool = True) -> list[bytes]:
    """SHA-256 of each image: its label as one byte, then its 3,072 bytes, channels first, row by row.

    Args:
        split: the images.
        labelled: False: of the pixels alone.
    """
    images = np.ascontiguousarray(split.image)
    if not labelled:
        return [hashlib.sha256(image).digest() for image in images]
    found = []
    for label, image in zip(split.label.tolist(), images, strict=True):
        digest = hashlib.sha256(bytes((label,)))
        digest.update(image)
        found.append(digest.digest())
    return found


def set_digest(digests: Iterable[bytes]) -> str:
    """SHA-256 in hexadecimal of the joined digests of images in ascending order: equal for equal sets of images."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def in_order(split: Split, digests: Sequence[bytes]) -> Split:
    """The images in their one order, ascending by digest."""
    order = np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)
    return Split(split.image[order], split.label[order])


def verified(splits: Mapping[str, Split], facts: Facts, where: str, advice: str = ANOTHER) -> dict[str, Split]:
    """The images of some splits in their one order, if they are those that were published.

    Args:
        splits: "train", "test" or both, in any order.
        facts: of the data set.
        where: names the copy in an error.
        advice: ends an error.

    Raises:
        UserError: they are not; with what differs, as far as that can be known from digests.
    """
    digests = {name: image_digests(split) for name, split in splits.items()}
    check_counts({name: split.label.tolist() for name, split in splits.items()}, facts, where, advice)
    if facts.digests is not None:
        wrong = [name for name in splits if set_digest(digests[name]) != facts.digests.labelled[name]]
        if wrong:
            raise _refused(where, facts, _differences(splits, digests, wrong, facts), advice)
    return {name: in_order(split, digests[name]) for name, split in splits.items()}


def check_counts(labels: Mapping[str, Sequence[int]], facts: Facts, where: str, advice: str = ANOTHER) -> None:
    """Check how many images each split and each class has; cheap, so that this comes before images are decoded.

    Args:
        labels: of the images, by split.
        facts: of the data set.
        where: names the copy in an error.
        advice: ends an error.

    Raises:
        UserError: with the numbers that are expected and those that came.
    """
    found = []
    for name, own in labels.items():
        each, count = facts.counts[name] // len(facts.classes), Counter(own)
        if len(own) != facts.counts[name]:
            found.append(f"{len(own):,} {SPLITS[name]} images, expected {facts.counts[name]:,}")
        odd = [f"{count[k]:,} of {title}" for k, title in enumerate(facts.classes) if count[k] != each]
        if odd:
            more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
            found.append(f"in {SPLITS[name]} {', '.join(odd[:3])}{more}, expected {each:,} of each class")
    if found:
        raise _refused(where, facts, found, advice)


def _refused(where: str, facts: Facts, found: Sequence[str], advice: str) -> UserError:
    return UserError(f"{where} is not {facts.title} as published: {'; '.join(found)}. {advice}")


def _differences(
    splits: Mapping[str, Split], digests: Mapping[str, Sequence[bytes]], wrong: Sequence[str], facts: Facts
) -> list[str]:
    known = facts.digests
    assert known is not None
    if len(splits) == 2 and set_digest([one for own in digests.values() for one in own]) == known.both:
        return ["its images and labels are right, but training and test images are mixed"]
    pixels = {name: image_digests(split, labelled=False) for name, split in splits.items()}
    found = []
    for name in wrong:
        reversed_channels = splits[name]._replace(image=splits[name].image[:, ::-1])
        if set_digest(image_digests(reversed_channels)) == known.labelled[name]:
            found.append(
                f"the {SPLITS[name]} images and their labels are right, but channels are in reverse order (B, G, R), "
                "expected R, G, B"
            )
            continue
        if set_digest(pixels[name]) == known.pixels.get(name):
            found.append(f"the pixels of the {SPLITS[name]} images are right, but labels differ")
            continue
        mean, std = mean_std(splits[name])
        text = f"pixels of {SPLITS[name]} images differ: mean {_shown(mean)} and std {_shown(std)}"
        if name in known.mean_std:
            text += f", expected {_shown(known.mean_std[name][0])} and {_shown(known.mean_std[name][1])}"
            backwards = [*known.mean_std[name][0][::-1], *known.mean_std[name][1][::-1]]
            if all(abs(one - other) < _NEAR for one, other in zip((*mean, *std), backwards, strict=True)):
                text += ", which they are in reverse order: channels must be R, G, B"
        again = len(pixels[name]) - len(set(pixels[name]))
        if again != (published := known.repeated.get(name, 0)):
            text += f"; {again:,} of them repeat another, expected {published}"
        found.append(text)
    shared = shared_images(pixels) if len(splits) == 2 else None
    if shared is not None and shared != known.shared:
        expected = "" if known.shared is None else f", expected {known.shared}"
        found.append(f"{shared:,} test images equal a training image{expected}")
    elif not any("are right" in reason for reason in found):
        found.append("a lossy copy, such as JPEG, or a resized one looks like this")
    return found


def shared_images(pixels: Mapping[str, Sequence[bytes]]) -> int:
    """Number of test images whose digest is also a training image's."""
    training = set(pixels["train"])
    return sum(one in training for one in pixels["test"])


def mean_std(split: Split) -> tuple[list[float], list[float]]:
    """Mean and std per channel of pixels scaled to 0..1."""
    mean = split.image.mean((0, 2, 3), dtype=np.float64) / 255
    std = split.image.std((0, 2, 3), dtype=np.float64) / 255
    return mean.tolist(), std.tolist()


def _shown(values: Sequence[float]) -> str:
    return " ".join(f"{value:.5f}" for value in values)
