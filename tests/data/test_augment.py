"""The batched augmentation equals torchvision's, image by image and bit for bit."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomCrop, RandomHorizontalFlip
from torchvision.transforms import functional as tv

from ickd_pl.data.augment import augment, channel_stats, constants, crop_flip, normalise, pad_images
from ickd_pl.data.cifar import CIFAR10, CIFAR100

CONSTANTS = [CIFAR100.known_constants, CIFAR10.known_constants]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def random_images(count: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(0))


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def torchvision_one(image: Tensor, offset: Tensor, flip: bool, mean: list[float], std: list[float], pad: int) -> Tensor:
    """RandomCrop, RandomHorizontalFlip, ToTensor and Normalize of one PIL image, with the draws given."""
    picture = tv.pad(to_pil(image), pad, fill=0, padding_mode="constant")
    picture = tv.crop(picture, int(offset[0]), int(offset[1]), image.shape[1], image.shape[2])
    if flip:
        picture = tv.hflip(picture)
    return tv.normalize(tv.to_tensor(picture), mean, std)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize(
    ("count", "height", "width", "padding", "consts"),
    [
        (800, 32, 32, 4, CONSTANTS[0]),
        (300, 32, 32, 4, CONSTANTS[1]),
        (60, 64, 64, 4, CONSTANTS[0]),
        (60, 20, 28, 2, CONSTANTS[0]),
        (30, 32, 32, 0, CONSTANTS[0]),
    ],
)
def test_equals_torchvision(device, mirror, count, height, width, padding, consts):
    images = random_images(count, height, width)
    g = torch.Generator().manual_seed(1)
    index = torch.randint(0, count, (count,), generator=g)
    offset = torch.randint(0, 2 * padding + 1, (count, 2), generator=g)
    flip = torch.randint(0, 2, (count,), generator=g).bool()
    padded = pad_images(images.to(device), padding, mirror)
    ours = augment(padded, index.to(device), offset.to(device), flip.to(device), constants(*consts, device))
    theirs = torch.stack(
        [
            torchvision_one(images[i], o, bool(f), *map(list, consts), padding)
            for i, o, f in zip(index, offset, flip, strict=True)
        ]
    )
    assert ours.dtype == torch.float32
    assert torch.equal(ours.cpu(), theirs)


def test_the_functional_calls_are_what_torchvision_s_transforms_do(monkeypatch):
    image = random_images(1, 32, 32)[0]
    monkeypatch.setattr(RandomCrop, "get_params", staticmethod(lambda *_: (7, 1, 32, 32)))
    picture = RandomHorizontalFlip(p=1.0)(RandomCrop(32, padding=4)(to_pil(image)))
    expected = tv.normalize(tv.to_tensor(picture), *CONSTANTS[0])
    assert torch.equal(torchvision_one(image, torch.tensor([7, 1]), True, *map(list, CONSTANTS[0]), 4), expected)


def test_every_offset_and_both_sides():
    images = random_images(2, 8, 8)
    every = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    padded = torch.nn.functional.pad(images[1], (4, 4, 4, 4))
    for mirror in (True, False):
        for flip in (True, False):
            got = crop_flip(
                pad_images(images, 4, mirror), torch.ones(81, dtype=torch.int64), every, torch.tensor([flip] * 81)
            )
            for window, (y, x) in zip(got, every.tolist(), strict=True):
                want = padded[:, y : y + 8, x : x + 8]
                assert torch.equal(window, want.flip(-1) if flip else want)


def test_all_pixel_values_normalise_as_torchvision():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16).contiguous()
    for consts in CONSTANTS:
        assert torch.equal(
            normalise(values, constants(*consts))[0], tv.normalize(tv.to_tensor(to_pil(values[0])), *consts)
        )


def test_the_source_is_not_changed():
    images = random_images(3, 8, 8)
    before = images.clone()
    padded = pad_images(images)
    normalise(images, constants(*CONSTANTS[0]))
    crop_flip(padded, torch.arange(3), torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, dtype=torch.bool)).zero_()
    assert torch.equal(images, before)
    assert torch.equal(padded.pixels[0, :, :, 4:-4, 4:-4], before)


def test_the_mirrored_copy_depends_on_the_memory_it_takes(monkeypatch):
    images = random_images(2, 8, 8)
    assert pad_images(images).pixels.shape == (2, 2, 3, 16, 16)
    monkeypatch.setattr("ickd_pl.data.augment.MIRROR_LIMIT", 3000)
    assert pad_images(images).pixels.shape == (1, 2, 3, 16, 16)


def test_channel_stats():
    images = random_images(2100, 6, 5)
    images[:, 2] = 7
    mean, std = channel_stats(images)
    exact = images.double().div(255)
    assert mean == pytest.approx(exact.mean((0, 2, 3)).tolist(), abs=1e-14)
    assert std[:2] == pytest.approx(exact.std((0, 2, 3), correction=0).tolist()[:2], abs=1e-13)
    assert std[2] == 1.0


def test_resize_is_torchvision_s():
    from ickd_pl.data.decode import decoded

    picture = to_pil(random_images(1, 50, 70)[0])
    theirs = tv.pil_to_tensor(tv.resize(picture, [32, 32], InterpolationMode.BILINEAR, antialias=True))
    assert torch.equal(torch.from_numpy(decoded(picture, 32).copy()), theirs)
