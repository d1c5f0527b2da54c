"""Copies that are not the published images are refused in one line, which says what differs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ickd_pl.data.sources.facts import CIFAR10_CLASSES, CIFAR100_CLASSES, Facts
from ickd_pl.data.sources.verify import Split, image_digests, mean_std, set_digest, shared_images, verified
from ickd_pl.errors import UserError
from tests.data.cifar_source import digests_of

RANDOM = np.random.default_rng(0)
GOOD = {
    name: Split(RANDOM.integers(0, 256, (30, 3, 32, 32), dtype=np.uint8), np.arange(30, dtype=np.uint8) % 10)
    for name in ("train", "test")
}
FACTS = Facts("CIFAR-X", CIFAR10_CLASSES, {"train": 30, "test": 30}, "label", digests_of(GOOD))


def test_the_digests_are_what_they_are_said_to_be() -> None:
    image, label = GOOD["train"]
    each = [hashlib.sha256(bytes([label[i]]) + image[i].tobytes()).digest() for i in range(30)]
    assert image_digests(GOOD["train"]) == each
    assert set_digest(each) == hashlib.sha256(b"".join(sorted(each))).hexdigest()
    assert image_digests(GOOD["train"], labelled=False)[3] == hashlib.sha256(image[3].tobytes()).digest()


def test_the_order_is_that_of_the_digests_and_not_of_the_source() -> None:
    one = verified(GOOD, FACTS, "here")
    assert image_digests(one["train"]) == sorted(image_digests(GOOD["train"]))
    shuffled = {name: Split(split.image[::-1], split.label[::-1]) for name, split in GOOD.items()}
    two = verified(shuffled, FACTS, "here")
    assert all(np.array_equal(one[name][part], two[name][part]) for name in one for part in range(2))


def refusal(train: Split, test: Split = GOOD["test"]) -> str:
    with pytest.raises(UserError) as caught:
        verified({"train": train, "test": test}, FACTS, "here")
    text = str(caught.value)
    assert text.startswith("here is not CIFAR-X as published: ") and "\n" not in text
    return text


def test_a_cut_copy() -> None:
    text = refusal(Split(GOOD["train"].image[:28], GOOD["train"].label[:28]))
    assert "28 training images, expected 30; in training 2 of ship, 2 of truck, expected 3 of each class" in text


def test_test_images_among_the_training_images() -> None:
    swapped = {name: Split(split.image.copy(), split.label) for name, split in GOOD.items()}
    swapped["train"].image[:10], swapped["test"].image[:10] = GOOD["test"].image[:10], GOOD["train"].image[:10]
    text = refusal(swapped["train"], swapped["test"])
    assert "its images and labels are right, but training and test images are mixed" in text
    copied = Split(GOOD["train"].image.copy(), GOOD["train"].label)
    copied.image[:10] = GOOD["test"].image[:10]
    text = refusal(copied)
    assert (
        "pixels of training images differ: mean" in text and "10 test images equal a training image, expected 0" in text
    )


def test_wrong_labels() -> None:
    label = GOOD["train"].label.copy()
    label[[0, 1]] = label[[1, 0]]
    text = refusal(Split(GOOD["train"].image, label))
    assert "the pixels of the training images are right, but labels differ" in text and "mean" not in text


def test_one_changed_pixel() -> None:
    image = GOOD["test"].image.copy()
    image[3, 0, 0, 0] ^= 1
    text = refusal(GOOD["train"], Split(image, GOOD["test"].label))
    assert (
        "pixels of test images differ" in text and "lossy copy, such as JPEG" in text and "training images" not in text
    )


def test_the_names_are_in_the_order_of_the_labels() -> None:
    for names, count in ((CIFAR100_CLASSES, 100), (CIFAR10_CLASSES, 10)):
        assert len(set(names)) == count and list(names) == sorted(names)


def test_shared_images_are_counted_by_pixels() -> None:
    pixels = {name: image_digests(split, labelled=False) for name, split in GOOD.items()}
    assert shared_images(pixels) == 0
    assert shared_images({"train": pixels["train"], "test": pixels["train"][:4]}) == 4


def test_nothing_is_known_of_the_images() -> None:
    facts = Facts("CIFAR-X", CIFAR10_CLASSES, FACTS.counts, "label", None)
    changed = Split(GOOD["train"].image ^ 1, GOOD["train"].label)
    assert len(verified({"train": changed}, facts, str(Path("here")))["train"].label) == 30


def test_a_cut_copy_that_was_filled_up() -> None:
    image = GOOD["train"].image.copy()
    image[20:] = image[:10]
    assert "; 10 of them repeat another, expected 0" in refusal(Split(image, GOOD["train"].label))


def test_channels_in_reverse_order() -> None:
    """Of the images themselves, and of a lossy copy, of which only mean and std tell it."""
    shaded = {
        name: Split(split.image // np.array([1, 2, 3], np.uint8)[:, None, None], split.label)
        for name, split in GOOD.items()
    }
    digests = replace(digests_of(shaded), mean_std={"train": mean_std(shaded["train"])})
    facts = replace(FACTS, digests=digests)
    image = shaded["train"].image[:, ::-1].copy()
    for changed, said in ((0, "are right, but channels are in reverse order (B, G, R)"), (1, "must be R, G, B")):
        image[3, 0, 0, 0] ^= changed
        with pytest.raises(UserError, match=re.escape(said)):
            verified({"train": Split(image, shaded["train"].label), "test": shaded["test"]}, facts, "here")
    unlike = Split(shaded["train"].image ^ 1, shaded["train"].label)
    with pytest.raises(UserError, match="pixels of training images differ") as caught:
        verified({"train": unlike, "test": shaded["test"]}, facts, "here")
    assert "R, G, B" not in str(caught.value)
