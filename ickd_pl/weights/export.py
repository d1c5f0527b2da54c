"""A student as a file of its own: weights with their configuration, or a program that needs nothing of this project."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ickd_pl.errors import UserError, near
from ickd_pl.features import HookedNet
from ickd_pl.models import FeatureNet, model_names
from ickd_pl.networks import network_name
from ickd_pl.runtime.atomic import replacing
from ickd_pl.seeding import generator
from ickd_pl.weights.student import KEY, StudentConfig

OPSET = 18
"""ONNX opset of the written files: the one that torch's exporter writes by itself, without a conversion."""
TOLERANCE = 1e-5
"""How far an exported file's logits may be from the module's; relative where the logits exceed 1."""


@dataclass(frozen=True)
class Result:
    """What RepDistiller's format says beside the weights.

    Attributes:
        epoch: epochs trained; None where it is not known.
        accuracy: percent of these weights at the end of their training; None where it is not known.
    """

    epoch: int | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        path: where it is.
        size: in bytes.
        verified: it was read back and gave the network's weights or logits; False where the library that runs it is
            not installed.
    """

    path: Path
    size: int
    verified: bool


@dataclass(frozen=True)
class Format:
    """One way to write a student.

    Attributes:
        suffix: that its files end in.
        write: network, configuration and result to the file's bytes.
        read: the file's bytes and the network back to a function from images to logits; None where a library for it
            is not installed.
        libraries: that ``write`` needs beyond the project's own.
        usage: one line of Python that reads the file.
    """

    suffix: str
    write: Callable[[nn.Module, StudentConfig, Result], bytes]
    read: Callable[[bytes, nn.Module], Callable[[Tensor], Tensor] | None]
    usage: str
    libraries: tuple[str, ...] = ()


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
    """Write any classifier to a file; for a student of a named network, ``python cli.py export`` does it.

    Args:
        net: from normalised images (B, 3, H, W) to logits (B, K). It is left as it is.
        path: of the file.
        format: ``safetensors``, ``onnx``, ``repdistiller`` or ``torch_export``.
        image_size: H and W.
        mean: per channel, of pixels scaled to 0..1: what the images were normalised with; stored in the file.
        std: likewise.
        class_names: one for each class, in the order of the logits; stored in the file.
        overwrite: replace the file where there is one.

    Raises:
        UserError: an unknown format, a file in the way, a folder that cannot be written, a missing library, or a
            network that the format cannot hold. Nothing is left behind then.
    """
    check_target(Path(path), format, overwrite)
    name = net.name if isinstance(net, FeatureNet) and net.name in model_names() else None
    bare = _bare(net)
    try:
        with torch.no_grad():
            shape = tuple(bare(torch.zeros(2, 3, image_size, image_size)).shape)
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"{network_name(net)} does not take images of 3x{image_size}x{image_size}: {error}") from error
    if len(shape) != 2 or shape[0] != 2:
        raise UserError(f"{network_name(net)} gives {shape} for two images: expected logits, (2, number of classes)")
    config = StudentConfig(name, shape[1], image_size, mean, std, class_names)
    return write_student(net, Path(path), format, config, overwrite=overwrite)


def write_student(
    net: nn.Module,
    path: Path,
    format: str,
    config: StudentConfig,
    result: Result | None = None,
    overwrite: bool = False,
) -> Exported:
    """As :func:`export_student`, with a configuration that is known already."""
    how = check_target(path, format, overwrite)
    bare = _bare(net)
    bad = [key for key, value in bare.state_dict().items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(f"the network holds NaN or infinite weights ({bad[0]}): its training failed")
    try:
        content = how.write(bare, config, result or Result())
    except UserError:
        raise
    except Exception as error:  # the exporters raise what they like for networks that they cannot take
        text = str(error).strip().partition("\n")[0][:200]
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *how.libraries))
        raise UserError(
            f"{network_name(net)} cannot be exported as {format} ({versions}): {type(error).__name__}: {text}"
        ) from error
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        verified = _verify(how.read(temporary.read_bytes(), bare), bare, config, path)
    return Exported(path, len(content), verified)


def check_target(path: Path, format: str, overwrite: bool) -> Format:
    """The format of that name, when it could be written to that path.

    Raises:
        UserError: an unknown format, another suffix, a file in the way, or a missing library.
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
        raise UserError(f"format {format} needs {' and '.join(missing)}: run pip install 'ickd-pl[export]'")
    return how


