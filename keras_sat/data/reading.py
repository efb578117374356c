"""Image files: the formats that can be read, the size in the header, and whether a file can be decoded."""

import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from keras_sat import preprocessing
from keras_sat.typing import Path

KINDS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp")
READABLE = "JPEG, PNG, GIF, BMP and WebP"
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "F")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class Reading:
    """The result of decoding an image.

    Attributes:
        path: path of the image file.
        shape: (height, width, channels), or None if the image cannot be decoded.
        digest: a digest of the pixels, or None if the image cannot be decoded.
        fault: why the image cannot be decoded, or None if it can.
    """

    path: str
    shape: tuple[int, int, int] | None = None
    digest: str | None = None
    fault: str | None = None


def is_hidden(name: str) -> bool:
    """Returns whether a name belongs to a hidden or system file or folder, such as ".x" or "Thumbs.db"."""
    return name.startswith((".", "__MACOSX")) or name in ("Thumbs.db", "desktop.ini")


def header(path: Path) -> tuple[tuple[int, int], bool] | None:
    """Returns ((height, width), is_grey) from the header of an image file, or None if it cannot be read."""
    from PIL import Image, UnidentifiedImageError  # needed only for folders of images

    try:
        with Image.open(path) as image:
            width, height = image.size
            if _orientation(image) in _TURNED:
                width, height = height, width
            return (height, width), image.mode in _GREY or (image.mode == "P" and _is_grey(image.getpalette()))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _orientation(image):
    """Returns the EXIF orientation of an image. (Pillow's getexif would read XMP data too, which decoding ignores.)"""
    from PIL import Image

    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return exif.get(_ORIENTATION)


def _is_grey(palette):
    return palette[::3] == palette[1::3] == palette[2::3]


def read(path: str) -> Reading:
    """Returns the `Reading` of an image file, which is decoded in the same way as in training."""
    try:
        size = os.path.getsize(path)
    except OSError as error:
        return Reading(path, fault="a dangling link" if os.path.islink(path) else _reason(error))
    if size == 0:
        return Reading(path, fault="empty")
    try:
        with open(path, "rb") as file:
            encoded = file.read()
    except OSError as error:
        return Reading(path, fault=_reason(error))
    try:
        pixels = _decode(encoded).numpy()
    except tf.errors.OpError:
        return Reading(path, fault=_fault(path, encoded))
    return Reading(path, pixels.shape, digest(pixels))


def _reason(error):
    return error.strerror.lower()


def digest(pixels: np.ndarray) -> str:
    """Returns a digest of the pixels, as hexadecimal digits."""
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()


def _fault(path, encoded):
    """Returns the reason why TensorFlow cannot decode a file."""
    from PIL import Image

    kind = None
    if encoded.lstrip()[:1] == b"<":
        return "a web page, or another text"
    try:
        with Image.open(path) as image:
            kind = f"an animated {image.format}" if getattr(image, "is_animated", False) else image.format
            image.load()
    except Exception:  # Pillow's decoders raise exceptions of many types
        return "cut short or damaged" if kind else "not an image"
    return f"{kind}, of a kind that TensorFlow does not read"


@tf.function(autograph=False, input_signature=[tf.TensorSpec((), tf.string)])
def _decode(encoded):
    return preprocessing.pixels(encoded, 3)


def read_all(paths: list[str]) -> Iterator[Reading]:
    """Yields the `Reading` of each path, in order. Several threads read the files."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), 1024):  # in blocks, so that Ctrl-C ends it soon
            yield from pool.map(read, paths[start : start + 1024])
