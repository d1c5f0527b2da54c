"""The manifest: shipped entries, records, and invalid files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ickd_pl.errors import UserError
from ickd_pl.models import model_names
from ickd_pl.runs.configs import config_root
from ickd_pl.teachers.manifest import manifest_of, packaged_manifest, read_manifest, record, teacher_of
from tests.teachers.mirror import FILE, manifest

ONE, TWO = "1" * 64, "2" * 64
PUBLISHED = {
    "wrn_40_2": 75.61,
    "resnet56": 72.34,
    "resnet110": 74.31,
    "resnet32x4": 79.42,
    "vgg13": 74.64,
    "ResNet50": 79.34,
}


def test_the_shipped_manifest() -> None:
    teachers = read_manifest(packaged_manifest())
    assert {name: teacher.published_acc1 for name, teacher in teachers.items()} == PUBLISHED
    for name, teacher in teachers.items():
        assert teacher.file == FILE.format(name)
        kinds = [source.member is not None for source in teacher.sources]
        assert kinds == [True, True, False], "archives first, the unreachable host last"
        assert all(teacher.file == (s.member or s.url)[-len(teacher.file) :] for s in teacher.sources)
        # the path in the pair files
        pairs = [p.read_text() for p in (config_root() / "pairs").glob(f"{name}_*.yaml")]
        assert any(f"checkpoints/{teacher.file}" in text for text in pairs), name


def test_a_first_record_copies_the_shipped_manifest() -> None:
    path = manifest_of(Path("new/checkpoints"))
    teacher = record(path, "resnet56", ONE, recorded_from="http://somewhere/a.pth")
    assert (teacher.status, teacher.sha256, teacher.recorded_from) == ("recorded", ONE, "http://somewhere/a.pth")
    assert read_manifest(path)["resnet56"] == teacher
    assert json.loads(path.read_text())["teachers"]["resnet56"]["status"] == "recorded"
    shipped = json.loads(packaged_manifest().read_text())
    other = json.loads(path.read_text())
    assert other["teachers"].pop("resnet56") != shipped["teachers"].pop("resnet56")
    assert other == shipped


def test_from_recorded_to_verified() -> None:
    path = manifest({"resnet8": ["http://a/b"]})
    record(path, "resnet8", ONE, recorded_from="here")
    teacher = record(path, "resnet8", ONE, measured_acc1=70.4567)
    assert (teacher.status, teacher.measured_acc1, teacher.recorded_from) == ("verified", 70.46, "here")
    again = record(path, "resnet8", ONE, recorded_from="there")
    assert again == teacher
    with pytest.raises(UserError, match=f"m.json has recorded SHA-256 {ONE}, the file has {TWO}"):
        record(path, "resnet8", TWO)
    assert teacher_of(path, "resnet8") == teacher


def test_removing_a_hash_removes_its_accuracy() -> None:
    path = manifest({"resnet8": ["http://a/b"]})
    record(path, "resnet8", ONE, measured_acc1=70.5)
    content = json.loads(path.read_text())
    content["teachers"]["resnet8"]["sha256"] = None
    path.write_text(json.dumps(content))
    assert teacher_of(path, "resnet8").status == "unverified"
    assert record(path, "resnet8", TWO).status == "recorded"


def test_other_keys_of_the_manifest_are_kept() -> None:
    path = manifest({"resnet8": ["http://a/b"]})
    content = json.loads(path.read_text())
    content["note"], content["teachers"]["resnet8"]["licence"] = "ours", "mine"
    path.write_text(json.dumps(content))
    record(path, "resnet8", ONE)
    after = json.loads(path.read_text())
    assert (after["note"], after["teachers"]["resnet8"]["licence"]) == ("ours", "mine")


def test_records_at_the_same_time_lose_nothing() -> None:
    names = model_names()
    path = manifest({name: ["http://a/b"] for name in names})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: record(path, name, ONE), names))
    assert {teacher.status for teacher in read_manifest(path).values()} == {"recorded"}


def changed(**more: Any) -> dict[str, Any]:
    entry = {"published_acc1": 70.5, "file": "a/b.pth", "sources": [{"url": "http://a/b"}]}
    return {"teachers": {"resnet8": {**entry, **more}}}


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        ([], "expected"),
        ({"teachers": []}, "expected"),
        ({"teachers": {"resnet8": {}}}, "resnet8: 'sources' is missing"),
        ({"teachers": {"resnet8": 3}}, "resnet8"),
        ({"teachers": {"resnet9": changed()["teachers"]["resnet8"]}}, "did you mean"),
        (changed(file="../outside.pth"), "plain path"),
        (changed(file="/etc/x.pth"), "plain path"),
        (changed(file=""), "plain path"),
        (changed(file="a\\b.pth"), "plain path"),
        (changed(published_acc1="high"), "high"),
        (changed(sha256="abc"), "64 lower-case hex digits"),
        (changed(measured_acc1="high"), "percent"),
        (changed(sources=[{"url": "file:///etc/passwd"}]), "http"),
        (changed(sources=[{"url": "http://a/b", "member": "../x"}]), "plain path"),
        (changed(sources=[{}]), "'url' is missing"),
    ],
)
def test_invalid_manifests(content: Any, needle: str) -> None:
    Path("bad.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"manifest bad\.json") as caught:
        read_manifest(Path("bad.json"))
    assert needle in str(caught.value)


@pytest.mark.parametrize("text", ["", '{"teachers": ', "\x00"])
def test_a_damaged_manifest_is_left_alone(text: str) -> None:
    path = Path("bad.json")
    path.write_text(text)
    with pytest.raises(UserError, match=r"manifest bad\.json cannot be read as JSON"):
        record(path, "resnet8", ONE)
    assert path.read_text() == text


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match=r"no teacher resnet56x.*resnet56"):
        teacher_of(packaged_manifest(), "resnet56x")
    with pytest.raises(UserError, match="no teacher resnet8"):
        record(manifest_of(Path("checkpoints")), "resnet8", ONE)
    assert not manifest_of(Path("checkpoints")).exists()
