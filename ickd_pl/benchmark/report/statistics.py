"""Means, and differences with the uncertainty they have.

A difference between two methods on one pair is the mean, over the seeds that both have, of the difference of their
accuracies on the same test images. Three intervals of 95 % stand beside it:

``images``: the trained networks are kept, the test images are drawn again with replacement (bootstrap, percentiles).
    One draw of images serves both methods and all seeds, as one test set did: an image that is hard is hard for all of
    them, and drawing each seed's images on their own would call the interval shorter than it is. It says what other
    test images would have changed. It says nothing of training again with other seeds.
``seeds``: Student's t over the differences per seed, on these images: what training again would have changed.
``both``: the squares of the two half-widths added, each with its own quantile. It is never shorter than ``seeds``,
    which one number of degrees of freedom for both variances would allow where few seeds agree by chance.

Only ``both`` supports a claim, and only with three seeds or more.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 10_000
FEWEST_SEEDS = 3

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and its sample standard deviation (n - 1), which needs two seeds."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Interval:
    """Bounds of a 95 % interval, in percentage points."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """One method against another on one pair, in percentage points; positive if the first is better."""

    difference: float
    per_seed: tuple[float, ...]
    images: Interval | None
    seeds: Interval | None
    both: Interval | None

    @property
    def claim(self) -> int:
        """1 or -1 if the difference is significant, else 0."""
        if self.both is None or not self.both.excludes_zero:
            return 0
        return 1 if self.difference > 0 else -1


def mean_of(values: Iterable[float | None]) -> Mean | None:
    """The mean of the values that are not None; None if there are none."""
    array = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(array):
        return None
    return Mean(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))


def t975(df: float) -> float:
    """The 97.5 % quantile of Student's t for a whole number of degrees of freedom, or infinity."""
    if df < 31:
        return _T975[int(df) - 1]
    # Cornish-Fisher, good to 0.001 from here on.
    return 1.95996 + 2.37227 / df + 2.8225 / df**2


def compare(
    per_seed: Sequence[float],
    correct: npt.NDArray[np.bool_] | None = None,
    reference: npt.NDArray[np.bool_] | None = None,
    key: str = "",
) -> Comparison | None:
    """Compare two methods over their common seeds.

    Args:
        per_seed: differences of accuracy, one a seed, in percentage points.
        correct: (S, N), which of N test images the first method's network of each seed got right; None: not known,
            then there is no interval over images and no claim.
        reference: (S, N), the same for the other method.
        key: what is compared. The draws follow from it, so that a figure does not depend on what else is compared.

    Returns:
        None without seeds.
    """
    mean = mean_of(per_seed)
    if mean is None:
        return None
    enough = mean.n >= FEWEST_SEEDS and mean.sd is not None
    se_seeds = mean.sd / math.sqrt(mean.n) if enough and mean.sd is not None else 0.0
    seeds = _around(mean.mean, t975(mean.n - 1) * se_seeds) if enough else None
    if correct is None or reference is None or correct.shape != reference.shape:
        return Comparison(mean.mean, tuple(per_seed), None, seeds, None)
    images, se_images = bootstrap(correct, reference, key)
    both = None
    if enough:
        both = _around(mean.mean, math.hypot(t975(mean.n - 1) * se_seeds, t975(math.inf) * se_images))
    return Comparison(mean.mean, tuple(per_seed), images, seeds, both)


def bootstrap(
    correct: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_], key: str = "", draws: int = DRAWS
) -> tuple[Interval, float]:
    """Bootstrap over the test images: the interval of the mean difference, and its standard error.

    An image's difference, summed over S seeds, is one of 2S + 1 whole numbers. To draw N images with replacement is
    therefore to draw how often each of these numbers occurs: a multinomial draw, the same distribution at a fraction
    of the work.

    Args:
        correct: (S, N).
        reference: (S, N).
        key: decides the draws.
        draws: how many test sets.
    """
    num_seeds, num_images = correct.shape
    total = correct.astype(np.int64).sum(axis=0) - reference.astype(np.int64).sum(axis=0)  # (N,)
    share = np.bincount(total + num_seeds, minlength=2 * num_seeds + 1) / num_images  # (2S + 1,)
    levels = np.arange(-num_seeds, num_seeds + 1) * (100.0 / num_seeds)
    random = np.random.default_rng(zlib.crc32(key.encode()))
    means = random.multinomial(num_images, share, size=draws) @ levels / num_images  # (draws,)
    low, high = np.percentile(means, [2.5, 97.5])
    variance = float(share @ levels**2 - (share @ levels) ** 2)
    return Interval(float(low), float(high)), math.sqrt(max(0.0, variance) / num_images)


def _around(middle: float, half: float) -> Interval:
    return Interval(middle - half, middle + half)
