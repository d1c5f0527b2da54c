"""What ``correlations`` compares, read from files: a teacher, a student before and after, and test images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ickd_pl.correlations.images import data_of, test_images, training_images
from ickd_pl.correlations.measures import Subject, recalibrate_batch_norm
from ickd_pl.errors import UserError
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.build import make_network, probe
from ickd_pl.runs.data_options import data_name
from ickd_pl.runs.stored_settings import data_arguments, known_data
from ickd_pl.seeding import seeded
from ickd_pl.strategies.components.regressors import ConvBN
from ickd_pl.training.teacher import NONE
from ickd_pl.weights import StudentConfig, load_student, load_teacher, read_config, weights_file
from ickd_pl.weights.checkpoint import RunCheckpoint, read_checkpoint


@dataclass(frozen=True)
class Request:
    """The user's options.

    Attributes:
        checkpoint: of a run.
        before: the checkpoint of a student of the same network; None: the run's initial weights.
        teacher: a network's name; None: the checkpoint's.
        teacher_weights: None: the checkpoint's.
        images: maximum number of test images.
        data: options of the data, such as ``--data Digits``; the checkpoint's are the defaults.
    """

    checkpoint: Path
    before: Path | None = None
    teacher: str | None = None
    teacher_weights: Path | None = None
    images: int = 1000
    data: Sequence[str] = ()


@dataclass(frozen=True)
class Inputs:
    """What is compared.

    Attributes:
        teacher: trained.
        before: the student before distillation.
        after: the student after it.
        images: normalised test images in batches.
        title: line with teacher, student, number of images and data.
        names: of the teacher and the two students, for panels.
        note: what a reader must know about this comparison; may be empty.
        source: where the data are read, if the checkpoint decides that; may be empty.
    """

    teacher: FeatureNet
    before: Subject
    after: Subject
    images: list[Tensor]
    title: str
    names: tuple[str, str, str]
    note: str
    source: str


@dataclass(frozen=True)
class Checkpoint:
    """A run's checkpoint.

    Attributes:
        run: its content.
        config: its network and classes.
    """

    run: RunCheckpoint
    config: StudentConfig

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def seed(self) -> int:
        """Of its run."""
        return int(self.run.settings["seed"])

    @property
    def methods(self) -> list[str]:
        """Class names of its methods, such as ``ICKD``."""
        return self.run.methods

    @property
    def taught_by(self) -> str:
        """Its methods, for a title."""
        return " + ".join(self.methods) or "Vanilla"

    def adapter(self, channels: int) -> ConvBN | None:
        """ICKD's trained adapter, in eval mode; None without ICKD, or with another number of output channels.

        Raises:
            UserError: it is missing or damaged.
        """
        if "ICKD" not in self.methods:
            return None
        try:
            state = self.run.tensors("adapters.ickd.")
            adapter = ConvBN(*reversed(state["conv.weight"].shape[:2]))
            adapter.load_state_dict(state)
        except (LookupError, RuntimeError, TypeError, AttributeError):
            raise UserError(f"{self.path}: the adapter of its ICKD is missing or damaged: get the file again") from None
        return adapter.eval() if adapter.conv.out_channels == channels else None

    def start(self, adapter: ConvBN | None) -> Subject:
        """The student, and the adapter if there is one, with the initial weights that the run's seed gives."""
        net = make_network(str(self.config.network), self.config.num_classes, None, self.seed, "student").eval()
        if adapter is None:
            return Subject(net)
        with seeded(self.seed, "adapter", "ickd", self.methods.index("ICKD")):  # as DistillationModule does
            return Subject(net, ConvBN(adapter.conv.in_channels, adapter.conv.out_channels).eval())


def read_run(path: Path) -> Checkpoint:
    """Read a checkpoint of ``fit``.

    Raises:
        UserError: the file is missing, damaged or of another kind, or its network is the user's own.
    """
    config = read_config(path)
    run = read_checkpoint(path)
    if config.head is not None:
        raise UserError(f"{path} predicts by a projector, not by the student's own maps, which are compared here")
    if config.network is None or type(run.settings.get("seed")) is not int:
        raise UserError(
            f"{path} was trained in Python with a network of its own: load it there, with load_from_checkpoint"
        )
    return Checkpoint(run, config)


