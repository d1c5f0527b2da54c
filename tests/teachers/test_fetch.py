"""Fetching: every fault of a mirror and of a local file; no invalid file gets its final path."""

from __future__ import annotations

import argparse
import io
import os
import re
import resource
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ickd_pl.errors import UserError
from ickd_pl.teachers import archives
from ickd_pl.teachers.fetch import fetch
from ickd_pl.teachers.manifest import read_manifest, teacher_of
from ickd_pl.weights import load_teacher
from tests.teachers.mirror import FILE, Mirror, manifest, page, redirect, send, serving, sha256, tar_of, weights, zip_of

HERE = Path("checkpoints") / FILE.format("resnet8")
GOOD = weights()
OTHER = weights(seed=1)
BOTH = {"resnet8": GOOD, "resnet14": weights("resnet14")}


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as mirror:
        yield mirror


def get(*names: str, path: str = "m.json", **more: Any) -> list[str]:
    """Fetch, and return what was logged."""
    logged: list[str] = []
    fetch(names or ("resnet8",), Path("checkpoints"), Path(path), log=logged.append, **more)
    return logged


def refused(*names: str, **more: Any) -> str:
    """A fetch that must fail, leave no file and record nothing; returns its message."""
    before = (files(), read_manifest(Path("m.json")))
    with pytest.raises(UserError) as caught:
        get(*names, **more)
    assert (files(), read_manifest(Path("m.json"))) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files() -> dict[str, bytes]:
    """All files below the folder of the teachers, without the lock."""
    found = Path("checkpoints").rglob("*")
    return {
        p.relative_to("checkpoints").as_posix(): p.read_bytes() for p in found if p.is_file() and p.suffix != ".lock"
    }


# -- a good mirror -----------------------------------------------------------------


def test_the_first_success_is_recorded(mirror: Mirror) -> None:
    mirror.files["/a.pth"] = GOOD
    manifest({"resnet8": [mirror.url + "/a.pth"], "resnet14": [mirror.url + "/none"]})
    logged = get()
    assert files() == {FILE.format("resnet8"): GOOD}
    assert HERE.stat().st_mode & 0o777 == 0o666 & ~_umask()
    teacher = teacher_of(Path("m.json"), "resnet8")
    assert (teacher.status, teacher.sha256, teacher.recorded_from) == ("recorded", sha256(GOOD), mirror.url + "/a.pth")
    assert teacher_of(Path("m.json"), "resnet14").status == "unverified"
    assert logged[0] == f"resnet8: trying {mirror.url}/a.pth (1 of 1)"
    assert str(HERE) in logged[1] and sha256(GOOD) in logged[1] and "now recorded in m.json" in logged[1]
    assert "teachers verify resnet8" in logged[2]


def test_an_existing_file_is_not_fetched_again(mirror: Mirror) -> None:
    mirror.files["/a.pth"] = GOOD
    manifest({"resnet8": [mirror.url + "/a.pth"]})
    get()
    assert get() == [f"resnet8: {HERE} is here already, SHA-256 as recorded"]
    assert mirror.asked == ["/a.pth"]


def test_a_known_hash_is_compared(mirror: Mirror) -> None:
    mirror.files["/a.pth"] = GOOD
    manifest({"resnet8": [mirror.url + "/a.pth"]}, {"resnet8": sha256(GOOD)})
    assert "as recorded" in get()[1]


def test_a_redirect_is_followed(mirror: Mirror) -> None:
    mirror.files |= {"/old": redirect("/new"), "/new": GOOD, "/nowhere": redirect("/none"), "/loop": redirect("/loop")}
    manifest({"resnet8": [mirror.url + "/nowhere", mirror.url + "/loop", mirror.url + "/old"]})
    logged = get(timeout=5)
    assert any("/nowhere: HTTP 404 Not Found" in line for line in logged)
    assert any("/loop: redirects without end" in line for line in logged)
    assert files() == {FILE.format("resnet8"): GOOD}


