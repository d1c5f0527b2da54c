"""The benchmark's teachers: trained as cells, fetched, or loaded from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ickd_pl.benchmark.cells import predict
from ickd_pl.benchmark.plan import Benchmark, Cell
from ickd_pl.benchmark.published import DATA, NUM_TEST
from ickd_pl.benchmark.records import read_result
from ickd_pl.errors import UserError
from ickd_pl.models import get_model
from ickd_pl.runs import RunFolder
from ickd_pl.runs.data_options import data_name
from ickd_pl.runs.machine import where
from ickd_pl.seeding import seeded
from ickd_pl.training.fingerprint import network_hash
from ickd_pl.training.teacher_images import TeacherImages
from ickd_pl.weights import load_weights, weights_file


class Teachers:
    """Locates, hashes and checks the weights of each teacher.

    Args:
        benchmark: its ``teachers`` block states how to obtain them.
        folder: the results folder.
        log: called with each line of progress.
        checkpoints: folder of fetched teachers.
    """

    def __init__(
        self, benchmark: Benchmark, folder: Path, log: Callable[[str], None], checkpoints: Path = Path("checkpoints")
    ) -> None:
        self.benchmark, self.settings = benchmark, benchmark.settings.teachers
        self.folder, self.log, self.checkpoints = folder, log, checkpoints
        self._hashes: dict[str, str] = {}

    def weights(self, network: str) -> Path:
        """Path of a teacher's weights: from ``teachers.weights``, trained here, or fetched. It may not exist yet."""
        if network in self.settings.weights:
            return Path(self.settings.weights[network])
        trained = RunFolder(self._cell_folder(network)).last
        if self.settings.get == "train" or trained.is_file():
            return trained
        return self._fetched(network)

    def hash_of(self, network: str) -> str | None:
        """Hash of a finished teacher's weights; None before, when the file may be of an unfinished training.

        Raises:
            UserError: a damaged file, or one of another network.
        """
        if network not in self._hashes:
            file = weights_file(self.weights(network))
            if not (self._cell_folder(network) / "result.json").is_file() or not file.is_file():
                return None
            self._hashes[network] = self.file_hash(network)
        return self._hashes[network]

    def file_hash(self, network: str) -> str:
        """Hash of the weights currently in the file.

        Raises:
            UserError: a damaged file, or one of another network.
        """
        path = self.weights(network)
        with seeded("benchmark"):
            net = get_model(network, int(self.benchmark.data("student").num_classes))
        try:
            load_weights(net, path, network)
        except UserError as error:
            if path != RunFolder(self._cell_folder(network)).last:
                raise
            folder = self._cell_folder(network)
            raise UserError(
                f"{error} It was trained here: move {folder} away, and `bench run` trains it again"
            ) from error
        return network_hash(net)

    def fault(self, network: str) -> str | None:
        """Why a teacher cannot be used, or None if it can or has no result yet."""
        result = read_result(self._cell_folder(network))
        if result is None or result.status == "done":
            return None
        why = f"its teacher {network} {result.status} ({result.reason})"
        return f"{why}; move {self._cell_folder(network)} away to try again"

    def is_external(self, cell: Cell) -> bool:
        """Whether a teacher is loaded from a file or fetched, and never trained."""
        return cell.network in self.settings.weights or self.settings.get == "fetch"

    def get(self, cell: Cell) -> Path | None:
        """Path of a teacher's weights after fetching them if necessary; None if it must be trained.

        Raises:
            UserError: the file does not exist, or cannot be fetched and ``get`` does not allow training.
        """
        if cell.network in self.settings.weights:
            path = Path(self.settings.weights[cell.network])
            if not weights_file(path).is_file():
                raise UserError(f"teachers, weights: {path} for {cell.network} does not exist")
            return path
        if self.settings.get == "train":
            return None
        from ickd_pl.teachers.fetch import fetch
        from ickd_pl.teachers.manifest import manifest_of

        try:
            fetch([cell.network], self.checkpoints, manifest_of(self.checkpoints), log=self.log)
        except UserError as error:
            if self.settings.get == "fetch":
                raise UserError(f"{error}; or set teachers.get to fetch_or_train") from error
            self.log(f"  {cell.network} cannot be fetched ({error}): training it")
            return None
        return self._fetched(cell.network)

    def measured(self, cell: Cell, path: Path, data: Any, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Load and test a teacher that was not trained here; a fetched one must reach its published accuracy.

        Raises:
            UserError: an invalid file, or a fetched teacher below its published accuracy.
        """
        with seeded("benchmark"):
            net = get_model(cell.network, data.num_classes)
        load_weights(net, path, cell.network)
        images = TeacherImages(str(path))
        data.setup("test")
        images.prepare(self.benchmark.settings.model.get("teacher_normalization", "auto"), data)
        predicted, labels, trainer = predict(net, data, folder, settings, images)
        acc1 = 100 * float((predicted == labels).mean())
        on_published_images = data_name(data) == DATA and len(labels) == NUM_TEST
        if on_published_images and cell.network not in self.settings.weights:
            self._verify(cell.network, path, acc1)
        return {
            "split": "test",
            "num_test": len(labels),
            "acc1_last": acc1,
            "parameters": sum(p.numel() for p in net.parameters()),
            "teacher_hash": network_hash(net),
            **where(trainer),
        }

    def _verify(self, network: str, path: Path, acc1: float) -> None:
        """Compare with the published accuracy and record it in the manifest, like ``teachers verify``."""
        from ickd_pl.teachers.fetch import sha256_of
        from ickd_pl.teachers.manifest import TOLERANCE, manifest_of, record, teacher_of
        from ickd_pl.teachers.train import hold_to

        manifest = manifest_of(self.checkpoints)
        advice = (
            f"{path} is not that teacher, or was trained with a different normalisation; fetch another file, set "
            "teachers.get to train, or list this file under teachers.weights to use it unchecked"
        )
        measured = f"{network}: {acc1:.2f} percent on the test images of {DATA}"
        expected = teacher_of(manifest, network).published_acc1
        self.log(f"  {hold_to(measured, acc1, expected, TOLERANCE, 'published', advice)}")
        try:
            record(manifest, network, sha256_of(path), acc1)
        except UserError as error:  # a shared, read-only folder
            self.log(f"  {error}")

    def _cell_folder(self, network: str) -> Path:
        return self.folder / "cells" / Cell("teacher", network, self.settings.seed).path

    def _fetched(self, network: str) -> Path:
        return self.checkpoints / f"{network}_vanilla" / "ckpt_epoch_240.pth"
