"""Image files as a person sees them, whatever their depth, orientation and transparency; and files that lie."""

from __future__ import annotations

import io
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from ickd_pl.data import ImageFolder, cache, decode
from ickd_pl.data.decode import decode_file, decoded, decoding, quiet_about_size
from ickd_pl.errors import UserError

GREY16 = np.array([[0, 255, 256], [32768, 65535, 1000], [65407, 65408, 128]])
GREY8 = np.rint(GREY16 * 255 / 65535).astype(np.uint8)


def png(pixels: np.ndarray, bits: int, kind: int, chunks: bytes = b"", shape: tuple[int, int] | None = None) -> bytes:
    """A PNG of a depth and a kind that Pillow does not write; its header may say another shape."""
    height, width = shape or pixels.shape[:2]
    big = pixels.astype(">u2" if bits == 16 else np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in big)
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    body = [chunk(b"IHDR", header), chunks, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff(pixels: np.ndarray, sample_format: int, zero: int = 1, samples: int = 1, bits: int = 0) -> bytes:
    """A TIFF of one strip; ``zero`` is 0 where 0 means white, and 2 for RGB."""
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    height, width = pixels.shape[:2]
    bits = bits or 8 * pixels.dtype.itemsize
    data = pixels.tobytes()
    tags = {256: [width], 257: [height], 258: [bits] * samples, 259: [1], 262: [zero], 273: [0], 277: [samples]}
    tags |= {278: [height], 279: [len(data)], 284: [1], 339: [sample_format] * samples}
    end = 8 + 2 + 12 * len(tags) + 4
    tags[273] = [end + 12]
    extra, entries = b"", b""
    for tag, values in sorted(tags.items()):
        packed = b"".join(struct.pack(f"{order}H", value) for value in values)
        if len(packed) > 4:
            extra, packed = extra + packed, struct.pack(f"{order}I", end + len(extra))
        entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return start + entries + struct.pack(f"{order}I", 0) + extra.ljust(12, b"\0") + data


def see(tmp_path: Path, content: bytes, size: int = 3) -> np.ndarray:
    """(H, W, 3)."""
    (tmp_path / "image.png").write_bytes(content)
    with quiet_about_size():
        return decoding(tmp_path, ["image.png"], size)[:][0].numpy().transpose(1, 2, 0)


def grey(values: Any) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=-1)