def test_a_bar_on_a_terminal_only(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    mirror.files["/a.pth"] = GOOD
    manifest({"resnet8": [mirror.url + "/a.pth"]})
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        get(force=True)
        assert ("/339k" in stream.getvalue()) == shown
        assert shown or not stream.getvalue()


# -- faults of a mirror, each followed by one that works -----------------------------


def slow_chunks(mirror: Mirror) -> Any:
    return mirror.trickling(GOOD, length=False)


FAULTS: list[tuple[str, Callable[[Mirror], Any], str]] = [
    ("404", lambda m: page(404), "HTTP 404 Not Found"),
    ("500", lambda m: page(500), "HTTP 500 Internal Server Error"),
    ("cut", lambda m: m.cut(GOOD), "cut short after .* bytes, 1000 more were announced"),
    ("cut, length not announced", lambda m: lambda h: send(h, GOOD[:-1000], None), "the file is damaged"),
    ("announced too short", lambda m: lambda h: send(h, GOOD, len(GOOD) - 1000), "the file is damaged"),
    ("length is not a number", lambda m: lambda h: send(h, GOOD, None, **{"Content-Length": "many"}), "."),
    ("no answer", lambda m: lambda h: m.go_on.wait(30), "no answer within 1 s"),
    ("stalled", lambda m: m.stalled(GOOD), "no answer within 1 s|slower than 2 KiB"),
    ("trickling", lambda m: m.trickling(GOOD), "slower than 2 KiB a second over 1 s"),
    ("trickling, length not announced", slow_chunks, "slower than 2 KiB a second over 1 s"),
    ("hangs up", lambda m: lambda h: h.connection.shutdown(socket.SHUT_RDWR), "the connection was closed"),
    ("page", lambda m: b"<html>Moved</html>", "the file is damaged or not a weights file, it is a web page"),
    ("empty", lambda m: b"", "the file is empty"),
    ("another network", lambda m: weights("resnet14"), "the file does not fit resnet8: .*another network, resnet14"),
    ("another number of classes", lambda m: weights(num_classes=10), "the file does not fit .*number of classes"),
    ("NaN", lambda m: weights_of_nan(), "NaN"),
]


def weights_of_nan() -> bytes:
    content = torch.load(io.BytesIO(GOOD), weights_only=True)
    content["model"]["fc.weight"][0, 0] = float("nan")
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


@pytest.mark.parametrize(("fault", "reason"), [pytest.param(f[1], f[2], id=f[0]) for f in FAULTS])
def test_a_faulty_mirror(mirror: Mirror, fault: Callable[[Mirror], Any], reason: str) -> None:
    mirror.files |= {"/bad": fault(mirror), "/good": GOOD}
    manifest({"resnet8": [mirror.url + "/bad"]})
    message = refused(timeout=1)
    assert message.startswith(f"no source gave resnet8: {mirror.url}/bad (")
    assert re.search(reason, message), message
    assert "--from" in message and "teachers train resnet8" in message

    manifest({"resnet8": [mirror.url + "/bad", mirror.url + "/good"]})
    began = time.monotonic()
    logged = get(timeout=1)
    assert time.monotonic() - began < 4
    assert any(line.startswith(f"resnet8: {mirror.url}/bad: ") for line in logged)
    assert f"resnet8: trying {mirror.url}/good (2 of 2)" in logged
    assert files() == {FILE.format("resnet8"): GOOD}


def test_wrong_bytes_with_a_known_hash(mirror: Mirror) -> None:
    mirror.files["/a.pth"] = OTHER
    manifest({"resnet8": [mirror.url + "/a.pth"]}, {"resnet8": sha256(GOOD)})
    message = refused()
    assert f"{mirror.url}/a.pth (" in message
    assert f"expected SHA-256 {sha256(GOOD)}, found {sha256(OTHER)}" in message
    assert not HERE.parent.exists()


class Touch:
    """Its pickle creates a file when it is read without restriction."""

    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("where", ["beside", "arguments"])
def test_a_hostile_file_runs_nothing(mirror: Mirror, zipped: bool, where: str) -> None:
    out = io.BytesIO()
    content = torch.load(io.BytesIO(GOOD), weights_only=True)
    content["opt"] = Touch() if where == "beside" else argparse.Namespace(a=Touch())
    torch.save(content, out, _use_new_zipfile_serialization=zipped)
    mirror.files["/a.pth"] = out.getvalue()
    manifest({"resnet8": [mirror.url + "/a.pth"]})
    assert "the file is refused: it wants to run code" in refused()
    assert not Path("hacked").exists()
    torch.load(io.BytesIO(out.getvalue()), weights_only=False)
    assert Path("hacked").exists(), "the file is not hostile, so the test shows nothing"


def test_an_unreachable_host_is_tried_once(mirror: Mirror) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{unused.getsockname()[1]}"  # bound but not listening: refused at once
        manifest({name: [f"{down}/{name}"] for name in ("resnet8", "resnet14")})
        message = refused("resnet8", "resnet14")
    assert f"{down}/resnet8 (Connection refused)" in message
    assert f"{down}/resnet14 (Connection refused, as before)" in message


def test_a_failure_does_not_stop_the_other_teachers(mirror: Mirror) -> None:
    mirror.files["/resnet14"] = weights("resnet14")
    manifest({name: [f"{mirror.url}/{name}"] for name in ("resnet8", "resnet14", "resnet20")})
    with pytest.raises(UserError, match=r"no source gave resnet8.*no source gave resnet20"):
        get("resnet8", "resnet14", "resnet20", "resnet8")
    assert list(files()) == [FILE.format("resnet14")]
    assert teacher_of(Path("m.json"), "resnet14").status == "recorded"


def test_a_teacher_without_sources() -> None:
    manifest({"resnet8": []})
    assert "no source gave resnet8: m.json names none" in refused()


# -- archives ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tar", "gz", "zip"])
def test_an_archive_is_downloaded_once_for_all_teachers(mirror: Mirror, kind: str) -> None:
    members = {f"deep/in/{FILE.format(name)}": content for name, content in BOTH.items()}
    members["deep/README"] = b"read"
    mirror.files["/all"] = zip_of(members) if kind == "zip" else tar_of(members, "w:gz" if kind == "gz" else "w")
    manifest({name: [[mirror.url + "/all", FILE.format(name)]] for name in ("resnet8", "resnet14")})
    get("resnet8", "resnet14")
    assert mirror.asked == ["/all"]
    assert files() == {FILE.format(name): content for name, content in BOTH.items()}
    teacher = teacher_of(Path("m.json"), "resnet14")
    assert teacher.recorded_from == f"{mirror.url}/all (deep/in/{FILE.format('resnet14')})"


def test_a_missing_archive_is_tried_once(mirror: Mirror) -> None:
    mirror.files["/all"] = page(404)
    manifest({name: [[mirror.url + "/all", FILE.format(name)]] for name in ("resnet8", "resnet14")})
    assert refused("resnet8", "resnet14").count("(HTTP 404 Not Found)") == 2
    assert mirror.asked == ["/all"]


BIG = tar_of({FILE.format("resnet8"): GOOD})
ARCHIVES = [
    (BIG[: len(BIG) // 2], "is a damaged archive"),
    (b"<html>Moved</html>", r"is not a tar or zip archive \(it starts with '<html>Moved</html>'\)"),
    (b"", "is not a tar or zip archive"),
    (tar_of({"a/other.pth": GOOD}), r"holds no .*ckpt_epoch_240\.pth or resnet8\.pth; it has a/other\.pth"),
    (zip_of({"readme": b""}), r"it has no \.pth file"),
    (tar_of({f"{x}/{FILE.format('resnet8')}": GOOD for x in "ab"}), "several files that may be meant: a/.*, b/"),
    (zip_of({"b/resnet8.pth": weights("resnet14")}), "the file does not fit resnet8"),
]


# The ids must not depend on the content, which differs between two processes that collect the tests.
@pytest.mark.parametrize(("content", "reason"), ARCHIVES, ids=range(len(ARCHIVES)))
def test_bad_archives(mirror: Mirror, content: bytes, reason: str) -> None:
    mirror.files["/all"] = content
    manifest({"resnet8": [[mirror.url + "/all", FILE.format("resnet8")]]})
    assert re.search(reason, refused())
    Path("archive.tar").write_bytes(content)
    if archives.is_archive(Path("archive.tar")):
        assert re.search(reason, refused(origin=Path("archive.tar")))


def test_member_paths_are_never_written_to() -> None:
    """Names with .. and absolute ones are found by their end, and written where the teacher belongs."""
    outside = Path("../outside_of_the_test").resolve()
    for make in (tar_of, zip_of):
        for prefix in ("../../", f"{outside}/", "a/../../"):
            manifest({"resnet8": []})
            Path("evil").write_bytes(make({f"{prefix}{FILE.format('resnet8')}": GOOD, f"{prefix}x.txt": b"x"}))
            before = sorted(Path("..").rglob("*.txt"))
            get(origin=Path("evil"))
            assert files() == {FILE.format("resnet8"): GOOD}
            assert not outside.exists() and sorted(Path("..").rglob("*.txt")) == before
            HERE.unlink()


def test_links_in_an_archive_are_not_followed() -> None:
    Path("secret.pth").write_bytes(GOOD)
    with tarfile.open("evil.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(FILE.format("resnet8"))
            info.type, info.linkname = kind, str(Path("secret.pth").resolve())
            archive.addfile(info)
    manifest({"resnet8": []})
    assert "it has no .pth file" in refused(origin=Path("evil.tar"))


def test_a_too_large_member_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LIMIT", 1 << 20)
    manifest({"resnet8": []})
    Path("bomb.zip").write_bytes(zip_of({FILE.format("resnet8"): bytes(50 << 20)}))
    assert "which is not a teacher" in refused(origin=Path("bomb.zip"))


def test_names_are_shown_without_control_characters() -> None:
    Path("evil.tar").write_bytes(tar_of({"\x1b[2J\n.pth": GOOD}))
    manifest({"resnet8": []})
    assert "\x1b" not in refused(origin=Path("evil.tar"))


# -- local files ---------------------------------------------------------------------


def origins() -> dict[str, Path]:
    """The same teacher in every form that --from takes."""
    out = {"file": Path("given/a.pth"), "zip-based file": Path("given/b.pth"), "no suffix": Path("given/c")}
    deep, flat = Path("deep/x/y") / FILE.format("resnet8"), Path("flat/resnet8.pth")
    for path in (*out.values(), deep, flat):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(GOOD)
    torch.save(torch.load(io.BytesIO(GOOD), weights_only=True), out["zip-based file"])
    made = {
        "a.tar": tar_of({f"cifar/{FILE.format('resnet8')}": GOOD}),
        "a.tar.xz": tar_of({"./resnet8.pth": GOOD}, "w:xz"),
        "a.zip": zip_of({"resnet8.pth": GOOD}),
    }
    for name, content in made.items():
        Path(name).write_bytes(content)
    return {**out, "folder": Path("deep"), "flat folder": Path("flat"), **{name: Path(name) for name in made}}


def test_from_in_every_form() -> None:
    for kind, origin in origins().items():
        manifest({"resnet8": ["http://127.0.0.1:9/never"]})
        logged = get(origin=origin)
        assert len(files()) == 1, kind
        load_teacher("resnet8", HERE)
        teacher = teacher_of(Path("m.json"), "resnet8")
        assert teacher.sha256 == sha256(HERE.read_bytes()), kind
        assert str(teacher.recorded_from).startswith(origin.name) and "/never" not in str(logged)
        assert origin.exists(), "the user's file is kept"
        HERE.unlink()


def test_the_preferred_path_in_a_folder() -> None:
    for path in (f"a/{FILE.format('resnet8')}", "resnet8.pth"):
        Path("given", path).parent.mkdir(parents=True, exist_ok=True)
        Path("given", path).write_bytes(GOOD if path.startswith("a") else OTHER)
    manifest({"resnet8": []})
    get(origin=Path("given"))
    assert files() == {FILE.format("resnet8"): GOOD}
    HERE.unlink()
    Path("given/b/resnet8_vanilla").mkdir(parents=True)
    Path("given/b", FILE.format("resnet8")).write_bytes(OTHER)
    assert "several files that may be meant" in refused(origin=Path("given"))


def test_from_a_folder_with_some_of_them() -> None:
    Path("given").mkdir()
    Path("given/resnet14.pth").write_bytes(weights("resnet14"))
    manifest({"resnet8": [], "resnet14": []})
    with pytest.raises(UserError, match=r"no source gave resnet8: given \(holds no .*it has resnet14\.pth"):
        get("resnet8", "resnet14", origin=Path("given"))
    assert list(files()) == [FILE.format("resnet14")]


def test_invalid_values_of_from() -> None:
    manifest({"resnet8": [], "resnet14": []})
    Path("a.pth").write_bytes(GOOD)
    Path("a.safetensors").write_bytes(b"x")
    Path("page.pth").write_text("<html>")
    assert "--from none does not exist" in refused(origin=Path("none"))
    assert "give exactly one NAME" in refused("resnet8", "resnet14", origin=Path("a.pth"))
    assert "--model.teacher_weights" in refused(origin=Path("a.safetensors"))
    assert "it is a web page" in refused(origin=Path("page.pth"))
    assert "the file does not fit resnet14" in refused("resnet14", origin=Path("a.pth"))


def test_from_compares_with_the_recorded_hash() -> None:
    manifest({"resnet8": []}, {"resnet8": sha256(GOOD)})
    Path("a.pth").write_bytes(OTHER)
    assert f"expected SHA-256 {sha256(GOOD)}, found {sha256(OTHER)}" in refused(origin=Path("a.pth"))


# -- existing files --------------------------------------------------------------------


def put(content: bytes) -> None:
    HERE.parent.mkdir(parents=True, exist_ok=True)
    HERE.write_bytes(content)


def test_an_existing_file_of_unknown_origin_is_kept(mirror: Mirror) -> None:
    put(OTHER)
    manifest({"resnet8": [mirror.url + "/a.pth"]})
    assert "is here already; no SHA-256 is recorded" in get()[0]
    assert mirror.asked == [] and files() == {FILE.format("resnet8"): OTHER}
    assert teacher_of(Path("m.json"), "resnet8").status == "unverified", "its origin is unknown"


@pytest.mark.parametrize("known", [True, False])
def test_an_invalid_file_is_only_replaced_with_force(mirror: Mirror, known: bool) -> None:
    mirror.files["/a.pth"] = GOOD
    put(GOOD[:-100])
    manifest({"resnet8": [mirror.url + "/a.pth"]}, {"resnet8": sha256(GOOD)} if known else {})
    message = refused()
    assert str(HERE) in message and "delete it or give --force" in message and "train" not in message
    assert not known or (sha256(GOOD) in message and sha256(GOOD[:-100]) in message)
    assert mirror.asked == []
    get(force=True)
    assert files() == {FILE.format("resnet8"): GOOD}


@pytest.mark.parametrize("known", [True, False])
def test_a_folder_of_that_name(known: bool) -> None:
    HERE.mkdir(parents=True)
    manifest({"resnet8": []}, {"resnet8": sha256(GOOD)} if known else {})
    assert str(HERE) in refused()


def test_force_keeps_the_old_file_until_the_new_one_is_good(mirror: Mirror) -> None:
    put(OTHER)
    manifest({"resnet8": [mirror.url + "/none"]})
    assert "HTTP 404" in refused(force=True)
    assert files() == {FILE.format("resnet8"): OTHER}


# -- file system ------------------------------------------------------------------------


def test_a_disk_that_is_full(mirror: Mirror) -> None:
    mirror.files |= {"/a.pth": GOOD, "/b.pth": GOOD}
    manifest({"resnet8": [mirror.url + "/a.pth", mirror.url + "/b.pth"]})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        message = refused()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot read or write checkpoints" in message and "File too large" in message and "free the space" in message
    assert mirror.asked == ["/a.pth"], "another mirror would not help"


def test_a_folder_that_is_a_file() -> None:
    manifest({"resnet8": []})
    Path("checkpoints").write_text("")
    with pytest.raises(UserError, match="cannot write in checkpoints: File exists"):
        get()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(mirror: Mirror) -> None:
    mirror.files["/a.pth"] = GOOD
    manifest({"resnet8": [mirror.url + "/a.pth"]}, {"resnet8": sha256(GOOD)})
    Path("checkpoints").mkdir(mode=0o500)
    try:
        with pytest.raises(UserError, match="cannot write in checkpoints: Permission denied"):
            get()
        assert mirror.asked == []
        Path("checkpoints").chmod(0o700)
        put(GOOD)
        Path("checkpoints").chmod(0o500)
        assert "is here already" in get()[0], "checking needs no write permission"
    finally:
        Path("checkpoints").chmod(0o700)


def test_files_of_a_killed_fetch_are_removed(mirror: Mirror) -> None:
    Path("checkpoints/.fetch").mkdir(parents=True)
    Path("checkpoints/.fetch/teacher.pth").write_bytes(GOOD[:1000])
    mirror.files["/a.pth"] = GOOD
    manifest({"resnet8": [mirror.url + "/a.pth"]})
    get()
    assert files() == {FILE.format("resnet8"): GOOD}


def test_two_concurrent_fetches_in_one_process(mirror: Mirror) -> None:
    mirror.files["/a.pth"] = mirror.stalled(GOOD)
    manifest({"resnet8": [mirror.url + "/a.pth"]})
    logged: list[list[str]] = []
    threads = [threading.Thread(target=lambda: logged.append(get(timeout=20))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert mirror.half.wait(20)
    time.sleep(0.3)
    mirror.go_on.set()
    for thread in threads:
        thread.join(20)
    assert len(logged) == 2 and mirror.asked == ["/a.pth"]
    assert sum("waiting for it" in lines[0] and "is here already" in lines[1] for lines in logged) == 1
    assert files() == {FILE.format("resnet8"): GOOD}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
