"""The manifest of the benchmark's teachers: sources, hashes and accuracies."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ickd_pl.errors import UserError, near
from ickd_pl.files import locked, write_text
from ickd_pl.models import model_names
from ickd_pl.plain import read_json

# Percentage points that a teacher may be below its published accuracy, for rounding on other machines.
TOLERANCE = 0.2


@dataclass(frozen=True)
class Source:
    """One source of a teacher.

    Attributes:
        url: of the file itself, or of an archive that holds it.
        member: the file's path in the archive, or the end of it; None: the URL is the file itself.
    """

    url: str
    member: str | None = None


@dataclass(frozen=True)
class Teacher:
    """A teacher's entry in the manifest.

    Attributes:
        name: the network, for ``get_model(name, 100)``.
        published_acc1: CIFAR-100 test accuracy in percent, as published.
        file: its path below the folder of the teachers.
        sources: in the order in which they are tried.
        sha256: of the file, 64 lower-case hex digits; None until first fetched.
        measured_acc1: percent, of the file with this hash.
        recorded_from: where the file with this hash came from.
    """

    name: str
    published_acc1: float
    file: str
    sources: tuple[Source, ...]
    sha256: str | None = None
    measured_acc1: float | None = None
    recorded_from: str | None = None

    @property
    def status(self) -> str:
        """``unverified``; ``recorded`` with a hash; ``verified`` with the accuracy of the file with this hash."""
        return "unverified" if self.sha256 is None else "recorded" if self.measured_acc1 is None else "verified"

    def path(self, checkpoints: Path) -> Path:
        """The file's path."""
        return checkpoints.joinpath(*PurePosixPath(self.file).parts)


def packaged_manifest() -> Path:
    """The shipped manifest: inside an installed package, or at the root of a clone."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "manifests" / "manifest.json"
    return installed if installed.is_file() else package.parent / "checkpoints" / "manifest.json"


def manifest_of(checkpoints: Path) -> Path:
    """The manifest of a folder of teachers; it may not exist yet."""
    return checkpoints / "manifest.json"


def read_manifest(path: Path) -> dict[str, Teacher]:
    """The teachers of a manifest by name; the shipped ones if the file does not exist yet.

    Raises:
        UserError: the file is not a valid manifest; with its path, and the wrong entry.
    """
    return _teachers(_read(path), path)


def teacher_of(path: Path, name: str) -> Teacher:
    """One entry of a manifest.

    Raises:
        UserError: as :func:`read_manifest`, and for an unknown name, with the closest ones.
    """
    teachers = read_manifest(path)
    if name not in teachers:
        raise UserError(f"no teacher {name} in {path}: {near(name, teachers)}")
    return teachers[name]


def record(
    path: Path, name: str, sha256: str, measured_acc1: float | None = None, recorded_from: str | None = None
) -> Teacher:
    """Record a file's hash, and its accuracy if that was measured and agrees with the published one.

    The first record of a hash makes the status ``recorded``, an accuracy makes it ``verified``. Processes that
    record at the same time wait for each other, so that no entry is lost. A missing manifest is created as a copy of
    the shipped one.

    Args:
        path: the manifest.
        name: the teacher.
        sha256: of its file.
        measured_acc1: percent; None keeps the recorded value.
        recorded_from: where the file came from; kept with the first record of a hash.

    Returns:
        The updated entry.

    Raises:
        UserError: an unknown name, a hash that is not the recorded one, or a manifest that cannot be written.
    """
    with locked(path.with_name(f".{path.name}.lock")):
        content = _read(path)
        teachers = _teachers(content, path)
        if name not in teachers:
            raise UserError(f"no teacher {name} in {path}: {near(name, teachers)}")
        known = teachers[name]
        if known.sha256 not in (None, sha256):
            raise UserError(f"{name}: {path} has recorded SHA-256 {known.sha256}, the file has {sha256}")
        entry = content["teachers"][name]
        if known.sha256 is None:  # a removed hash also removes what was recorded of that file
            entry.update(sha256=sha256, measured_acc1=None, recorded_from=recorded_from)
        if measured_acc1 is not None:
            entry["measured_acc1"] = round(measured_acc1, 2)
        teacher = _teachers(content, path)[name]
        entry["status"] = teacher.status
        if teacher != known or not path.is_file():
            write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return teacher


def _read(path: Path) -> dict[str, Any]:
    source = path if path.exists() else packaged_manifest()
    try:
        content: Any = read_json(source)
    except (OSError, ValueError) as error:
        raise UserError(f"manifest {source} cannot be read as JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("teachers"), dict):
        raise UserError(f'manifest {source}: expected {{"teachers": {{name: entry}}}}')
    return content


def _teachers(content: dict[str, Any], path: Path) -> dict[str, Teacher]:
    out = {}
    for name, entry in content["teachers"].items():
        try:
            out[name] = _teacher(name, entry)
        except (UserError, KeyError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise UserError(f"manifest {path}: entry {name}: {reason}") from error
    return out


def _teacher(name: str, entry: dict[str, Any]) -> Teacher:
    sources = tuple(Source(str(source["url"]), source.get("member")) for source in entry["sources"])
    teacher = Teacher(
        name,
        float(entry["published_acc1"]),
        str(entry["file"]),
        sources,
        entry.get("sha256"),
        entry.get("measured_acc1"),
        entry.get("recorded_from"),
    )
    if name not in model_names():
        raise UserError(f"no network has this name: {near(name, model_names())}")
    for path in (teacher.file, *(source.member for source in sources if source.member is not None)):
        # A manifest may be untrusted: it must not name a path outside the folder.
        if "\\" in path or ":" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise UserError(f"expected a plain path below the folder, got {path!r}")
    if any(not re.match(r"https?://", source.url) for source in sources):
        raise UserError("expected sources that start with http:// or https://")
    if teacher.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", str(teacher.sha256)):
        raise UserError(f"sha256: expected 64 lower-case hex digits or null, got {teacher.sha256!r}")
    measured = teacher.measured_acc1
    if measured is not None and (not isinstance(measured, int | float) or not 0 <= measured <= 100):
        raise UserError(f"measured_acc1: expected a number in percent or null, got {measured!r}")
    return teacher
