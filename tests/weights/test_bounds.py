"""Hostile files are refused at once, in one line, before torch reads them."""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ickd_pl import UserError, get_model, load_teacher
from ickd_pl.weights import read_file

NUMBER = b"X\x01\x00\x00\x00a"
DEEP = 500_000


def members(content: Any) -> dict[str, bytes]:
    file = io.BytesIO()
    torch.save(content, file)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: str, parts: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


def refused(path: str) -> str:
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        read_file(path)
    assert time.process_time() - started < 5
    text = str(caught.value)
    assert path in text and text.isprintable()
    return text


def test_a_bomb_is_not_unpacked() -> None:
    write("b.ckpt", {**members({"a": torch.zeros(1)}), "archive/data/9": bytes(2**27)}, zipfile.ZIP_DEFLATED)
    assert Path("b.ckpt").stat().st_size < 2**19
    assert "bytes unpack to 134" in refused("b.ckpt")


def test_a_size_that_is_a_lie() -> None:
    torch.save({"a": torch.zeros(1)}, "b.pth")
    content = bytearray(Path("b.pth").read_bytes())
    at = content.rindex(b"PK\x01\x02") + 20
    content[at : at + 8] = struct.pack("<II", 2**31, 2**31)
    Path("b.pth").write_bytes(content)
    assert "unpack to" in refused("b.pth")


def test_a_file_that_another_tool_compressed_is_read() -> None:
    net = get_model("resnet8", 10)
    write("w.pth", members({"model": net.state_dict()}), zipfile.ZIP_DEFLATED)
    assert torch.equal(load_teacher("resnet8", "w.pth", 10).state_dict()["fc.weight"], net.state_dict()["fc.weight"])


# Pickles that torch would read: a key whose hash ends the process, lists without end, and values of any size.
PICKLES = {
    "deep key": b"\x80\x02})" + b"\x85" * DEEP + b"K\x01s.",
    "deep tuple": b"\x80\x02}" + NUMBER + b")" + b"\x85" * DEEP + b"s.",
    "deep list": b"\x80\x02}" + NUMBER + b"]" * 2000 + b"a" * 1999 + b"s.",
    "many bytes": b"\x80\x02}" + NUMBER + b"cbuiltins\nbytearray\nJ" + struct.pack("<i", 2**31 - 1) + b"\x85Rs.",
    "counting": b"\x80\x02}" + NUMBER + b"ccollections\nCounter\nctorch\nTensor\nJ\xff\xff\xff\x0f\x85R\x85Rs.",
    "long": b"\x80\x02}" + NUMBER + b"](" + b"N" * 2_100_000 + b"es.",
}


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickles(kind: str, zipped: bool) -> None:
    body = PICKLES[kind]
    if zipped:
        write("b.pth", {name: body if name.endswith("data.pkl") else part for name, part in members({}).items()})
    else:
        start = io.BytesIO()
        torch.save({}, start, _use_new_zipfile_serialization=False)
        empty = pickle.dumps({}, 2)
        Path("b.pth").write_bytes(start.getvalue().replace(empty, body, 1))
    assert "is refused" in refused("b.pth")


def test_lists_of_lists_of_the_same_list() -> None:
    inner: list[Any] = [1]
    for _ in range(60):
        inner = [inner, inner]
    torch.save({"a": inner}, "b.pth")
    assert "is refused" in refused("b.pth")


def test_a_size_in_the_old_format_that_is_a_lie() -> None:
    file = io.BytesIO()
    torch.save({"a": torch.zeros(7777)}, file, _use_new_zipfile_serialization=False)
    small, large = b"M" + struct.pack("<H", 7777), b"J" + struct.pack("<i", 2**31 - 1)
    assert small in file.getvalue()
    Path("b.pth").write_bytes(file.getvalue().replace(small, large))
    assert "damaged" in refused("b.pth")


def test_headers_of_safetensors() -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}).encode()
    for length, content in ((2**62, header), (len(header), header + bytes(4)), (2**20, b"[" * 2**20)):
        Path("b.safetensors").write_bytes(struct.pack("<Q", length) + content)
        assert "damaged" in refused("b.safetensors")


def test_dictionaries_of_python_2_and_of_schedules_are_read() -> None:
    """Old files call OrderedDict on a list of pairs; a schedule of Lightning's stores a Counter."""
    state = b"ccollections\nOrderedDict\n](]" + NUMBER + b"aK\x01ae\x85R"
    counter = b"ccollections\nCounter\n}K\x05K\x01s\x85R"
    body = b"\x80\x02}(" + NUMBER + state + b"X\x01\x00\x00\x00b" + counter + b"u."
    write("w.pth", {name: body if name.endswith("data.pkl") else part for name, part in members({}).items()})
    assert read_file("w.pth") == {"a": {"a": 1}, "b": {5: 1}}
