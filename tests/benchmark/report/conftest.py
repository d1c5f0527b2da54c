"""One report, written once for all tests that read it."""

from __future__ import annotations

import pytest

from tests.benchmark.report.reading import report
from tests.benchmark.report.synthetic import TABLE, fill, plan


@pytest.fixture(scope="package")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A table with all its runs: two pairs, the thirteen rows, three seeds."""
    folder = tmp_path_factory.mktemp("whole")
    pairs = ["resnet56_resnet20", "wrn_40_2_wrn_40_1"]
    plan(folder, pairs, TABLE, range(3), epochs=240, data="CIFAR100")
    fill(folder, pairs, TABLE, range(3), num_test=10_000, epochs=240, data="cifar100")
    return report(folder)
