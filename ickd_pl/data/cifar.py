"""CIFAR-100 and CIFAR-10, downloaded or from what people have of them; in one order, and CIFAR-100 always verified."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pytorch_lightning.utilities import rank_zero_info

from ickd_pl.data.base import TensorDataModule
from ickd_pl.data.given import given_path, reachable, there
from ickd_pl.data.images import Images
from ickd_pl.data.sources.facts import CIFAR10_CLASSES, CIFAR100_CLASSES, CIFAR100_DIGESTS, Digests, Facts
from ickd_pl.data.sources.npz import source_of
from ickd_pl.data.sources.official import Official, fetch, leaving_no_folder, md5_of
from ickd_pl.data.sources.prepared import prepare
from ickd_pl.data.sources.recognise import FORMS, Kind, read_source, recognise, source_key
from ickd_pl.data.sources.verify import Split, image_digests, set_digest, verified
from ickd_pl.errors import UserError, printable


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
        self._key: str | None = None
        self._digests: dict[str, str] = {}
        super().__init__(batch_size, eval_batch_size, val_size, train_size, seed)

    def prepare_data(self) -> None:
        """Bring the images into ``root`` and check them; Lightning calls this on one rank only.

        The official files are copied there. Of another form one file is written, ``<name>-prepared.npz``, with the
        images in their order, so that a later start takes a second; it is made anew where the source has changed.

        Raises:
            UserError: a corrupt file, a missing one that cannot be obtained, or a copy that is not the data set; with
                its name and what differs.
        """
        with reachable("root", self._root()):
            self._check_archive()
            there(self._root(), "root")
            kind = self._form()
            if kind in (None, "official"):
                self._prepare_official(kind)
            elif not self._is_prepared():
                self._prepare(kind)

    def _prepare_official(self, kind: Kind | None) -> None:
        official = self._files()
        spec, folder = official.spec, official.folder
        bad = {name: found for name, md5 in official.sums.items() if (found := md5_of(folder / name)) != md5}
        if not bad or (kind is None and self._uses_prepared()):
            return
        if kind is not None:
            with leaving_no_folder(folder):
                official.take(self._source())
            return
        for name, found in bad.items():
            if found is not None:
                raise UserError(official.corrupt(str(folder / name), official.sums[name], found))
        local = self._root() / spec.filename
        if local.is_file():
            official.take(local)
        elif self.download:
            with leaving_no_folder(folder):
                fetch(spec, self._root(), self.torchvision_name, official.take)
        else:
            raise UserError(
                f"{folder / next(iter(bad))} is missing. Set download=true, or give archive=, a local {spec.filename}, "
                "the unpacked folder or another form of the images."
            )

    def _root(self) -> Path:
        return given_path(self.root, "root") if self.root else Path()

    def _source(self) -> Path:
        return given_path(self.archive, "archive")

    def _check_archive(self) -> None:
        """Refuse an archive that is not there: what ``root`` has may be other images than those that are meant."""
        if self.archive is not None and not there(self._source(), "archive"):
            raise UserError(
                f"archive: {printable(self._source())} does not exist; expected {FORMS}. Correct it, or leave archive "
                f"out (null) to use what {printable(self._root())} holds."
            )

    def _form(self) -> Kind | None:
        """What the archive is; None where none is given, or where it is not there any more."""
        if self._kind is None and self.archive is not None and there(self._source(), "archive"):
            official = self._files()
            self._kind = recognise(self._source(), official.folder.name, official.images)
        return self._kind

    def _facts(self) -> Facts:
        counts = {"train": self.num_available, "test": self.num_test}
        return Facts(self.torchvision_name, self.classes, counts, self.label_column, self.digests)

    def _files(self) -> Official:
        return Official(self.torchvision_name, self._root())

    def _prepared(self) -> Path:
        return self._root() / f"{self.name}-prepared.npz"

    def _uses_prepared(self) -> bool:
        """Whether the images are read from the prepared file, not from the official ones."""
        if self._form() is not None:
            return self._form() != "official"
        official = self._files()
        return self._prepared().is_file() and not all((official.folder / name).is_file() for name in official.sums)

    def _is_prepared(self) -> bool:
        """Whether the archive is the prepared file itself."""
        prepared = self._prepared()
        return self.archive is not None and prepared.is_file() and prepared.samefile(self._source())

    def _prepare(self, kind: Kind, anew: bool = False) -> None:
        self._key = source_key(kind, self._source())
        prepare(self._prepared(), kind, self._source(), self._facts(), self._key, anew)

    def _read(self, split: str) -> Images:
        with reachable("root", self._root()):
            there(self._root(), "root")
            if not self._uses_prepared():
                found = self._verified(split, self._official(split), str(self._files().folder))
            else:
                found = self._of_prepared(split)
        if self.digests is None:
            self._digests[split] = set_digest(image_digests(found))
        return Images(torch.from_numpy(found.image), torch.from_numpy(found.label).long())

    def _of_prepared(self, split: str) -> Split:
        path, facts, kind = self._prepared(), self._facts(), self._form()
        where = printable(path)
        if not path.is_file():
            raise UserError(f"{where} is missing. Call prepare_data() first.")
        key = None
        if facts.digests is None:
            rank_zero_info(f"{where}: {split} images of {facts.title} are not verified: no digest of them is known")
            key = self._key = self._key or self._source_key(kind) or source_of(path)
        try:
            return self._verified(split, read_source("npz", path, facts, (split,), "delete it", key)[split], where)
        except UserError:
            if kind is None or self._is_prepared():
                raise
        rank_zero_info(f"{where} is damaged, or of another source than {printable(self._source())}: it is made anew")
        self._prepare(kind, anew=True)
        key = None if key is None else self._key
        return self._verified(split, read_source("npz", path, facts, (split,), "delete it", key)[split], where)

    def _source_key(self, kind: Kind | None) -> str | None:
        return None if kind is None or self._is_prepared() else source_key(kind, self._source())

    def _verified(self, split: str, found: Split, where: str) -> Split:
        return verified({split: found}, self._facts(), where, "Delete it, or give archive= another copy.")[split]

    def _official(self, split: str) -> Split:
        return self._files().split(split)

    def state_dict(self) -> dict[str, Any]:
        """As of every data module, and of a data set that is not verified the ``digests`` of its images by split."""
        state = super().state_dict()
        return {**state, "digests": dict(self._digests)} if state and self._digests else state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As of every data module; a line says where the images are not those of the checkpoint's run."""
        super().load_state_dict(state_dict)
        stored = state_dict.get("digests")
        for split, digest in self._digests.items():
            if isinstance(stored, Mapping) and stored.get(split, digest) != digest:
                rank_zero_info(
                    f"warning: the {split} images of {self.torchvision_name} are not those of the checkpoint's run: "
                    "its figures and those measured on these cannot be compared. Give archive= or root= of that run."
                )

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