DEEP = {
    "png": png(GREY16, 16, 0),
    "pgm": b"P5 3 3 65535\n" + GREY16.astype(">u2").tobytes(),
    "pgm as text": b"P2 3 3 65535\n" + " ".join(map(str, GREY16.ravel())).encode(),
    "tiff": tiff(GREY16.astype("<u2"), 1),
    "tiff, big-endian": tiff(GREY16.astype(">u2"), 1),
    "tiff, 32 bits": tiff((GREY16 * 65537).astype("<u4"), 1),
    "tiff, signed": tiff((GREY16 - 32768).astype("<i2"), 2),
    "tiff, 32 bits, signed": tiff((GREY16 * 65537 - 2**31).astype("<i4"), 2),
    "tiff, float": tiff((GREY16 / 65535).astype("<f4"), 3),
    "tiff, 0 is white": tiff((65535 - GREY16).astype("<u2"), 1, zero=0),
    "tiff, float, 0 is white": tiff((1 - GREY16 / 65535).astype("<f4"), 3, zero=0),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_grey_is_scaled_by_the_range_of_its_type(tmp_path: Path, kind: str) -> None:
    assert np.array_equal(see(tmp_path, DEEP[kind]), grey(GREY8))


def test_twelve_bits(tmp_path: Path) -> None:
    packed = np.array([[0x00, 0x0F, 0xFF], [0x80, 0x0F, 0xFF]], np.uint8)  # 0, 4095; 2048, 4095
    content = tiff(packed, 1, bits=12).replace(
        struct.pack("<HHIHH", 256, 3, 1, 3, 0), struct.pack("<HHIHH", 256, 3, 1, 2, 0)
    )
    assert see(tmp_path, content, 2).tolist() == grey([[0, 255], [128, 255]]).tolist()


@pytest.mark.parametrize("kind", ["png", "ppm", "tiff", "tiff, big-endian"])
def test_deep_colours_lose_less_than_one_level(tmp_path: Path, kind: str) -> None:
    colours = np.stack([GREY16, GREY16.T, 65535 - GREY16], axis=-1)
    content = {
        "png": png(colours, 16, 2),
        "ppm": b"P6 3 3 65535\n" + colours.astype(">u2").tobytes(),
        "tiff": tiff(colours.astype("<u2"), 1, zero=2, samples=3),
        "tiff, big-endian": tiff(colours.astype(">u2"), 1, zero=2, samples=3),
    }[kind]
    assert abs(see(tmp_path, content) - colours * 255 / 65535).max() < 1


@pytest.mark.parametrize(
    ("value", "said"),
    [(300.0, "from 0 to 300"), (-0.5, "from -0.5 to 0"), (np.nan, "from nan to nan"), (np.inf, "from 0 to inf")],
)
def test_floats_that_are_no_brightness_are_refused(tmp_path: Path, value: float, said: str) -> None:
    pixels = np.zeros((3, 3), "<f4")
    pixels[1, 1] = value
    with pytest.raises(
        UserError, match=rf"image\.png cannot be read as an image \(floating-point values {said}"
    ) as caught:
        see(tmp_path, tiff(pixels, 3))
    assert "expected 0 to 1" in str(caught.value)


def test_an_image_made_in_python() -> None:
    whole = np.array([[-(2**31), 0], [2**31 - 1, 2**30]], np.int32)
    assert decoded(Image.fromarray(whole), 2)[0].tolist() == [[0, 128], [255, 191]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation(tmp_path: Path, kind: str) -> None:
    """Corners by number; the tag says which turn shows the image as it was taken."""
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("no WebP here")
    taken = np.kron([[0, 80], [160, 240]], np.ones((16, 16))).astype(np.uint8)
    stored = {1: taken, 2: taken[:, ::-1], 3: taken[::-1, ::-1], 4: taken[::-1], 5: taken.T}
    stored |= {6: np.rot90(taken), 7: taken[::-1, ::-1].T, 8: np.rot90(taken, -1), 9: taken}
    for tag, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        out = io.BytesIO()
        options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
        Image.fromarray(grey(pixels)).save(out, kind, exif=exif, **options)
        assert abs(see(tmp_path, out.getvalue(), 32).astype(int) - grey(taken)).max() <= 3, tag


def test_damaged_orientation_is_none(tmp_path: Path) -> None:
    content = png(GREY8, 8, 0, chunk(b"eXIf", b"MM\0*\0\0\xff\xffrubbish"))
    assert np.array_equal(see(tmp_path, content), grey(GREY8))


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    alpha = np.array([[0, 255, 51], [0, 255, 255], [255, 255, 0]])
    on_white = np.rint((GREY8.astype(float) * alpha + 255.0 * (255 - alpha)) / 255)
    colours = np.dstack([grey(GREY8), alpha])
    marked = np.where(GREY16 == 1000, 65535, GREY16)
    palette = chunk(b"PLTE", bytes(range(9))) + chunk(b"tRNS", b"\0\xff\xff")
    for content, expected in (
        (png(colours, 8, 6), grey(on_white)),
        (png(np.dstack([GREY8, alpha]), 8, 4), grey(on_white)),
        (png(colours * 257, 16, 6), grey(on_white)),
        (png(GREY16, 16, 0, chunk(b"tRNS", struct.pack(">H", 1000))), grey(np.rint(marked / 257))),
        (png(np.arange(9).reshape(3, 3) % 3, 8, 3, palette), np.array([[[255] * 3, [3, 4, 5], [6, 7, 8]]] * 3)),
        (png(GREY8, 8, 0, chunk(b"tRNS", struct.pack(">H", 255))), grey(GREY8)),
    ):
        assert abs(see(tmp_path, content).astype(int) - expected).max() <= 1


def test_other_kinds_of_images(tmp_path: Path) -> None:
    assert (
        see(tmp_path, png(np.array([[0b10100000]] * 3), 1, 0, shape=(3, 3))).tolist()
        == grey([[255, 0, 255]] * 3).tolist()
    )
    out = io.BytesIO()
    Image.new("CMYK", (3, 3), (0, 255, 255, 0)).save(out, "TIFF")
    assert see(tmp_path, out.getvalue()).tolist() == [[[255, 0, 0]] * 3] * 3


def test_a_cache_of_the_old_rules_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "0.png").write_bytes(DEEP["png"])
    monkeypatch.setattr(cache, "_FORMAT", 2)
    monkeypatch.setattr(decode, "decode_file", lambda path, size: decode_file(path, size) * 0 + 255)
    assert ImageFolder(str(tmp_path), image_size=3)._part("train").image.min() == 255
    monkeypatch.undo()
    assert np.array_equal(ImageFolder(str(tmp_path), image_size=3)._part("train").image[0, 0], GREY8)


# -- files that lie ----------------------------------------------------------------------------------------------------

LIES = {
    "60000x60000 in 100 bytes": png(GREY8, 8, 0, shape=(60000, 60000)),
    "13000x13000": png(GREY8, 8, 0, shape=(13000, 13000)),
    "8000x8000 in 100 bytes": png(GREY8, 8, 0, shape=(8000, 8000)),
    "nothing": b"",
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 3 3\n(hacked) (w) file closefile\nshowpage\n",
    "no pixels": png(GREY8, 8, 0, shape=(0, 0)),
    "a bad kind": png(GREY8, 8, 5),
    "half a TIFF": DEEP["tiff"][:60],
    "a TIFF of 60000x60000": DEEP["tiff"]
    .replace(struct.pack("<HHIH", 256, 3, 1, 3), struct.pack("<HHIH", 256, 3, 1, 60000))
    .replace(struct.pack("<HHIH", 257, 3, 1, 3), struct.pack("<HHIH", 257, 3, 1, 60000)),
    "text with a name": b"\x89PNG\r\n\x1a\n\x1b[31m",
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.filterwarnings("error")
def test_a_file_that_lies_is_refused_in_a_line(tmp_path: Path, lie: str) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match=r"image\.png cannot be read as an image") as caught:
        see(tmp_path, LIES[lie])
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()
    assert time.process_time() - began < 2


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(DEEP["png"])
    now, most = [0], [0]
    lock = threading.Lock()

    def watched(image: Any, size: int) -> Any:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return decoded(image, size)

    monkeypatch.setattr(decode, "decoded", watched)
    monkeypatch.setattr(decode, "_CHUNK", 1)
    names = sorted(path.name for path in tmp_path.iterdir())
    decoding(tmp_path, names, 3)[:]
    assert most[0] > 1
    most[0] = 0
    monkeypatch.setattr(decode, "_LARGE", 8)
    decoding(tmp_path, names, 3)[:]
    assert most[0] == 1
