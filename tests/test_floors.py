"""The lowest versions that ``make test-floors`` installs are those in setup.cfg."""

from __future__ import annotations

from pathlib import Path

from tests.floors import floors


def test_every_lowest_version_is_a_constraint(tmp_path: Path) -> None:
    file = tmp_path / "setup.cfg"
    file.write_text(
        "[options]\ninstall_requires =\n    # why\n    a-b>=2.6\n    c[x]>=4.39,<5\n    d>=1,!=1.2\n"
        "[options.extras_require]\ndev =\n    e>=8\n    typed\n    a-b>=2.6\n"
    )
    assert floors(file)[:4] == ["a-b==2.6", "c==4.39", "d==1", "e==8"]
    own = {line.partition("==")[0]: line for line in floors()}
    assert {"torch", "pytorch-lightning", "jsonargparse", "matplotlib", "onnxscript", "pytest"} <= own.keys()
    assert len(own) == len(floors()), "two lowest versions of one package"
