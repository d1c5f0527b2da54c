"""The lowest versions that setup.cfg allows, as constraints for pip: ``make test-floors`` runs the tests on them."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

# Not dependencies of the project's own, and their newest releases do not go with the floors.
WITH_THEM = ("onnx-ir==0.1.4", "protobuf<6")


def floors(path: Path = Path(__file__).parents[1] / "setup.cfg") -> list[str]:
    """``name==version`` for every ``name>=version`` of the requirements."""
    config = ConfigParser()
    config.read(path, encoding="utf-8")
    lines = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    found = re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\w.]+)", "\n".join(lines), re.MULTILINE)
    return [*sorted({f"{name}=={version}" for name, version in found}), *WITH_THEM]


if __name__ == "__main__":
    print("\n".join(floors()))
