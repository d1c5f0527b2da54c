"""Image files as a person sees them: 8-bit RGB, whatever the file's depth, orientation or transparency.

Depth: 16-bit and 32-bit integers are scaled linearly from the range of their type to 0..255 (65535 becomes 255; of a
signed type the lowest value is black), 16-bit RGB loses its low byte in Pillow; floating-point values must be from 0
to 1. Orientation tags are honoured. What is transparent shows white. Palette, grey, 1-bit and CMYK images become RGB.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ickd_pl.data.images import LazyImages
from ickd_pl.errors import UserError, printable
from ickd_pl.plain import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

MOST_PIXELS = 2**26
"""Pixels of an image, 8192x8192: a photograph has fewer, and this many take about 0.8 GB while they are decoded."""
# Decoded one at a time, so that memory does not grow with the number of threads.
_LARGE = 2**22
_one_large = threading.Lock()
# Pillow reads many more, of which some start other programs; the name's ending does not matter to it.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_THREADS = min(8, max(4, os.cpu_count() or 1))
_CHUNK = 256
_ROWS = 256  # of a deep image, scaled at a time


def decoding(folder: Path, names: Sequence[str], size: int) -> LazyImages:
    """Image files, decoded with a few threads whenever they are read.

    Returns:
        (len(names), 3, size, size) uint8. Reading raises :class:`UserError` for a file that cannot be read as an image,
        by its name.
    """
    return LazyImages(partial(_decode_into, folder, names, size), (len(names), 3, size, size))


def _decode_into(folder: Path, names: Sequence[str], size: int, rows: list[int], into: Tensor) -> None:
    target = into.numpy()
    each = max(1, min(_CHUNK, len(rows) // (8 * _THREADS)))

    def fill(begin: int) -> None:
        for place in range(begin, min(begin + each, len(rows))):
            target[place] = decode_file(f"{folder}/{names[rows[place]]}", size)

    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for _ in pool.map(fill, range(0, len(rows), each)):
                pass
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def quiet_about_size() -> Iterator[None]:
    """Without Pillow's warning about large images, which are refused by a lower limit; for one thread at a time."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def decode_file(path: str, size: int) -> NDArray[np.uint8]:
    """An image file as (3, size, size) uint8 RGB.

    Raises:
        UserError: it is not a file, not an image, too large, or holds numbers that are not brightnesses; by its name.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with open_regular(path) as file, Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width}x{height} pixels, at most {MOST_PIXELS:,} are read: shrink it")
            # Pillow would show black. A pixel has at least one bit, and deflate shrinks to no less than 1/1032.
            if image.format == "PNG" and width * height > 8 * 1032 * (length := os.fstat(file.fileno()).st_size):
                raise ValueError(f"{width}x{height} pixels in {length} bytes")
            with _one_large if width * height > _LARGE else nullcontext():
                return decoded(image, size)
    except Exception as error:  # decoders raise many types
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        reason = printable(reason or type(error).__name__)
        raise UserError(f"{printable(path)} cannot be read as an image ({reason}). Replace or remove it.") from error


def decoded(image: PILImage, size: int) -> NDArray[np.uint8]:
    """A PIL image as (3, size, size) uint8 RGB, resized bilinearly with antialias where its size differs.

    Raises:
        ValueError: floating-point values that are not from 0 to 1.
    """
    from PIL import Image

    image.load()
    seen, turn = _visible(image), _turn(image)
    if turn is not None:
        seen = seen.transpose(turn)
    if seen.size != (size, size):
        seen = seen.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(seen, dtype=np.uint8).transpose(2, 0, 1)


def _turn(image: PILImage) -> Any:
    """What its orientation tag asks for; None: nothing."""
    from PIL.Image import Transpose as To

    flips = (To.FLIP_LEFT_RIGHT, To.ROTATE_180, To.FLIP_TOP_BOTTOM)
    turns: dict[Any, Any] = dict(enumerate([*flips, To.TRANSPOSE, To.ROTATE_270, To.TRANSVERSE, To.ROTATE_90], start=2))
    with suppress(Exception):  # damaged tags: a viewer shows the image as it is
        return turns.get(image.getexif().get(0x0112))
    return None


def _visible(image: PILImage) -> PILImage:
    """The image as 8-bit RGB, on white where it is transparent."""
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_scaled(image)).convert("RGB")
    through = image.info.get("transparency")
    if through is None and image.mode not in ("RGBA", "LA", "PA", "RGBa", "La"):
        return image.convert("RGB")
    if isinstance(through, tuple) and max(through) > 255:  # of a 16-bit file, of which Pillow keeps the high bytes
        image.info["transparency"] = tuple(value >> 8 for value in through)
    page, image = Image.new("RGB", image.size, "white"), image.convert("RGBA")
    page.paste(image, mask=image)
    return page


def _scaled(image: PILImage) -> NDArray[np.uint8]:
    """A deep grey image (H, W) as uint8."""
    values = np.asarray(image)
    black, white = 0.0, 1.0
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # not with NaN either
            raise ValueError(f"floating-point values from {low:g} to {high:g}, expected 0 to 1")
    else:
        black, white = _range(image)
        if white >= 2**31:
            values = values.view(np.uint32)  # Pillow reads them as signed
    if getattr(image, "tag_v2", {}).get(262) == 0:  # a TIFF in which 0 is white
        black, white = white, black
    grey = np.empty(values.shape, dtype=np.uint8)
    for row in range(0, len(values), _ROWS):
        part = (values[row : row + _ROWS].astype(np.float64) - black) * (255 / (white - black))
        grey[row : row + _ROWS] = np.rint(part).clip(0, 255)
    through = image.info.get("transparency")
    if isinstance(through, int):
        grey[values == through] = 255
    return grey


def _range(image: PILImage) -> tuple[float, float]:
    """The least and the greatest number that the file's type of integers can hold."""
    tags = getattr(image, "tag_v2", {})
    if image.mode != "I" or image.format in ("PNG", "PPM"):  # Pillow reads 16 bits of some formats into 32
        bits, signed = 16, False
    else:
        bits, signed = 32, not tags
    if tags:
        bits = int(np.ravel(tags.get(258, bits))[0])
        signed = 2 in np.ravel(tags.get(339, 1))
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
