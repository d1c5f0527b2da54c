"""Download the benchmark's teachers from their mirrors, or copy them from local files; invalid files are refused."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from filelock import Timeout

from ickd_pl.errors import UserError
from ickd_pl.files import locked, replacing
from ickd_pl.teachers.archives import MemberError, is_archive, take_from_folder, take_member
from ickd_pl.teachers.download import DownloadError, download
from ickd_pl.teachers.manifest import Source, Teacher, record, teacher_of
from ickd_pl.weights.read import load_teacher

CLASSES = 100
SCRATCH = ".fetch"
"""Subfolder of the teachers' folder for unchecked files; the process that holds the lock empties it."""

Log = Callable[[str], None]


class Refused(UserError):
    """The file of a source is not the requested teacher."""


def fetch(
    names: Sequence[str],
    checkpoints: Path,
    manifest: Path,
    origin: Path | None = None,
    timeout: float = 30.0,
    force: bool = False,
    log: Log = print,
) -> None:
    """Fetch teachers, each from its first source with a valid file.

    A file is valid if its SHA-256 is the recorded one, if any, and the network loads it; only then is it moved to its
    final path, atomically. A hash that is not recorded yet is recorded. Processes that fetch into the same folder wait
    for each other.

    Args:
        names: of the teachers; all are tried, even after one has failed.
        checkpoints: the folder of the teachers.
        manifest: file with their sources and hashes.
        origin: copy them from this ``.pth`` file, folder or archive, without network access.
        timeout: seconds that a mirror may be silent, or slower than :data:`ickd_pl.teachers.download.MIN_SPEED`.
        force: replace existing files.
        log: called with each line of progress.

    Raises:
        UserError: unknown names; teachers that no source has, with each source and its error; existing files that are
            invalid or not the recorded ones; a folder that cannot be written.
    """
    teachers = [teacher_of(manifest, name) for name in dict.fromkeys(names)]
    if origin is not None:
        _check_origin(origin, teachers)
    errors: list[str] = []
    if not force:  # without the lock, so that a read-only folder will do
        teachers = _missing(teachers, checkpoints, manifest, errors, log)
    if teachers:
        with _locked_scratch(checkpoints, log) as scratch:
            errors += _Fetch(checkpoints, manifest, origin, timeout, force, log, scratch).all(teachers)
    if errors:
        raise UserError("; ".join(errors))


@dataclass
class _Fetch:
    """Downloads each archive once and skips hosts that did not answer."""

    checkpoints: Path
    manifest: Path
    origin: Path | None
    timeout: float
    force: bool
    log: Log
    scratch: Path
    archives: dict[str, Path | DownloadError] = field(default_factory=dict)
    down: dict[str, str] = field(default_factory=dict)

    def all(self, teachers: list[Teacher]) -> list[str]:
        """Fetch them; returns the errors, a sentence each."""
        errors: list[str] = []
        missing = []
        for known in teachers:
            teacher = teacher_of(self.manifest, known.name)  # read again, now that the lock is held
            if not self.force and not _missing([teacher], self.checkpoints, self.manifest, errors, self.log):
                continue
            tried = self.one(teacher)
            if tried:
                errors.append(f"no source gave {teacher.name}: {', '.join(tried)}")
                missing.append(teacher.name)
        if missing:
            other = "a file, folder or archive that you have with" if self.origin is None else "another"
            errors.append(f"give {other} --from, or train it: python cli.py teachers train {missing[0]}")
        return errors

    def one(self, teacher: Teacher) -> list[str]:
        """Try a teacher's sources in order; returns each source with its error, or nothing after a success."""
        tried: list[str] = []
        sources = teacher.sources if self.origin is None else (Source(str(self.origin)),)
        for number, source in enumerate(sources, start=1):
            self.log(f"{teacher.name}: trying {source.url} ({number} of {len(sources)})")
            file = self.scratch / "teacher.pth"
            try:
                came_from = self.take(teacher, source, file)
                sha256 = _check(teacher, file)
            except (DownloadError, MemberError, Refused) as error:
                self.log(f"{teacher.name}: {source.url}: {error}")
                tried.append(f"{source.url} ({error})")
            except OSError as error:
                _raise_local(error, self.checkpoints)
            else:
                return self.keep(teacher, file, sha256, came_from)
            finally:
                file.unlink(missing_ok=True)
        return tried or [f"{self.manifest} names none"]

    def take(self, teacher: Teacher, source: Source, file: Path) -> str:
        """Copy a source's file into the scratch folder; returns where it came from."""
        endings = [teacher.file, f"{teacher.name}.pth"]
        if self.origin is not None:
            if self.origin.is_dir():
                take_from_folder(self.origin, endings, file)
            elif is_archive(self.origin):
                return f"{self.origin.name} ({take_member(self.origin, endings, file)})"
            else:
                shutil.copyfile(self.origin, file)
            return self.origin.name  # the file name only: the manifest is shared
        if source.member is None:
            self.download(source.url, file)
            return source.url
        return f"{source.url} ({take_member(self.archive(source.url), [source.member, *endings], file)})"

    def archive(self, url: str) -> Path:
        """A mirror's archive, downloaded once."""
        if url not in self.archives:
            path = self.scratch / f"archive_{len(self.archives)}"
            try:
                self.download(url, path)
                self.archives[url] = path
            except DownloadError as error:
                path.unlink(missing_ok=True)
                self.archives[url] = error
        archive = self.archives[url]
        if isinstance(archive, DownloadError):
            raise archive
        return archive

    def download(self, url: str, path: Path) -> None:
        host = urlsplit(url).netloc
        if host in self.down:
            raise DownloadError(f"{self.down[host]}, as before")
        try:
            download(url, path, self.timeout)
        except DownloadError as error:
            if error.unreachable:
                self.down[host] = str(error)
            raise

    def keep(self, teacher: Teacher, file: Path, sha256: str, came_from: str) -> list[str]:
        """Move a valid file to its path and record its hash; returns errors of the manifest."""
        path = teacher.path(self.checkpoints)
        size = file.stat().st_size
        with replacing(path) as temporary:
            shutil.move(file, temporary)
        try:
            now = record(self.manifest, teacher.name, sha256, recorded_from=came_from)
        except UserError as error:
            return [f"{path} is here, but its hash is not recorded ({error})"]
        known = "as recorded" if teacher.sha256 else f"now recorded in {self.manifest}"
        self.log(f"{teacher.name}: {path} is here, {size / 1e6:.1f} MB, SHA-256 {sha256}, {known}")
        if now.measured_acc1 is None:
            self.log(f"{teacher.name}: check its accuracy with: python cli.py teachers verify {teacher.name}")
        return []


