"""The demo at one epoch a run: the real command line and YAML, the table, the picture, the checkpoints."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from ickd_pl.benchmark.report.statistics import Comparison, Interval, Mean

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
    """The first start trains three seeds and shows them; the second keeps them and shows the same."""
    content = yaml.safe_load((ROOT / demo.CONFIG).read_text(encoding="utf-8"))
    assert content["methods"] == ["vanilla", "kd", "ickd", "ickd_kl"] and content["seeds"] == [0, 1, 2]
    content["methods"] = ["vanilla", "kd"]
    for part in (content, content["teachers"]):
        part["trainer"] |= {"max_epochs": 1, "check_val_every_n_epoch": 1}
        part["model"]["milestones"] = []
    content["teachers"]["data"]["init_args"]["train_size"] = 64
    Path("short.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    words = ["--output", str(tmp_path / "out"), "--config", "short.yaml"]
    tmp_path = tmp_path / "out"
    assert demo.main(words) == 0
    shown = capsys.readouterr()
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert page.strip() in shown.out and "Epoch 0" in shown.out + shown.err, "no progress bar"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    assert rows[0] == ["", "accuracy", "minus Vanilla", "95 % interval", "parameters"]
    assert [row[0] for row in rows[2:]] == ["Teacher", "Vanilla", "KD"]
    assert [" ± " in row[1] for row in rows[2:]] == [False, True, True]
    assert rows[2][2:4] == rows[3][2:4] == ["-", "-"] and re.fullmatch(r"\[[+-]\S+, [+-]\S+\]", rows[4][3])
    assert rows[3][4] == rows[4][4], "methods add no parameters to a student"
    assert "learn from 50 labelled images" in page and "on 360 test images" in page and "3 seeds" in page
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "report.html").is_file()
    assert f"bench run --config short.yaml --output {tmp_path}" in shown.out
    after = shown.out.partition("What to do next:")[2]
    assert str(tmp_path / "report.html") in after
    named = re.findall(r"(?:docs/|configs/)?[\w/.]+\.(?:md|yaml)", after)
    assert [name for name in named if not (Path() / name).exists() and not (ROOT / name).exists()] == []

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")}
    assert len(before) >= 7 and demo.main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")} == before
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("claim", "words"), [(1, "Above Vanilla beyond noise"), (0, "Not told from it"), (-1, "Below it beyond noise")]
)
def test_the_verdict(demo: ModuleType, claim: int, words: str) -> None:
    """A method is called better only where the interval over seeds and images says so."""
    both = {1: Interval(0.5, 3.5), 0: Interval(-1.0, 5.0), -1: Interval(-3.5, -0.5)}[claim]
    middle = (both.low + both.high) / 2
    kd = {"vanilla": Comparison(middle, (middle,) * 3, both, both, both)}
    done = SimpleNamespace(parameters=78042, num_test=360)
    entries = {
        method: SimpleNamespace(method=method, last=Mean(90.0, 1.0, 3), against=against, done=[done])
        for method, against in ((None, {}), ("vanilla", {}), ("kd", kd))
    }
    results = SimpleNamespace(pairs=[None], done=[done], seeds=[0, 1, 2], setting=lambda *keys: 50)
    summary = SimpleNamespace(results=results, rows=list(entries), entry=lambda pair, method: entries[method])
    text = demo.table(summary)
    assert text.splitlines()[4].startswith(f"| KD      | 90.00 ± 1.00 |         {middle:+.2f} | [{both.low:+.2f}, ")
    assert text.endswith(f"{words}: KD.")


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
    assert "pip install '.[demo]' in the clone" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
