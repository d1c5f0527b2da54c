"""The demo at one epoch a run: the real command line and YAML, the table, the picture, the checkpoints."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

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
    """The first start trains five runs and shows them; the second keeps them and shows the same."""
    words = ["--output", str(tmp_path), "--epochs", "1"]
    assert demo.main(words) == 0
    first = capsys.readouterr().out
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert page.strip() in first
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    assert rows[0] == ["", "last", "best", "parameters", "seconds"]
    assert [row[0] for row in rows[2:]] == ["Teacher", "Vanilla", "KD", "ICKD-C", "ICKD-C+KL"]
    assert all(0 <= float(row[1]) <= float(row[2]) <= 100 for row in rows[2:])
    assert len({row[3] for row in rows[3:]}) == 1, "students have the same number of parameters, methods add none"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    for run in demo.plan(tmp_path, 1):
        assert run.folder.last.is_file()
        assert str(run.folder.last) in first
        assert all(word in first for word in run.words), "every command is shown before it runs"

    assert demo.main(words) == 0
    assert capsys.readouterr().out.count("finished before") == 5
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


def test_stops_at_the_first_failure(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "ickd", lambda words: 2)
    assert demo.main(["--output", str(tmp_path)]) == 2
    assert "[1/5] Teacher" in (out := capsys.readouterr().out)
    assert "[2/5]" not in out


def test_without_matplotlib(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before anything is trained."""
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert demo.main(["--output", str(tmp_path)]) == 2
    assert "pip install 'ickd-pl[demo]'" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
