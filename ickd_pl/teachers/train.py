"""Training and measuring teachers: ``teachers train`` and ``teachers verify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ickd_pl.errors import UserError
from ickd_pl.files import replacing
from ickd_pl.models import get_model
from ickd_pl.models.build import probe
from ickd_pl.training.evaluation import accuracy
from ickd_pl.training.teacher_images import TeacherImages, check_normalization
from ickd_pl.weights.checkpoint import read_checkpoint
from ickd_pl.weights.read import load_weights, read_state_dict
from ickd_pl.weights.stated import KEY
from ickd_pl.weights.student import read_config


def train(name: str, seed: int, output: Path | None, overwrite: bool, checkpoints: Path, args: Sequence[str]) -> Path:
    """Train a network by the benchmark's recipe with cross entropy alone, and write it in the published format.

    The run itself is a ``fit`` in its usual folder: a stopped one is resumed, a finished one is only written again.

    Args:
        name: the network.
        seed: of the run.
        output: the file; None is ``<checkpoints>/<name>_vanilla/ckpt_epoch_<epochs>.pth``, below a folder with the
            data set's name for data other than CIFAR-100.
        overwrite: replace an existing file.
        checkpoints: folder of the teachers.
        args: further arguments of ``fit``.

    Returns:
        The file's path.

    Raises:
        UserError: an unknown network or option, or an existing file.
    """
    from ickd_pl.runs.configs import config_root, find_configs
    from ickd_pl.runs.data_options import data_name
    from ickd_pl.runs.fit import IckdCLI

    get_model(name, 10)  # an unknown name fails here
    shipped = config_root() / "teachers" / f"{name}.yaml"
    recipe = ["--config", str(shipped)] if shipped.is_file() else ["--model.student", name]
    fit_args = ["fit", "--config", "configs/base.yaml", *recipe, "--seed_everything", str(seed), *args]

    class TeacherCLI(IckdCLI):
        """A ``fit`` that checks the path of its teacher before it starts."""

        target: Path

        def before_fit(self) -> None:
            data = data_name(self.datamodule)
            folder = checkpoints if data == "cifar100" else checkpoints / data
            file = folder / f"{name}_vanilla" / f"ckpt_epoch_{self.trainer.max_epochs}.pth"
            self.target = output or file
            if self.target.exists() and not overwrite:
                raise UserError(f"{self.target} exists: give another --output, or --overwrite to replace it")
            if self.model.student_name != name or self.model.strategies:
                raise UserError("teachers train trains the named network with cross entropy alone: use fit for others")
            if self.trainer.is_global_zero:  # report an unwritable folder now, not after 240 epochs
                probe = self.target.with_suffix(".probe")
                with replacing(probe) as temporary:
                    temporary.touch()
                probe.unlink()

        def after_fit(self) -> None:
            if self.trainer.is_global_zero and not self.folder.finished.is_file():
                raise UserError(f"not finished, nothing written: the same command resumes it ({self.folder.path})")
            if self.trainer.is_global_zero:
                write_teacher(self.folder.last, self.target)
                print(f"wrote {self.target}: --model.teacher {name} --model.teacher_weights {self.target}", flush=True)

    return TeacherCLI(find_configs(fit_args)).target


def write_teacher(checkpoint: Path, target: Path) -> None:
    """Write a run's last weights in RepDistiller's format: ``epoch``, ``model`` and ``best_acc``; and ``config``.

    Here ``best_acc`` is the accuracy of the weights in the file, those of the last epoch.
    """
    run = read_checkpoint(checkpoint)
    accuracy = torch.tensor(float("nan") if run.acc1 is None else run.acc1)
    content = {"epoch": int(run.rows[-1]["epoch"]), "model": read_state_dict(checkpoint), "best_acc": accuracy}
    content[KEY] = read_config(checkpoint).as_dict()  # with the mean and std of its images
    with replacing(target) as temporary:
        torch.save(content, temporary)


def hold_to(measured: str, acc1: float, expected: float, tolerance: float, source: str, otherwise: str) -> str:
    """Check a teacher's measured accuracy against the expected one.

    Args:
        measured: a sentence with the measured accuracy.
        acc1: as measured, percent.
        expected: percent.
        tolerance: percentage points that it may be below.
        source: where the expected accuracy is from: ``published`` or ``expected``.
        otherwise: message for a lower accuracy: what it means and what to do.

    Returns:
        A line that reports success.

    Raises:
        UserError: the accuracy is too low.
    """
    compared = f"{measured}, {source} are {expected:.2f} ({acc1 - expected:+.2f})"
    if not acc1 >= expected - tolerance:  # NaN fails too
        raise UserError(f"{compared}: {otherwise}")
    return f"{compared}: good"


def measure(name: str, path: Path, args: Sequence[str], normalization: Any = "auto") -> tuple[str, float]:
    """Accuracy of a weights file on a data set's test images.

    Args:
        name: the network.
        path: its weights.
        args: options of the data, such as ``--data CIFAR100 --data.root data``.
        normalization: as ``teacher_normalization`` of :class:`ickd_pl.DistillationModule`.

    Returns:
        The data set's name, and top-1 accuracy in percent.

    Raises:
        UserError: an invalid file, unknown options, no data.
    """
    from ickd_pl.runs.data_options import data_from_args, data_name

    check_normalization(normalization, "--normalization")
    images = TeacherImages(str(path), "--normalization")
    read_state_dict(path)  # an invalid file fails before the data are read
    data = data_from_args(args)
    net = get_model(name, data.num_classes)
    load_weights(net, path, name)
    probe(net, name, getattr(data, "image_size", 32), preact=False)
    data.prepare_data()
    data.setup("test")
    images.prepare(normalization, data)
    trainer = pl.Trainer(devices=1, logger=False, enable_checkpointing=False)
    acc1 = accuracy(net.eval(), data.test_dataloader(), trainer, images)
    return data_name(data), acc1
