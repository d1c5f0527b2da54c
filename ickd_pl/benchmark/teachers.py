"""The benchmark's teachers: trained as cells of their own, fetched, or given as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ickd_pl.benchmark.cells import predict
from ickd_pl.benchmark.fingerprint import network_hash, where
from ickd_pl.benchmark.plan import Benchmark, Cell
from ickd_pl.benchmark.published import DATA, NUM_TEST
from ickd_pl.benchmark.records import read_result
from ickd_pl.errors import UserError
from ickd_pl.models import get_model
from ickd_pl.runs import RunFolder
from ickd_pl.runs.data_options import data_name
from ickd_pl.seeding import seeded
from ickd_pl.weights import load_weights


class Teachers:
    """Knows where each teacher's weights are and what they are.

    Args:
        benchmark: its ``teachers`` block says how they come.
        folder: the results folder.
        say: takes a line on what is being done.
        checkpoints: where fetched teachers live.
    """

    def __init__(
        self, benchmark: Benchmark, folder: Path, say: Callable[[str], None], checkpoints: Path = Path("checkpoints")
    ) -> None:
        self.benchmark, self.settings = benchmark, benchmark.settings.teachers
        self.folder, self.say, self.checkpoints = folder, say, checkpoints
        self._hashes: dict[str, str] = {}

    def weights(self, network: str) -> Path:
        """The file of a teacher: given, trained here, or where fetched ones lie. It need not be there yet."""
        if network in self.settings.weights:
            return Path(self.settings.weights[network])
        trained = RunFolder(self._place(network)).last
        if self.settings.get == "train" or trained.is_file():
            return trained
        return self._fetched(network)

    def hash_of(self, network: str) -> str | None:
        """The weights' hash; None as long as the teacher is not done: what lies there may be half trained.

        Raises:
            UserError: a damaged file, or one of another network.
        """
        if network not in self._hashes:
            if not (self._place(network) / "result.json").is_file() or not self.weights(network).is_file():
                return None
            self._hashes[network] = self.file_hash(network)
        return self._hashes[network]

    def file_hash(self, network: str) -> str:
        """The hash of the weights that are there now.

        Raises:
            UserError: a damaged file, or one of another network.
        """
        path = self.weights(network)
        with seeded("benchmark"):
            net = get_model(network, int(self.benchmark.data("student").num_classes))
        try:
            load_weights(net, path, network)
        except UserError as error:
            if path != RunFolder(self._place(network)).last:
                raise
            place = self._place(network)
            raise UserError(f"{error} It was trained here: move {place} away, and it is trained again") from error
        return network_hash(net)

    def fault(self, network: str) -> str | None:
        """Why no student can learn from a teacher, or None where it is done."""
        result = read_result(self._place(network))
        if result is None or result.status == "done":
            return None
        why = f"its teacher {network} {result.status} ({result.reason})"
        return f"{why}; move {self._place(network)} away to try again"

    def given(self, cell: Cell) -> bool:
        """Whether a teacher comes as a file, so that nothing is trained."""
        return cell.network in self.settings.weights or self.settings.get == "fetch"

    def get(self, cell: Cell) -> Path | None:
        """The file of a teacher that need not be trained; None where it has to be.

        Raises:
            UserError: a given file is not there, or no source has it and it may not be trained.
        """
        if cell.network in self.settings.weights:
            path = Path(self.settings.weights[cell.network])
            if not path.is_file():
                raise UserError(f"teachers, weights: {path} for {cell.network} does not exist")
            return path
        if self.settings.get == "train":
            return None
        from ickd_pl.teachers.fetch import fetch
        from ickd_pl.teachers.manifest import manifest_of

        try:
            fetch([cell.network], self.checkpoints, manifest_of(self.checkpoints), log=self.say)
        except UserError as error:
            if self.settings.get == "fetch":
                raise UserError(f"{error}; or set teachers.get to fetch_or_train") from error
            self.say(f"  {cell.network} cannot be fetched ({error}): it is trained")
            return None
        return self._fetched(cell.network)

    def measured(self, cell: Cell, path: Path, data: Any, place: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Read and measure a teacher that was not trained here; a fetched one must be as good as published.

        Raises:
            UserError: a bad file, a fetched teacher below its published accuracy.
        """
        with seeded("benchmark"):
            net = get_model(cell.network, data.num_classes)
        load_weights(net, path, cell.network)
        predicted, labels, trainer = predict(net, data, place, settings)
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
        """As ``teachers verify`` does it, the record in the manifest included."""
        from ickd_pl.teachers.fetch import sha256_of
        from ickd_pl.teachers.manifest import TOLERANCE, manifest_of, record, teacher_of
        from ickd_pl.teachers.train import hold_to

        manifest = manifest_of(self.checkpoints)
        otherwise = (
            f"{path} is not that teacher, or was trained with another normalisation; fetch another file, set "
            "teachers.get to train, or name this one under teachers.weights to take it as it is"
        )
        measured = f"{network}: {acc1:.2f} percent on the test images of {DATA}"
        expected = teacher_of(manifest, network).published_acc1
        self.say(f"  {hold_to(measured, acc1, expected, TOLERANCE, 'published', otherwise)}")
        try:
            record(manifest, network, sha256_of(path), acc1)
        except UserError as error:  # a folder that everyone reads and nobody writes
            self.say(f"  {error}")

    def _place(self, network: str) -> Path:
        return self.folder / "cells" / Cell("teacher", network, self.settings.seed).path

    def _fetched(self, network: str) -> Path:
        return self.checkpoints / f"{network}_vanilla" / "ckpt_epoch_240.pth"
