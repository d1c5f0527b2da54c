"""The demo at one epoch a run: the real command line and YAML, the table, the picture, the checkpoints."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("ickd_pl_demo", ROOT / "examples" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_demo_twice(demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first start trains five cells and shows them; the second keeps them and shows the same."""
    content = yaml.safe_load((ROOT / demo.CONFIG).read_text(encoding="utf-8"))
    for part in (content, content["teachers"]):
        part["trainer"]["max_epochs"], part["model"]["milestones"] = 1, []
    Path("quick.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    words = ["--output", str(tmp_path / "out"), "--config", "quick.yaml"]
    tmp_path = tmp_path / "out"
    assert demo.main(words) == 0
    first = capsys.readouterr().out
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert page.strip() in first
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    assert rows[0] == ["", "last", "best", "parameters", "seconds"]
    assert [row[0] for row in rows[2:]] == ["Teacher", "Vanilla", "KD", "ICKD-C (w/o KL)", "ICKD-C (with KL)"]
    assert all(0 <= float(row[1]) <= float(row[2]) <= 100 for row in rows[2:])
    assert len({row[3] for row in rows[3:]}) == 1, "students have the same number of parameters, methods add none"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert f"bench run --config quick.yaml --output {tmp_path}" in first
    checkpoints = [line.split()[-1] for line in first.partition("checkpoints:")[2].splitlines() if ".ckpt" in line]
    assert len(checkpoints) == 5 and all(Path(path).is_file() for path in checkpoints)
    assert (tmp_path / "report.html").is_file()

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")}
    assert demo.main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")} == before
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == page


def test_table(demo: ModuleType, tmp_path: Path) -> None:
    results = [
        demo.Result("Teacher", [50.0, 98.0], 272474, 61.4, tmp_path),
        demo.Result("Vanilla", [93.0, 90.0], 77754, 30.0, tmp_path),
        demo.Result("KD", [80.0, 90.0], 77754, 30.0, tmp_path),
    ]
    assert demo.table(results).splitlines()[:4] == [
        "|         |  last |  best | parameters | seconds |",
        "| ---     |  ---: |  ---: |       ---: |    ---: |",
        "| Teacher | 98.00 | 98.00 |    272,474 |      61 |",
        "| Vanilla | 90.00 | 93.00 |     77,754 |      30 |",
    ]
    # 2 * sqrt(2 * 0.9 * 0.1 / 360) = 4.5 points
    assert "under about 5 points" in demo.table(results)


def test_a_benchmark_that_fails_ends_the_demo(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "ickd", lambda words: 2)
    assert demo.main(["--output", str(tmp_path)]) == 2
    assert "learning curves" not in capsys.readouterr().out


def test_without_matplotlib(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before anything is trained."""
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert demo.main(["--output", str(tmp_path)]) == 2
    assert "pip install 'ickd-pl[demo]'" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
