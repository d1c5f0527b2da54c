"""Means, intervals and claims, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ickd_pl.benchmark.report.statistics import Interval, bootstrap, compare, mean_of, t975


def test_mean_and_sample_deviation() -> None:
    mean = mean_of([70.0, 71.0, 73.0])
    assert mean is not None and mean.n == 3
    assert mean.mean == pytest.approx(71.3333, abs=1e-4)
    assert mean.sd == pytest.approx(1.5275, abs=1e-4)  # sqrt((1.7778 + 0.1111 + 2.7778) / 2)


def test_one_seed_has_no_deviation_and_none_no_mean() -> None:
    one = mean_of([70.0])
    assert one is not None and one.sd is None
    assert mean_of([]) is None


@pytest.mark.parametrize("df", [1, 2, 4, 9, 30, 31, 60, 1000])
def test_quantile_leaves_a_fortieth_above(df: int) -> None:
    # The area beyond the quantile, by the substitution x = q / u over (0, 1], which takes infinity into the interval.
    q = t975(df)
    u = (np.arange(200_000) + 0.5) / 200_000
    x = q / u
    log_scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    density = np.exp(log_scale - (df + 1) / 2 * np.log1p(x**2 / df))
    assert float(np.mean(density * x / u)) == pytest.approx(0.025, abs=2e-5)


def test_the_normal_quantile() -> None:
    assert t975(math.inf) == pytest.approx(1.96, abs=1e-3)


def test_paired_difference_by_hand() -> None:
    # Ten images, three seeds. Right: 8, 7, 9 against 6, 6, 6 of ten; the difference is (20 + 10 + 30) / 3 points.
    first = np.zeros((3, 10), bool)
    second = np.zeros((3, 10), bool)
    for seed, right in enumerate((8, 7, 9)):
        first[seed, :right] = True
        second[seed, :6] = True
    c = compare([20.0, 10.0, 30.0], first, second, "a")
    assert c is not None and c.images is not None and c.seeds is not None and c.both is not None
    assert c.difference == pytest.approx(20.0)
    # Seeds: sd 10, standard error 10 / sqrt(3), t(2) = 4.303.
    assert c.seeds.high - 20 == pytest.approx(4.303 * 10 / math.sqrt(3), abs=1e-3)
    # Images: an image's mean difference is 0 (7 images), 100, 66.7 and 33.3; variance 1155.6, over ten images.
    _, error = bootstrap(first, second, "a")
    assert error == pytest.approx(math.sqrt(1155.56 / 10), abs=1e-2)
    assert 0 <= c.images.low < 20 < c.images.high
    # Both: the half-widths' squares add, 4.303^2 x 33.33 + 1.96^2 x 115.56.
    assert c.both.high - 20 == pytest.approx(math.sqrt(4.303**2 * 33.333 + 1.96**2 * 115.556), abs=1e-2)
    assert c.claim == 0


def test_bootstrap_equals_drawing_images_one_by_one() -> None:
    random = np.random.default_rng(1)
    first, second = random.random((2, 200)) < 0.75, random.random((2, 200)) < 0.6
    interval, error = bootstrap(first, second, "x")
    delta = 100 * (first.astype(float) - second).mean(axis=0)
    means = delta[random.integers(0, 200, size=(10_000, 200))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    assert interval.low == pytest.approx(low, abs=0.3)
    assert interval.high == pytest.approx(high, abs=0.3)
    assert error == pytest.approx(means.std(), rel=0.03)


def test_same_key_same_draws() -> None:
    random = np.random.default_rng(0)
    first, second = random.random((3, 5000)) < 0.7, random.random((3, 5000)) < 0.7
    assert bootstrap(first, second, "pair/kd") == bootstrap(first, second, "pair/kd")
    assert bootstrap(first, second, "pair/kd") != bootstrap(first, second, "pair/at")


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_claim_nothing(seeds: int) -> None:
    c = compare([100.0] * seeds, np.ones((seeds, 50), bool), np.zeros((seeds, 50), bool))
    assert c is not None and c.images == Interval(100.0, 100.0)
    assert c.seeds is None and c.both is None and c.claim == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_three_seeds_that_agree_are_claimed(sign: int) -> None:
    right, wrong = np.ones((3, 50), bool), np.zeros((3, 50), bool)
    c = compare([100.0 * sign] * 3, *((right, wrong) if sign > 0 else (wrong, right)))
    assert c is not None and c.claim == sign


def test_without_predictions_nothing_is_claimed() -> None:
    c = compare([5.0, 5.1, 5.2])
    assert c is not None and c.seeds is not None and c.seeds.excludes_zero
    assert c.images is None and c.both is None and c.claim == 0


def _trial(random: np.random.Generator, seeds: int, images: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Image difficulties shared by all networks, plus an offset of each network shared by its images."""
    ease = random.normal(size=images)
    luck = spread * random.normal(size=(2, seeds, 1))
    score = ease + luck + random.normal(size=(2, seeds, images))
    return score[0] > -1, score[1] > -1


@pytest.mark.parametrize(("spread", "low"), [(0.0, 0.93), (0.1, 0.92)])
def test_interval_over_images_and_seeds_covers(spread: float, low: float) -> None:
    # Both methods are the same, so that the true difference is zero, over images and seeds.
    random = np.random.default_rng(2)
    covered = []
    for trial in range(400):
        a, b = _trial(random, 3, 300, spread)
        c = compare(list(100 * (a.mean(axis=1) - b.mean(axis=1))), a, b, str(trial))
        assert c is not None and c.both is not None
        covered.append(not c.both.excludes_zero)
    assert low <= np.mean(covered) <= 1.0


def test_interval_over_images_covers_other_images_and_not_other_seeds() -> None:
    random = np.random.default_rng(3)
    fixed, free = [], []
    for trial in range(300):
        a, b = _trial(random, 1, 300, 0.0)
        fixed.append(not bootstrap(a, b, str(trial), draws=1000)[0].excludes_zero)
        a, b = _trial(random, 1, 300, 0.3)
        free.append(not bootstrap(a, b, str(trial), draws=1000)[0].excludes_zero)
    assert 0.91 <= np.mean(fixed) <= 0.985
    assert np.mean(free) < 0.7  # this is why it supports no claim
