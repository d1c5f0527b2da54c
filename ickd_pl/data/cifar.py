"""CIFAR-100 and CIFAR-10, downloaded or from what people have of them; in one order, and CIFAR-100 always verified."""

from __future__ import annotations

import hashlib
import lzma
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info

from ickd_pl.data.base import TensorDataModule
from ickd_pl.data.images import Images
from ickd_pl.data.sources.facts import CIFAR10_CLASSES, CIFAR100_CLASSES, CIFAR100_DIGESTS, Digests, Facts
from ickd_pl.data.sources.npz import source_of, write_npz
from ickd_pl.data.sources.official import (
    LARGEST,
    fetch,
    from_folder,
    from_tar,
    leaving_no_folder,
    md5_of,
    write_file,
)
from ickd_pl.data.sources.recognise import FORMS, TITLES, Kind, read_source, recognise, source_key
from ickd_pl.data.sources.verify import Split, verified
from ickd_pl.errors import UserError, printable
from ickd_pl.plain import TooMuch, read_bytes


class _CIFAR(TensorDataModule):
    """Base class of both data sets. URLs, file names and md5 sums of the official files are torchvision's.

    Attributes:
        num_test: number of test images.
        classes: names in the order of the labels; a tree's folders have them.
        digests: of the published images; None: unknown, so that only the official files are verified.
        label_column: of the labels in parquet files.
    """

    image_size = 32
    image_order = "by content"
    num_available = 50_000
    num_test: ClassVar[int] = 10_000
    classes: ClassVar[tuple[str, ...]]
    digests: ClassVar[Digests | None] = None
    label_column: ClassVar[str]
    torchvision_name: ClassVar[str]

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        archive: str | Path | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        val_size: int = 0,
        train_size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.name = self.torchvision_name.lower()
        self.root = root
        self.download = download
        archive = None if archive is None else str(archive)  # as the checkpoints keep it
        self.archive = archive
        self._kind: Kind | None = None
        super().__init__(batch_size, eval_batch_size, val_size, train_size, seed)

    def prepare_data(self) -> None:
        """Bring the images into ``root`` and check them; Lightning calls this on one rank only.

        The official files are copied there. Of another form one file is written, ``<name>-prepared.npz``, with the
        images in their order, so that a later start takes a second; it is made anew where the source has changed.

        Raises:
            UserError: a corrupt file, a missing one that cannot be obtained, or a copy that is not the data set; with
                its name and what differs.
        """
        kind = self._form()
        if kind not in (None, "official"):
            if source_of(self._prepared()) != source_key(kind, self._source()):
                self._prepare(kind)
            return
        spec, folder = self._spec(), self._folder()
        bad = {name: found for name, md5 in self._sums().items() if (found := md5_of(folder / name)) != md5}
        if not bad or (kind is None and self._uses_prepared()):
            return
        if self.archive is not None:
            with leaving_no_folder(folder):
                self._take(self._source())
            return
        for name, found in bad.items():
            if found is not None:
                raise UserError(self._corrupt(str(folder / name), self._sums()[name], found))
        local = Path(self.root).expanduser() / spec.filename
        if local.is_file():
            self._take(local)
        elif self.download:
            with leaving_no_folder(folder):
                fetch(spec, Path(self.root).expanduser(), self.torchvision_name, self._take)
        else:
            raise UserError(
                f"{folder / next(iter(bad))} is missing. Set download=true, or give archive=, a local {spec.filename}, "
                "the unpacked folder or another form of the images."
            )

    def _source(self) -> Path:
        return Path(str(self.archive)).expanduser()

    def _form(self) -> Kind | None:
        """What the archive is; None where none is given, or where it is not there (any more)."""
        if self._kind is None and self.archive is not None and self._source().exists():
            self._kind = recognise(self._source(), str(self._spec().base_folder), list(self._sums()))
        return self._kind

    def _facts(self) -> Facts:
        counts = {"train": self.num_available, "test": self.num_test}
        return Facts(self.torchvision_name, self.classes, counts, self.label_column, self.digests)

    def _prepared(self) -> Path:
        return Path(self.root).expanduser() / f"{self.name}-prepared.npz"

    def _uses_prepared(self) -> bool:
        """Whether the images are read from the prepared file, not from the official ones."""
        if self._form() is not None:
            return self._form() != "official"
        return self._prepared().is_file() and not all((self._folder() / name).is_file() for name in self._sums())

    def _prepare(self, kind: Kind) -> None:
        """Read, verify and write what ``archive`` has."""
        source, facts = self._source(), self._facts()
        shown = f"{printable(source)} ({TITLES[kind]})"
        rank_zero_info(f"reading {self.torchvision_name} from {shown}, once")
        key = source_key(kind, source)
        splits = verified(read_source(kind, source, facts), facts, shown)
        write_npz(self._prepared(), splits, facts, key)

    def _spec(self) -> Any:
        """torchvision's class: where the files come from, their names and md5 sums."""
        from torchvision import datasets

        return getattr(datasets, self.torchvision_name)

    def _folder(self) -> Path:
        return Path(self.root).expanduser() / str(self._spec().base_folder)

    def _sums(self) -> dict[str, str]:
        """md5 of every file that is needed, by file name."""
        spec = self._spec()
        return {**dict(spec.train_list), **dict(spec.test_list), spec.meta["filename"]: spec.meta["md5"]}

    def _corrupt(self, what: str, expected: str, found: str) -> str:
        return (
            f"{what} is corrupt: expected md5 {expected}, found {found}. Delete it, or give archive=, a good "
            f"{self._spec().filename} or the unpacked folder."
        )

    def _take(self, source: Path) -> None:
        """Copy the needed files out of an archive or a folder, each checked before it is stored."""
        spec, sums, folder = self._spec(), self._sums(), self._folder()
        if source.is_dir():
            inner = source / spec.base_folder
            files = from_folder(inner if inner.is_dir() else source, list(sums))
        elif source.is_file():
            files = from_tar(source, spec.base_folder, list(sums))
        else:
            raise UserError(f"archive: {source} does not exist; expected {FORMS}.")
        missing = set(sums)
        try:
            for name, content in files:
                if (found := hashlib.md5(content).hexdigest()) != sums[name]:
                    raise UserError(self._corrupt(f"{source} ({name})", sums[name], found))
                write_file(folder / name, content)
                missing.discard(name)
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, TooMuch) as error:
            reason = str(error).partition(":\n")[0]
            raise UserError(self._corrupt(f"{source} ({reason})", spec.tgz_md5, str(md5_of(source)))) from error
        except OSError as error:
            raise UserError(f"{source} cannot be unpacked into {folder}: {error}.") from error
        if missing:
            raise UserError(f"{source} lacks {', '.join(sorted(missing))}; expected {spec.filename} as published.")

    def _load(self, name: str) -> dict[str, Any]:
        """One checked file. Only bytes with the published md5 reach the unpickler."""
        path, expected = self._folder() / name, self._sums()[name]
        try:
            content = read_bytes(path, LARGEST)
        except (OSError, TooMuch) as error:
            raise UserError(f"{path} cannot be read ({error}). Call prepare_data() first.") from error
        if (found := hashlib.md5(content).hexdigest()) != expected:
            raise UserError(self._corrupt(str(path), expected, found))
        entry: dict[str, Any] = pickle.loads(content, encoding="latin1")
        return entry

    def _read(self, split: str) -> Images:
        facts, where = self._facts(), str(self._folder())
        if self._uses_prepared():
            path = self._prepared()
            if not path.is_file():
                raise UserError(f"{printable(path)} is missing. Call prepare_data() first.")
            where = printable(path)
            if facts.digests is None:
                rank_zero_info(f"{where}: {split} images of {facts.title} are not verified: no digest of them is known")
            found = read_source("npz", path, facts, (split,), "delete it")[split]
        else:
            found = self._official(split)
        found = verified({split: found}, facts, where, "Delete it, or give archive= another copy.")[split]
        return Images(torch.from_numpy(found.image), torch.from_numpy(found.label).long())

    def _official(self, split: str) -> Split:
        spec = self._spec()
        entries = [self._load(name) for name, _ in (spec.train_list if split == "train" else spec.test_list)]
        pixels = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
        labels = [label for entry in entries for label in entry["fine_labels" if "fine_labels" in entry else "labels"]]
        return Split(pixels, np.array(labels, dtype=np.uint8))

    def _read_class_names(self) -> list[str]:
        return list(self.classes)


