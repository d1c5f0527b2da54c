"""What the report shows: the page in a browser, what its figures are of, published figures beside ours."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from ickd_pl.benchmark.report.curves import spread
from tests.benchmark.report.reading import check_all, report, table_of
from tests.benchmark.report.synthetic import cell, fill, plan


@pytest.fixture
def browser(tmp_path: Path) -> list[str]:
    """Command that starts a headless Chromium; a sandboxed one may not be able to write here."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    args = [found, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    picture = tmp_path / "probe.png"
    subprocess.run([*args, f"--screenshot={picture}", "about:blank"], capture_output=True, timeout=120, check=False)
    if not picture.is_file():
        pytest.skip(f"{found} takes no pictures here")
    return [*args, "--hide-scrollbars"]


@pytest.mark.parametrize("width", [1600, 900, 400])
def test_page_in_a_browser(whole: dict[str, str], tmp_path: Path, browser: list[str], width: int) -> None:
    frame, picture = tmp_path / "frame.html", tmp_path / "report.png"
    (tmp_path / "report.html").write_text(whole["html"], encoding="utf-8")
    # A frame may be narrower than a window. The title tells whether the page as a whole is wider than the frame,
    # whether a text leaves its chart, and whether the script ran.
    frame.write_text(f"""<body style="margin: 0">
      <iframe src="report.html" style="border: 0; width: {width}px; height: 900px"></iframe>
      <script>
      const inner = document.querySelector("iframe");
      inner.onload = () => {{
        const page = inner.contentDocument, outside = [...page.querySelectorAll("svg text")].filter((text) => {{
          const own = text.getBoundingClientRect(), chart = text.closest("svg").getBoundingClientRect();
          return own.left < chart.left - 1 || own.right > chart.right + 1 || own.bottom > chart.bottom + 2;
        }});
        page.querySelectorAll(".panels figure")[1].dispatchEvent(new Event("mouseenter"));
        const wide = page.documentElement.scrollWidth > {width}, on = page.querySelectorAll(".on").length;
        document.title = `wide ${{wide}}, outside ${{outside.length}}, on ${{on}}`;
      }};
    </script></body>""")
    args = [*browser, "--allow-file-access-from-files", f"--window-size={max(width, 500)},900"]
    dom = subprocess.run([*args, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "<title>wide false, outside 0, on 2</title>" in dom.stdout, dom.stdout[:200]  # a panel, and its line below
    subprocess.run([*args, f"--screenshot={picture}", frame.as_uri()], capture_output=True, timeout=120, check=True)
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (max(width, 500), 900)
    assert len(content) > 30_000  # an empty page takes a fraction of it


# -- what figures are of -----------------------------------------------------------------------------------------------


def test_every_figure_says_what_it_is_of(whole: dict[str, str]) -> None:
    basis = "cifar100, 10,000 test images; 240 epochs; seeds 0, 1, 2"
    captions = re.findall(r"<figcaption>(?!<b>)(.+?)</figcaption>", whole["html"], re.S)
    assert len(captions) == 2 * 3 and all(basis in text for text in captions)  # curves, and two charts of differences
    assert whole["html"].count(basis) == 1 + 2 * (2 + 3)  # and beneath the tables and the panels
    assert all("after the last epoch" in text or "after every epoch" in text for text in captions)
    assert basis in whole["md"] and basis in whole["tex"]


def test_published_figures_of_another_length_stand_beside_ours_without_a_difference(tmp_path: Path) -> None:
    pair = "resnet56_resnet20"
    plan(tmp_path, [pair], ["vanilla", "kd"], [0], epochs=12, data="CIFAR100")
    fill(tmp_path, [pair], ["vanilla", "kd"], [0], num_test=10_000, epochs=12, data="cifar100")
    files = report(tmp_path)
    page = check_all(files)
    table = table_of(files["md"], "ResNet56 / ResNet20")
    where = table["Method"].index("Published (240 epochs, another teacher)")
    assert table["KD"][where] == "70.66" and "Difference" not in table["Method"]
    assert table_of(files["md"], "Published figures")["KD"] == ["70.66"]
    said = "Published figures are of 240 epochs and another teacher: no difference is computed."
    assert said in page.text and said in files["md"] and said in files["tex"]
    assert "pub. 70.66 (240 epochs)" in page.text


@pytest.mark.parametrize(
    ("teachers", "epochs", "other"),
    [
        ({"get": "fetch"}, None, False),
        ({"get": "fetch_or_train"}, None, False),
        ({"get": "fetch_or_train"}, 240, True),
        ({"get": "train"}, 240, True),
        ({"get": "fetch", "weights": {"resnet56": "own.pth"}}, None, True),
    ],
)
def test_whose_teacher_it_is(tmp_path: Path, teachers: dict[str, object], epochs: int | None, other: bool) -> None:
    plan(tmp_path, ["resnet56_resnet20"], ["kd"], [0], epochs=240, data="CIFAR100")
    path = tmp_path / "benchmark.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "teachers": teachers}))
    cell(tmp_path, None, "resnet56", 0, accuracy=72.0, epochs=epochs, num_test=10_000, data="cifar100")
    cell(tmp_path, "resnet56_resnet20", "kd", 0, accuracy=70.0, epochs=240, num_test=10_000, data="cifar100")
    text = report(tmp_path)["md"]
    assert "70.66 (-0.66)" in text
    assert ("Published figures are of 240 epochs and another teacher; the difference is" in text) == other


def test_labels_are_spread() -> None:
    assert spread([10, 50, 90], 13, 0, 100) == [10, 50, 90]
    assert spread([50, 50, 50], 10, 0, 100) == [40, 50, 60]
    assert spread([0, 1, 99, 100], 10, 0, 100) == [0, 10, 90, 100]
    places = spread([k / 10 for k in range(14)], 13, 10, 216)
    assert places[0] >= 10 and places[-1] <= 216 and all(b - a >= 13 - 1e-9 for a, b in pairwise(places))
