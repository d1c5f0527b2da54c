"""What is known of CIFAR-100 and CIFAR-10 as published, by which copies are recognised and verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SIZE = 32
"""Height and width of every image in pixels."""


@dataclass(frozen=True)
class Digests:
    """Hexadecimal digests of :func:`~ickd_pl.data.sources.verify.set_digest`, and figures, of the published images.

    Attributes:
        labelled: by split, of labels with pixels; this is what a copy is verified against.
        pixels: by split, of pixels without labels. It and the rest only tell what differs in a wrong copy.
        both: of labels with pixels, of both splits together; None: unknown.
        repeated: by split, images beyond the first of equal ones.
        shared: test images that equal a training image; None: unknown.
        mean_std: by split, mean and std per channel of pixels scaled to 0..1.
    """

    labelled: Mapping[str, str]
    pixels: Mapping[str, str] = field(default_factory=dict)
    both: str | None = None
    repeated: Mapping[str, int] = field(default_factory=dict)
    shared: int | None = None
    mean_std: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What a copy of a data set must have.

    Attributes:
        title: name of the data set.
        classes: names in the order of the labels.
        counts: number of images by split, "train" and "test".
        label_column: of the labels in a parquet file.
        digests: of the images; None: unknown, so that only counts and sizes are checked.
    """

    title: str
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    label_column: str
    digests: Digests | None


CIFAR100_CLASSES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

CIFAR100_DIGESTS = Digests(
    labelled={
        "train": "6d2a03c47c105e4c34d3a2ff16c2803e8df0e5d6fa0c631e46663a327aeac573",
        "test": "381b7d98ce1e9b98232a8df0db0a22992654c39ff2433270656ab8ace5a45e65",
    },
    pixels={
        "train": "d63bc5fc1495dab5423fb6175554883387242507e16425df2193803bf5967568",
        "test": "b65564230ab2b2c8ad3debc004d5e2eda9fa3fa5ae13eba456c8d029b021f19e",
    },
    both="ac470612f7d045e7911f7f866b79797a9d1a80ddb0581b82f097fff5e0302ea3",
    repeated={"train": 14, "test": 2},
    shared=10,
    mean_std={
        "train": ((0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)),
        "test": ((0.50880, 0.48739, 0.44194), (0.26825, 0.25736, 0.27710)),
    },
)
