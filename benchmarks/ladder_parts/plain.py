"""A training loop as the neighbours write it: PIL transforms in a DataLoader, float32, eager, a read-out every step.

The networks are the project's, which cost the same as the neighbours', with a list of features for each.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from ickd_pl import get_model
from ladder_parts.contrast import Contrast, NegativesByClass
from ladder_parts.images import CLASSES, MEAN, STD, random_split
from ladder_parts.literal import METHODS, Softened
from ladder_parts.turns import TURNS

PRINT_EVERY = 100
TEST_IMAGES = 10_000


class Average:
    """The last value and the mean of all."""

    def __init__(self) -> None:
        self.value = self.mean = self.total = 0.0
        self.count = 0

    def update(self, value: float, count: int = 1) -> None:
        self.value = value
        self.total += value * count
        self.count += count
        self.mean = self.total / self.count


class Pictures(Dataset[Any]):
    """Images in memory, each made a PIL image and transformed when it is asked for."""

    def __init__(self, split: str, count: int, transform: Any, contrast: bool = False) -> None:
        pixels, labels = random_split(split, count)
        self.data, self.targets = pixels.permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy()
        self.transform = transform
        self.negatives = NegativesByClass(self.targets) if contrast else None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, target = self.transform(Image.fromarray(self.data[index])), int(self.targets[index])
        return (image, target, index) if self.negatives is None else (image, target, index, self.negatives(index))


def training_set(count: int, contrast: bool) -> Pictures:
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    return Pictures("train", count, transforms.Compose([*steps, *_to_tensor()]), contrast)


def _test_set(count: int) -> Pictures:
    return Pictures("test", count, transforms.Compose(_to_tensor()))


def _to_tensor() -> list[Any]:
    return [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]


def listed(net: Any, image: Tensor) -> tuple[list[Tensor], Tensor]:
    """The features as a list, shallow to deep, and the logits."""
    found = net.features(image)
    return [found.stem, *found.stages, found.pooled], found.logits


def accuracy(logits: Tensor, target: Tensor, top: tuple[int, ...] = (1, 5)) -> list[Tensor]:
    """In percent, for each of the given numbers of guesses."""
    with torch.no_grad():
        _, guessed = logits.topk(max(top), 1, True, True)
        right = guessed.t().eq(target.view(1, -1).expand(max(top), -1))
        return [right[:k].reshape(-1).float().sum(0, keepdim=True) * (100.0 / len(target)) for k in top]


def train(method: str, spec: dict[str, Any], device: torch.device) -> Iterator[None]:
    """Train for ever; yields before every step."""
    row = METHODS[method]
    student, teacher = get_model(spec["student"], CLASSES).to(device), None
    if method != "vanilla":
        teacher = get_model(spec["teacher"], CLASSES)
        teacher.load_state_dict(torch.load(Path(spec["weights"]), weights_only=True)["model"])
        teacher.to(device).eval()
    part, loss_of, contrast = None, None, None
    if teacher is not None:
        with torch.no_grad():
            shapes = [listed(net.eval(), torch.zeros(2, 3, 32, 32, device=device))[0] for net in (student, teacher)]
        if row.build is not None:
            part, loss_of = row.build(*shapes)
        if method == "crd":
            part = contrast = Contrast(shapes[0][-1], shapes[1][-1], spec["images"])
    trained = nn.ModuleList([student, *([] if part is None else [part.to(device)])]).train()
    optimizer = optim.SGD(trained.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    cross_entropy, softened = nn.CrossEntropyLoss(), Softened()
    loader = DataLoader(
        training_set(spec["images"], contrast is not None),
        batch_size=spec["batch"], shuffle=True, num_workers=spec["workers"],
    )  # fmt: skip
    for epoch in itertools.count(1):
        batch_time, data_time, losses, top1, top5 = (Average() for _ in range(5))
        end = time.time()
        for number, data in enumerate(loader):
            yield
            data_time.update(time.time() - end)
            image, target = data[0].float().to(device), data[1].to(device)
            features, logits = listed(student, image)
            loss = row.ce * cross_entropy(logits, target)
            if teacher is not None:
                with torch.no_grad():
                    teacher_features, teacher_logits = listed(teacher, image)
                    teacher_features = [each.detach() for each in teacher_features]
                loss = loss + row.kl * softened(logits, teacher_logits)
                if contrast is not None:
                    index, drawn = data[2].to(device), data[3].to(device)
                    loss = loss + row.weight * contrast(features[-1], teacher_features[-1], index, drawn)
                elif loss_of is not None:
                    loss = loss + row.weight * loss_of(features, teacher_features)
            first, fifth = accuracy(logits, target)
            losses.update(loss.item(), len(image))
            top1.update(first[0].item(), len(image))
            top5.update(fifth[0].item(), len(image))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            batch_time.update(time.time() - end)
            end = time.time()
            if number % PRINT_EVERY == 0:
                times = f"time {batch_time.value:.3f} ({batch_time.mean:.3f}) data {data_time.mean:.3f}"
                print(f"{epoch} [{number}/{len(loader)}] {times} loss {losses.value:.4f} acc {top1.mean:.3f}")


def run(spec: dict[str, Any]) -> None:
    """One step of every method in turn, or an evaluation, whenever it is this contestant's turn."""
    if spec["evaluate"]:
        evaluate(spec)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Such loops read the test images before they train. It matters: glibc takes the size of what is freed then for the
    # size from which it gives memory back, and a step of KD has 140 page faults in place of 7,000.
    test = _test_set(TEST_IMAGES)  # noqa: F841
    rows = [train(method, spec, device) for method in spec["methods"]]
    while True:
        TURNS.step()
        for row in rows:
            next(row)


def evaluate(spec: dict[str, Any]) -> None:
    """Evaluation of all test images, whenever it is this contestant's turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, criterion = get_model(spec["student"], CLASSES).to(device).eval(), nn.CrossEntropyLoss()
    pictures = Subset(_test_set(TEST_IMAGES), range(spec["test_images"]))
    loader = DataLoader(pictures, batch_size=spec["batch"], num_workers=spec["workers"])
    while True:
        TURNS.step()
        losses, top1, top5 = (Average() for _ in range(3))
        with torch.no_grad():
            for image, target, _ in loader:
                logits = net(image.float().to(device))
                first, fifth = accuracy(logits, target.to(device))
                losses.update(criterion(logits, target.to(device)).item(), len(image))
                top1.update(first[0].item(), len(image))
                top5.update(fifth[0].item(), len(image))
