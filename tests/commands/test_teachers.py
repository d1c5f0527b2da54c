"""``teachers list`` and ``teachers fetch`` on the command line: one process, two at once, and killed ones."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ickd_pl.teachers.manifest import packaged_manifest, record, teacher_of
from tests.runs.helpers import REPOSITORY, cli
from tests.teachers.mirror import FILE, Mirror, manifest, serving, sha256, weights

HERE = Path("checkpoints") / FILE.format("resnet8")
GOOD = weights()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as mirror:
        mirror.files["/a.pth"] = GOOD
        yield mirror


def rows(out: str) -> dict[str, list[str]]:
    """The lines of `teachers list` by name, split into columns."""
    return {line.split()[0]: re.split(r"  +", line) for line in out.partition("\n\n")[0].splitlines()}


# -- list ----------------------------------------------------------------------------


def test_list_without_any_files() -> None:
    done = cli("teachers", "list")
    assert (done.status, done.err) == (0, "")
    table = rows(done.out)
    assert list(table) == ["teacher", "wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50"]
    assert table["resnet56"][1] == "72.34" and table["resnet56"][4:] == ["no", "1 2 3"]
    for number, url in enumerate(("megvii-research/mdistiller", "hunto/DIST_KD", "shape2prog.csail.mit.edu"), start=1):
        assert re.search(rf"^  {number}  http.*{url}", done.out, re.M)
    assert str(packaged_manifest()) in done.out
    assert not list(Path().iterdir()), "a list writes nothing"


def test_list_shows_which_files_are_here() -> None:
    names = ["resnet8", "resnet14", "resnet20", "resnet32"]
    Path("t").mkdir()
    manifest(
        {name: [f"http://a/{FILE.format(name)}", ["http://b/c.tar", "x.pth"]] for name in names}, path="t/manifest.json"
    )
    for name in names[:3]:
        path = Path("t") / FILE.format(name)
        path.parent.mkdir()
        path.write_bytes(name.encode())
    record(Path("t/manifest.json"), "resnet8", sha256(b"resnet8"), measured_acc1=70.449)
    record(Path("t/manifest.json"), "resnet14", sha256(b"something else"))
    done = cli("teachers", "list", "--checkpoints", "t")
    table = rows(done.out)
    assert table["resnet8"][1:] == ["70.50", "70.45", "verified", "yes, SHA-256 as recorded", "1 2"]
    assert table["resnet14"][2:] == ["-", "recorded", "SHA-256 DIFFERS from the recorded", "1 2"]
    assert table["resnet20"][2:] == ["-", "unverified", "yes, SHA-256 not recorded", "1 2"]
    assert table["resnet32"][2:] == ["-", "unverified", "no", "1 2"]
    assert "  1  http://a/<file>\n  2  http://b/c.tar (archive)\n" in done.out


# -- fetch ---------------------------------------------------------------------------


def test_fetch_one_and_all(mirror: Mirror) -> None:
    Path("checkpoints").mkdir()
    mirror.files["/b.pth"] = weights("resnet14")
    manifest(
        {"resnet8": [mirror.url + "/a.pth"], "resnet14": [mirror.url + "/b.pth"]}, path="checkpoints/manifest.json"
    )
    done = cli("teachers", "fetch", "resnet8")
    assert (done.status, done.err) == (0, "")
    assert HERE.read_bytes() == GOOD
    done = cli("teachers", "fetch", "--all", "--timeout", 5)
    assert done.status == 0
    assert mirror.asked == ["/a.pth", "/b.pth"]
    assert "yes, SHA-256 as recorded" in rows(cli("teachers", "list").out)["resnet14"]


def test_a_failed_fetch_is_one_line(mirror: Mirror) -> None:
    urls = [mirror.url + "/none", mirror.url + "/page.pth"]
    mirror.files["/page.pth"] = b"<html>"
    manifest({"resnet8": urls})
    done = cli("teachers", "fetch", "resnet8", "--manifest", "m.json", "--checkpoints", "t")
    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("error: no source gave resnet8: ")
    assert all(f"{url} (" in done.err for url in urls)
    assert not (Path("t") / FILE.format("resnet8")).parent.exists()


def test_the_first_fetch_writes_the_manifest() -> None:
    """With the installed package there is no manifest yet."""
    content = weights("resnet56")
    Path("given.pth").write_bytes(content)
    assert cli("teachers", "fetch", "resnet56", "--from", "given.pth").status == 0
    teacher = teacher_of(Path("checkpoints/manifest.json"), "resnet56")
    assert (teacher.sha256, teacher.published_acc1) == (sha256(content), 72.34)
    assert (teacher.status, teacher.recorded_from) == ("recorded", "given.pth")


@pytest.mark.parametrize(
    ("args", "needle"),
    [
        ([], "teachers: the following arguments are required: list|fetch"),
        (["fetsh"], "did you mean fetch?"),
        (["fetch"], "expected the NAMEs of teachers, or --all"),
        (["fetch", "resnet56", "--all"], "expected the NAMEs of teachers, or --all"),
        (["fetch", "resnet65"], "no teacher resnet65 in checkpoints/manifest.json: did you mean resnet"),
        (["fetch", "resnet56", "--forse"], "unknown --forse: did you mean --force, --from?"),
        (["list", "resnet56"], "unknown resnet56"),
        (["fetch", "resnet56", "--timeout", "0"], "expected seconds above 0, got 0"),
        (["fetch", "resnet56", "--timeout", "soon"], "expected seconds above 0, got soon"),
        (["fetch", "resnet56", "--timeout", "nan"], "expected seconds above 0, got nan"),
        (["fetch", "resnet56", "--from", "none.tar"], "--from none.tar does not exist"),
        (["list", "--manifest", "none.json"], "--manifest none.json does not exist"),
    ],
)
def test_errors_are_one_line(args: list[str], needle: str) -> None:
    done = cli("teachers", *args)
    assert done.status == 2
    assert needle in done.err and len(done.err.splitlines()) == 1
    assert not list(Path().iterdir())


def test_help_names_the_options() -> None:
    assert "list" in cli("teachers", "--help").out
    for option in ("--from", "--all", "--timeout", "--force", "--checkpoints", "--manifest"):
        assert option in cli("teachers", "fetch", "--help").out


# -- processes -----------------------------------------------------------------------


def started(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(REPOSITORY / "cli.py"), "teachers", "fetch", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def test_a_killed_fetch_and_two_at_once(mirror: Mirror) -> None:
    """A fetch killed during a download leaves no file; two at once afterwards both succeed with one download."""
    manifest({"resnet8": [mirror.url + "/a.pth"]})
    mirror.files["/a.pth"] = mirror.stalled(GOOD)
    args = ["resnet8", "--manifest", "m.json", "--timeout", "40"]
    first = started(*args)
    assert mirror.half.wait(60)
    deadline = time.monotonic() + 20
    while not any(p.stat().st_size for p in Path("checkpoints").rglob("*.pth")) and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert any(Path("checkpoints").rglob("*.pth")), "it was killed too late or too early to show anything"
    assert not HERE.exists()
    assert teacher_of(Path("m.json"), "resnet8").status == "unverified"

    mirror.half.clear()
    both = [started(*args) for _ in range(2)]
    assert mirror.half.wait(60)
    waiter = None
    for process in both:  # the one that does not download reports that it waits, before the download continues
        assert process.stdout is not None
        if "waiting for it" in process.stdout.readline():
            waiter = process
    assert waiter is not None
    mirror.go_on.set()
    ends = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert mirror.asked == ["/a.pth"] * 2, "one download of the killed, one of the two"
    assert "is here already" in ends[both.index(waiter)][0]
    left = sorted(p.as_posix() for p in Path("checkpoints").rglob("*") if p.is_file() and p.suffix != ".lock")
    assert left == [HERE.as_posix()] and HERE.read_bytes() == GOOD
    assert json.loads(Path("m.json").read_text())["teachers"]["resnet8"]["sha256"] == sha256(GOOD)