class CIFAR100(_CIFAR):
    """CIFAR-100: 50,000 training and 10,000 test images of 32x32 in 100 classes.

    Whatever the images come from, they are verified against one digest of the whole set, and have one order.

    Args:
        root: folder that holds, or will hold, ``cifar-100-python/`` or ``cifar100-prepared.npz``; it may hold
            ``cifar-100-python.tar.gz`` instead.
        download: fetch what is missing from the internet.
        archive: where the images are: a local ``cifar-100-python.tar.gz`` or its folder (what ``root``
            lacks is taken from it); class folders of PNG files, ``{train,test}/<class>/*.png``, as a folder, zip or
            tar; a folder of parquet files as Hugging Face has them; or an ``.npz``. Its content says which it is.
        batch_size: for training, over all ranks.
        eval_batch_size: for validation, test and predict, over all ranks; None: what suits the device.
        val_size: images split off for validation, class-balanced; 0: validation uses the test images.
        train_size: number of images to train on, class-balanced; None: all that remain.
        seed: for order and augmentation.

    Raises:
        UserError: a size out of its range; in ``prepare_data``, a corrupt file or a missing one, by name, or another
            copy than the published one, with what differs.
    """

    torchvision_name = "CIFAR100"
    num_classes = 100
    classes = CIFAR100_CLASSES
    digests = CIFAR100_DIGESTS
    label_column = "fine_label"
    known_constants = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


class CIFAR10(_CIFAR):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in 10 classes.

    The official files are verified. Other forms are not, except for their numbers of images; a line says so.

    Args:
        root: folder that holds, or will hold, ``cifar-10-batches-py/`` or ``cifar10-prepared.npz``; it may hold
            ``cifar-10-python.tar.gz`` instead.
        download: fetch what is missing from the internet.
        archive: where the images are: a local ``cifar-10-python.tar.gz`` or its folder (what ``root``
            lacks is taken from it); class folders of PNG files, ``{train,test}/<class>/*.png``, as a folder, zip or
            tar; a folder of parquet files as Hugging Face has them; or an ``.npz``. Its content says which it is.
        batch_size: for training, over all ranks.
        eval_batch_size: for validation, test and predict, over all ranks; None: what suits the device.
        val_size: images split off for validation, class-balanced; 0: validation uses the test images.
        train_size: number of images to train on, class-balanced; None: all that remain.
        seed: for order and augmentation.

    Raises:
        UserError: a size out of its range; in ``prepare_data``, a corrupt file or a missing one, by name, or another
            copy than the published one, with what differs.
    """

    torchvision_name = "CIFAR10"
    num_classes = 10
    classes = CIFAR10_CLASSES
    label_column = "label"
    known_constants = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
