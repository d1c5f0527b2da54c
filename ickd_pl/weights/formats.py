"""The file formats that a student is exported to: how each is written and read back."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ickd_pl.weights.stated import KEY
from ickd_pl.weights.student import StudentConfig

OPSET = 18
"""ONNX opset of the written files: the one that torch's exporter writes without a conversion."""


@dataclass(frozen=True)
class Result:
    """What RepDistiller's format stores beside the weights.

    Attributes:
        epoch: number of epochs trained; None if unknown.
        accuracy: of these weights at the end of their training, in percent; None if unknown.
    """

    epoch: int | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Format:
    """One way to write a student.

    Attributes:
        suffix: of its files.
        write: from network, configuration and result to the file's bytes.
        read: from the file's bytes and the network to a function from images to logits; None if a library for it is
            not installed.
        libraries: that ``write`` needs beyond the project's dependencies.
        usage: one line of Python that reads the file; one that predicts by a head is read by ``load_student`` instead.
    """

    suffix: str
    write: Callable[[nn.Module, StudentConfig, Result], bytes]
    read: Callable[[bytes, nn.Module], Callable[[Tensor], Tensor] | None]
    usage: str
    libraries: tuple[str, ...] = ()


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
        del part.metadata_props[:]  # debug notes of the exporter
    del model.graph.value_info[:]  # intermediate shapes, which readers infer; they have the symbol's first name
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
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