def read_inputs(request: Request) -> Inputs:
    """Read the files first, then the data, so that errors come before anything slow.

    Raises:
        UserError: a file that is missing, damaged or of another network, no teacher, wrong options of the data.
    """
    parsed = data_arguments(request.data)
    known = known_data(parsed.name)  # before any file is opened
    checkpoint = read_run(request.checkpoint)
    net = load_student(request.checkpoint)
    name, teacher, weights = _teacher(request, checkpoint)
    other = None if request.before is None else _other(request.before, checkpoint)
    data, source = data_of(request.data, parsed, known, checkpoint.run, checkpoint.config.num_classes)
    network, size = str(checkpoint.config.network), int(getattr(data, "image_size", checkpoint.config.image_size))
    teacher_channels, channels = (probe(n, m, size, False).final[0] for n, m in ((teacher, name), (net, network)))
    adapter = checkpoint.adapter(teacher_channels)
    before, note = _before(checkpoint, other, adapter, data)
    if adapter is None and channels == teacher_channels:
        note = "No ICKD adapter: the student's own channels are compared, whose order is unrelated to the teacher's."
    images = list(test_images(data, request.images))
    title = f"{name} teaches {network}: {sum(map(len, images))} test images of {data_name(data)}"
    start = f"before: its start, seed {checkpoint.seed}" if other is None else f"before: {other.taught_by}"
    if request.teacher_weights is None:
        source = "; ".join(filter(None, [source, f"teacher weights of the checkpoint: {weights}"]))
    names = (f"teacher {name}", f"student {start}", f"student after: {checkpoint.taught_by}")
    return Inputs(teacher, before, Subject(net, adapter), images, title, names, note, source)


def _teacher(request: Request, checkpoint: Checkpoint) -> tuple[str, FeatureNet, Path]:
    """The teacher's name, the teacher and its file: from the options, else from the checkpoint."""
    own = checkpoint.run.settings.get("teacher")
    name = request.teacher or own
    if not isinstance(name, str):
        raise UserError(
            f"{checkpoint.path} names no teacher (methods: {', '.join(checkpoint.methods) or 'none'}): "
            "give --teacher NAME and --teacher_weights FILE"
        )
    path = request.teacher_weights
    stored = checkpoint.run.settings.get("teacher_weights")
    if path is None and name == own and stored not in (None, NONE):
        path = Path(str(stored))
        if not weights_file(path).is_file():
            raise UserError(
                f"{checkpoint.path} learnt from the teacher {name} in {path}, which no longer exists: "
                "give --teacher_weights FILE"
            )
    if path is None:
        raise UserError(f"{checkpoint.path} does not say where the weights of {name} are: give --teacher_weights FILE")
    return name, load_teacher(name, path, checkpoint.config.num_classes), path


def _other(path: Path, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of ``--before``, which must have the same network and classes."""
    other = read_run(path)
    before, after = ((c.config.network, c.config.num_classes) for c in (other, checkpoint))
    if before != after:
        raise UserError(
            f"{path} is a {before[0]} of {before[1]} classes, {checkpoint.path} a {after[0]} of {after[1]}: "
            "give --before a student of the same network and classes"
        )
    return other


def _before(checkpoint: Checkpoint, other: Checkpoint | None, adapter: ConvBN | None, data: Any) -> tuple[Subject, str]:
    """The student before distillation, and a note about it.

    Untrained batch norms have statistics of 0 and 1, which no trained network has; they are re-estimated from training
    images.
    """
    note = ""
    if other is None:
        before = checkpoint.start(adapter)
        fresh: list[nn.Module] = [m for m in (before.net, before.adapter) if m is not None]
    else:
        own = None if adapter is None else other.adapter(adapter.conv.out_channels)
        # The adapter was trained with another student; only its statistics can be adapted to this one.
        borrowed = copy.deepcopy(adapter) if own is None else None
        before = Subject(load_student(other.path), own or borrowed)
        fresh = [borrowed] if borrowed is not None else []
        if borrowed is not None:
            note = "Before: this student never trained with the adapter, which adds to the distance of its channels."
    if fresh:
        recalibrate_batch_norm(fresh, training_images(data), before)
    return before, note
