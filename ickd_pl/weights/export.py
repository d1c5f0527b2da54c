"""Export of a student: weights with their configuration, or a program that runs without this project."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ickd_pl.errors import UserError, near
from ickd_pl.files import replacing
from ickd_pl.models.build import network_name
from ickd_pl.models.hooked import HookedNet
from ickd_pl.seeding import generator
from ickd_pl.weights.formats import FORMATS, Format, Result
from ickd_pl.weights.student import StudentConfig, described

TOLERANCE = 1e-5
"""Maximum difference of an exported file's logits from the module's, times the largest one where that exceeds 1: the
rounding of float32 sums in another order grows with them."""


@dataclass(frozen=True)
class Exported:
    """An exported file.

    Attributes:
        path: where it is.
        size: in bytes.
        verified: it was read back and has the network's weights or logits; False if the library that runs it is not
            installed.
    """

    path: Path
    size: int
    verified: bool


def export_student(
    net: nn.Module,
    path: str | Path,
    format: str,
    *,
    image_size: int = 32,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    class_names: list[str] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export any classifier to a file; on the command line, ``python cli.py export`` exports named networks.

    Args:
        net: from normalised images (B, 3, H, W) to logits (B, K). It is not changed.
        path: of the file.
        format: ``safetensors``, ``onnx``, ``repdistiller`` or ``torch_export``.
        image_size: H and W.
        mean: per channel, of pixels scaled to 0..1: what the images were normalised with; stored in the file.
        std: likewise.
        class_names: one for each class, in the order of the logits; stored in the file.
        overwrite: replace an existing file.

    Raises:
        UserError: an unknown format, an existing file, a folder that cannot be written, a missing library, or a
            network that the format does not support. No file is left then.
    """
    check_target(Path(path), format, overwrite)
    name, head = described(net)
    bare = _bare(net)
    try:
        with torch.no_grad():
            shape = tuple(bare(torch.zeros(2, 3, image_size, image_size)).shape)
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"{network_name(net)} does not take images of 3x{image_size}x{image_size}: {error}") from error
    if len(shape) != 2 or shape[0] != 2:
        raise UserError(f"{network_name(net)} gives {shape} for two images: expected logits, (2, number of classes)")
    config = StudentConfig(name, shape[1], image_size, mean, std, class_names, head)
    return write_student(net, Path(path), format, config, overwrite=overwrite)


def write_student(
    net: nn.Module,
    path: Path,
    format: str,
    config: StudentConfig,
    result: Result | None = None,
    overwrite: bool = False,
) -> Exported:
    """As :func:`export_student`, with a given configuration."""
    how = check_target(path, format, overwrite)
    bare = _bare(net)
    bad = [key for key, value in bare.state_dict().items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(f"the network holds NaN or infinite weights ({bad[0]}): its training failed")
    try:
        with _quietly():
            content = how.write(bare, config, result or Result())
    except UserError:
        raise
    except Exception as error:  # the exporters raise many types for networks they do not support
        text = str(error).strip().partition("\n")[0][:200]
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *how.libraries))
        raise UserError(
            f"{network_name(net)} cannot be exported as {format} ({versions}): {type(error).__name__}: {text}"
        ) from error
    # Before anything is written, so that a failure leaves nothing on the disk, not even a new folder.
    verified = _verify(how.read(content, bare), bare, config, path)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        if temporary.read_bytes() != content:
            raise UserError(f"{path} was not written: read back, its bytes differ")
    return Exported(path, len(content), verified)


def check_target(path: Path, format: str, overwrite: bool) -> Format:
    """The format of that name, if it can be written to that path.

    Raises:
        UserError: an unknown format, a wrong suffix, an existing file, or a missing library.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format}: {near(format, FORMATS)}")
    how = FORMATS[format]
    if path.suffix != how.suffix:
        raise UserError(f"{path}: a file of the format {format} ends in {how.suffix}")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the path of a file")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: give another --output, or --overwrite to replace it")
    missing = [name for name in how.libraries if find_spec(name) is None]
    if missing:
        raise UserError(f"format {format} needs {' and '.join(missing)}: run pip install '.[export]' in the clone")
    return how


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporters' warnings about operators that are not used here and about future versions."""
    level = logging.root.manager.disable  # private: logging Manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _bare(net: nn.Module) -> nn.Module:
    """A copy for export: the classifier alone, on the CPU, in float32 and eval mode."""
    net = net.net if isinstance(net, HookedNet) else net
    return copy.deepcopy(net).cpu().float().eval().requires_grad_(False)


def _verify(run: Callable[[Tensor], Tensor] | None, net: nn.Module, config: StudentConfig, path: Path) -> bool:
    """Compare the file, read back, with the network, at batch sizes 1 and 7.

    Raises:
        UserError: the logits differ.
    """
    if run is None:
        return False
    images = torch.randn(8, 3, config.image_size, config.image_size, generator=generator("export"))
    with torch.no_grad():
        for batch in (images[:1], images[1:]):
            expected, got = net(batch), run(batch)
            if got.shape != expected.shape:
                raise UserError(f"{path} was not written: read back, it gives {tuple(got.shape)} logits")
            difference = float((got - expected).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
                raise UserError(f"{path} was not written: read back, its logits are off by {difference:.1e}")
    return True