def sha256_of(path: Path) -> str:
    """A file's SHA-256, 64 lower-case hex digits.

    Raises:
        UserError: it is a folder, or cannot be read.
    """
    import pooch

    try:
        return str(pooch.file_hash(str(path), alg="sha256"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _missing(
    teachers: Sequence[Teacher], checkpoints: Path, manifest: Path, errors: list[str], log: Log
) -> list[Teacher]:
    """The teachers without a file; an existing invalid file is an error, since only the user may replace it."""
    missing = []
    for teacher in teachers:
        path = teacher.path(checkpoints)
        if not path.exists():
            missing.append(teacher)
            continue
        try:
            if teacher.sha256 is None:
                load_teacher(teacher.name, path, CLASSES)
                log(f"{teacher.name}: {path} is here already; no SHA-256 is recorded to compare it with")
            elif (found := sha256_of(path)) != teacher.sha256:
                errors.append(
                    f"{path} is not the file that was recorded: expected SHA-256 {teacher.sha256} ({manifest}), found "
                    f"{found}; delete it or give --force to fetch it again"
                )
            else:
                log(f"{teacher.name}: {path} is here already, SHA-256 as recorded")
        except UserError as error:
            errors.append(f"{error}; delete it or give --force to fetch it again")
    return missing


def _check(teacher: Teacher, file: Path) -> str:
    """Check that a file is the teacher; returns its hash.

    Raises:
        Refused: the hash is not the recorded one, or the network cannot load the file.
    """
    found = sha256_of(file)
    if teacher.sha256 not in (None, found):
        hint = (
            ""
            if teacher.status == "verified"
            else "; the recorded one was never verified: if that one was bad, set its sha256 to null in the manifest"
        )
        raise Refused(f"not the recorded file: expected SHA-256 {teacher.sha256}, found {found}{hint}")
    try:
        load_teacher(teacher.name, file, CLASSES)
    except UserError as error:
        reason = str(error).replace(f"weights file {file}", "the file").replace(str(file), "the file")
        if ": give the file#" in reason:  # a teacher's file has one entry
            reason = reason.partition(": give the file#")[0] + ": save the one that is meant in a file of its own"
        page = ", it is a web page" if file.read_bytes()[:200].lstrip()[:1] == b"<" else ""
        raise Refused(f"{reason.removesuffix(': get it again')}{page}") from error
    return found


def _check_origin(origin: Path, teachers: Sequence[Teacher]) -> None:
    if not origin.exists():
        raise UserError(f"--from {origin} does not exist: give a .pth file, a folder or a tar or zip archive")
    if origin.is_dir() or is_archive(origin):
        return
    if origin.suffix == ".safetensors":
        raise UserError(
            f"--from {origin}: give a .pth file, or use this one directly: --model.teacher_weights {origin}"
        )
    if len(teachers) != 1:
        raise UserError(f"--from {origin} is a single file: give exactly one NAME with it")


@contextmanager
def _locked_scratch(checkpoints: Path, log: Log) -> Iterator[Path]:
    """Lock the folder of the teachers and yield its scratch folder, empty even after a killed fetch."""
    lock, scratch = checkpoints / ".fetch.lock", checkpoints / SCRATCH
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, timeout=0))
        except Timeout:
            log(f"another fetch into {checkpoints} is running: waiting for it")
            stack.enter_context(locked(lock))
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
        except OSError as error:
            _raise_local(error, checkpoints)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _raise_local(error: OSError, checkpoints: Path) -> None:
    reason = error.strerror or str(error)
    advice = "free the space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "check its permissions"
    path = error.filename or checkpoints
    raise UserError(f"cannot read or write {path}: {reason}; {advice} or choose another folder") from error