def _bare(net: nn.Module) -> nn.Module:
    """A copy for writing: the classifier alone, on the CPU, in float32 and eval mode."""
    net = net.net if isinstance(net, HookedNet) else net
    return copy.deepcopy(net).cpu().float().eval().requires_grad_(False)


def _verify(run: Callable[[Tensor], Tensor] | None, net: nn.Module, config: StudentConfig, path: Path) -> bool:
    """Compare what was read back with the network, at batch sizes 1 and 7.

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


# -- weights -----------------------------------------------------------------------------------------------------------


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    # Clones: no two entries may share memory in a safetensors file.
    return {key: value.detach().clone().contiguous() for key, value in net.state_dict().items()}


def _with_weights(net: nn.Module, weights: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    other = copy.deepcopy(net)
    for value in other.state_dict().values():
        value.zero_()
    other.load_state_dict(weights)
    return other


def _write_safetensors(net: nn.Module, config: StudentConfig, result: Result) -> bytes:
    from safetensors.torch import save

    # "format" is what other readers of such files look for.
    return save(_tensors(net), {"format": "pt", KEY: config.as_json()})


def _read_safetensors(content: bytes, net: nn.Module) -> Callable[[Tensor], Tensor]:
    from safetensors.torch import load

    return _with_weights(net, load(content))


def _write_repdistiller(net: nn.Module, config: StudentConfig, result: Result) -> bytes:
    file = io.BytesIO()
    weights = {"epoch": result.epoch, "model": _tensors(net), "best_acc": result.accuracy, KEY: config.as_dict()}
    torch.save(weights, file)
    return file.getvalue()


def _read_repdistiller(content: bytes, net: nn.Module) -> Callable[[Tensor], Tensor]:
    return _with_weights(net, torch.load(io.BytesIO(content), weights_only=True)["model"])


# -- programs ----------------------------------------------------------------------------------------------------------


def _program(net: nn.Module, config: StudentConfig) -> torch.export.ExportedProgram:
    """The network as a graph for any batch size."""
    # Four images: a batch of 1 would become a constant of the graph.
    images = torch.zeros(4, 3, config.image_size, config.image_size)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (images,), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # file names of this machine, of no use elsewhere
    return program


def _write_torch_export(net: nn.Module, config: StudentConfig, result: Result) -> bytes:
    file = io.BytesIO()
    torch.export.save(_program(net, config), file, extra_files={f"{KEY}.json": config.as_json()})
    return file.getvalue()


def _read_torch_export(content: bytes, net: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(content)).module()


def _write_onnx(net: nn.Module, config: StudentConfig, result: Result) -> bytes:
    import onnx

    program: Any = torch.onnx.export(
        _program(net, config), dynamo=True, verbose=False, opset_version=OPSET,
        input_names=["image"], output_names=["logits"],
    )  # fmt: skip
    model = program.model_proto
    for part in (*model.graph.node, model.graph):
        del part.metadata_props[:]  # notes for those who debug the exporter
    onnx.helper.set_model_props(model, {KEY: config.as_json()})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _read_onnx(content: bytes, net: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0])


FORMATS = {
    "safetensors": Format(
        ".safetensors", _write_safetensors, _read_safetensors, 'ickd_pl.load_student("{path}")'
    ),
    "onnx": Format(
        ".onnx", _write_onnx, _read_onnx,
        'onnxruntime.InferenceSession("{path}").run(None, {{"image": images}})', ("onnx", "onnxscript"),
    ),
    "repdistiller": Format(
        ".pth", _write_repdistiller, _read_repdistiller,
        'ickd_pl.load_teacher("{network}", "{path}", num_classes={num_classes})',
    ),
    "torch_export": Format(
        ".pt2", _write_torch_export, _read_torch_export, 'torch.export.load("{path}").module()(images)'
    ),
}  # fmt: skip
