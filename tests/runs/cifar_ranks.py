"""Run the command line with a small synthetic CIFAR-100, also in the ranks that Lightning starts; for test_faults.py.

    python -m tests.runs.cifar_ranks SPEC LOG ARGS...

SPEC is a JSON file of torchvision's attributes (URL, file names, md5 sums). Every download appends its rank to LOG.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from torchvision import datasets
from torchvision.datasets import utils

from ickd_pl.cli import main
from ickd_pl.data import CIFAR100

download_url = utils.download_url


def logged(*arguments: Any) -> None:
    """Download, and log this rank."""
    with Path(sys.argv[2]).open("a") as log:
        log.write(f"{os.environ.get('LOCAL_RANK', '0')}\n")
    download_url(*arguments)


if __name__ == "__main__":
    for name, value in json.loads(Path(sys.argv[1]).read_text()).items():
        setattr(datasets.CIFAR100, name, value)
    CIFAR100.num_available, CIFAR100.num_test, CIFAR100.digests = 200, 200, None
    utils.download_url = logged
    sys.exit(main(sys.argv[3:]))
