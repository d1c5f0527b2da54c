"""The image files of a folder, and the rule for links: no image belongs to two classes, nor to training and test.

Links to files and folders are followed, whether they lie below a class or are the class's folder itself. Each folder
is read once for a class: a link to a folder above or beside it adds nothing a second time. A link from which one comes
to the folder of all classes, and a file or folder that two classes (or the training and the test images) come to, are
refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ickd_pl.errors import UserError, near, printable

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Found:
    """The images below one folder.

    Args:
        top: the folder; it may be a link.
        outside: real paths of folders that no link may lead to or above, since they hold other classes.

    Attributes:
        files: paths relative to ``top``, in a fixed order.
        folders: real path of each folder in which there are images, with the path that led there.
        links: real path of each image that is a link itself, with its path.

    Raises:
        UserError: a folder that cannot be read, a file with an image's ending that is a broken link, pipe or the like,
            or a link to a folder that ``top`` or one ``outside`` is in; by its name.
    """

    def __init__(self, top: Path, outside: tuple[str, ...] = ()) -> None:
        self.files: list[str] = []
        self.folders: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self._top = top
        self._read_folders: set[str] = set()
        self._real_folders: dict[str, str] = {}
        self._links_to_folders: list[str] = []
        real_top = os.path.realpath(top)
        self._check_below(top, real_top, outside)
        self._read("", real_top)
        # After the folders themselves, so that an image keeps the path without a link. The list grows meanwhile.
        for inner in self._links_to_folders:
            link = Path(self._path(inner))
            real = os.path.realpath(link)
            if not Path(real).is_relative_to(real_top):
                self._check_below(link, real, (*outside, real_top, os.path.realpath(link.parent)))
            self._read(inner, real)
        self.files.sort(key=_walk_order)

    def _path(self, inner: str) -> str:
        return f"{self._top}/{inner}" if inner else str(self._top)

    def _check_below(self, link: Path, real: str, others: tuple[str, ...]) -> None:
        if any(Path(other).is_relative_to(real) for other in others):
            raise UserError(
                f"{printable(link)} is a link to {printable(real)}, which holds more than this folder's own images: "
                "remove the link."
            )

    def _read(self, inner: str, real: str) -> None:
        todo = [(inner, real)]
        while todo:
            inner, real = todo.pop()
            if real in self._read_folders:
                continue
            self._read_folders.add(real)
            try:
                with os.scandir(real) as found:
                    entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
            except OSError as error:
                raise UserError(f"{printable(self._path(inner))} cannot be read ({error.strerror}).") from error
            for entry in entries:
                path = f"{inner}/{entry.name}" if inner else entry.name
                if entry.is_dir(follow_symlinks=False):
                    todo.append((path, f"{real}{os.sep}{entry.name}"))
                elif entry.is_symlink() and Path(entry.path).is_dir():
                    self._links_to_folders.append(path)
                elif is_image(entry.name):
                    self._add(path, entry)
                    self.folders[real] = self._path(inner)

    def _add(self, path: str, entry: os.DirEntry[str]) -> None:
        if not entry.is_file(follow_symlinks=False) and not Path(entry.path).is_file():
            what = "a pipe, socket or device" if Path(entry.path).exists() else "a broken link"
            raise UserError(f"{printable(self._path(path))} is {what}, not an image: remove or rename it.")
        if entry.is_symlink():
            self.links[self._real(entry.path)] = self._path(path)
        self.files.append(path)

    def _real(self, link: str) -> str:
        """The file behind a link; ``realpath`` alone would take a minute for a million links."""
        target = Path(link).parent / Path(link).readlink()
        folder = str(target.parent)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        real = Path(self._real_folders[folder], target.name)
        return os.path.realpath(real) if real.is_symlink() else str(real)


def list_classes(
    root: Path, folders: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, list[str]], dict[str, list[int]]]:
    """Classes, and by split the files (relative to the split's folder, sorted by class, then path) and their labels.

    Args:
        root: folder of the folders of the splits.
        folders: their names by split; None: "train" and "test".

    Raises:
        UserError: a missing or empty folder, an unknown class, and what :class:`Found` and the rule for links refuse.
    """
    shown = printable(root)
    inner = {split: root / (folders or {}).get(split, split) for split in ("train", "test")}
    for folder in (root, *inner.values()):
        if not folder.is_dir():
            there = sorted(printable(p.name) for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
            found = f"; found in {shown}: {', '.join(there) or 'no folder'}" if root.is_dir() else ""
            expected = f"{shown}/train/<class>/ and {shown}/test/<class>/"
            raise UserError(f"{printable(folder)} is not a folder; expected {expected}{found}.")
    classes = _subfolders(inner["train"])
    if not classes:
        raise UserError(f"{shown}/train holds no folders; expected one folder of images for each class.")
    files: dict[str, list[str]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    outside = tuple(os.path.realpath(folder) for folder in (root, *inner.values()))
    every: list[Found] = []
    for split in files:
        for name in classes if split == "train" else _subfolders(inner[split]):
            folder = inner[split] / name
            if name not in classes:
                hint = printable(near(name, classes))
                raise UserError(f"class {printable(name)} of {shown}/{split} is not in {shown}/train; {hint}.")
            every.append(Found(folder, outside))
            if not every[-1].files and split == "train":
                raise UserError(f"{printable(folder)} holds no images ({', '.join(EXTENSIONS)}).")
            files[split] += [f"{name}/{file}" for file in every[-1].files]
            labels[split] += [classes.index(name)] * len(every[-1].files)
    if not files["test"]:
        raise UserError(f"{shown}/test holds no images in class folders ({', '.join(EXTENSIONS)}).")
    _check_apart(every)
    return classes, files, labels


def _check_apart(every: list[Found]) -> None:
    """Refuse a folder or file that two classes, or the training and the test images, come to through links."""
    folders: dict[str, str] = {}
    for found in every:
        for real, path in found.folders.items():
            if real in folders:
                raise _shared(folders[real], path)
        folders |= found.folders
    links: dict[str, str] = {}
    for found in every:
        for real, path in found.links.items():
            folder, name = str(Path(real).parent), Path(real).name
            if folder in folders and folder not in found.folders and is_image(name):
                raise _shared(f"{folders[folder]}/{name}", path)
            if real in links:
                raise _shared(links[real], path)
        links |= found.links


def _shared(one: str, other: str) -> UserError:
    return UserError(
        f"{printable(one)} and {printable(other)} are the same through a link, but an image is of one class, and for "
        "training or for the test: remove one of them."
    )


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image, and not hidden."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _walk_order(path: str) -> list[tuple[bool, str]]:
    """In each folder the files by name, then the folders by name."""
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def list_images(folder: Path) -> list[str]:
    """The images to predict, relative to their folder, in a fixed order.

    Raises:
        UserError: it is not a folder, holds no images, or what :class:`Found` refuses.
    """
    if not folder.is_dir():
        raise UserError(f"predict_root: {printable(folder)} is not a folder.")
    names = Found(folder).files
    if not names:
        raise UserError(f"predict_root: {printable(folder)} holds no images ({', '.join(EXTENSIONS)}).")
    return names
