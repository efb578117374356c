"""Files of images: which kinds can be read, what their headers say, and whether they can be read to their ends."""

import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from keras_sat import preprocessing

KINDS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp")
READABLE = "JPEG, PNG, GIF, BMP and WebP"
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "F")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was found in a file: its shape and a digest of its pixels; or what is wrong with it."""

    path: str
    shape: tuple[int, int, int] | None = None
    digest: str | None = None
    fault: str | None = None


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is one that systems make, not a user's."""
    return name.startswith((".", "__MACOSX")) or name in ("Thumbs.db", "desktop.ini")


def header(path: str) -> tuple[tuple[int, int], bool] | None:
    """Returns (height, width) and whether an image is grey, from the header of a file; None if it cannot be read."""
    from PIL import Image, UnidentifiedImageError  # not needed where no folder is read

    try:
        with Image.open(path) as image:
            width, height = image.size
            if _orientation(image) in _TURNED:
                width, height = height, width
            return (height, width), image.mode in _GREY or (image.mode == "P" and _is_grey(image.getpalette()))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _orientation(image):
    """Returns the EXIF orientation of an opened image; Pillow's own getexif reads XMP data too, which we do not."""
    from PIL import Image

    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return exif.get(_ORIENTATION)


def _is_grey(palette):
    return palette[::3] == palette[1::3] == palette[2::3]


def read(path: str) -> Reading:
    """Returns the `Reading` of a file, decoded as training decodes it."""
    try:
        size = os.path.getsize(path)
    except OSError as error:
        return Reading(path, fault="a dangling link" if os.path.islink(path) else error.strerror.lower())
    if size == 0:
        return Reading(path, fault="empty")
    try:
        with open(path, "rb") as file:
            encoded = file.read()
    except OSError as error:
        return Reading(path, fault=error.strerror.lower())
    try:
        pixels = _decode(encoded).numpy()
    except tf.errors.OpError:
        return Reading(path, fault=_fault(path, encoded))
    return Reading(path, pixels.shape, digest(pixels))


def digest(pixels: np.ndarray) -> str:
    """Returns a text that tells these pixels from others."""
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()


def _fault(path, encoded):
    """Returns why a file cannot be decoded."""
    from PIL import Image

    kind = None
    if encoded.lstrip()[:1] == b"<":
        return "a web page, or another text"
    try:
        with Image.open(path) as image:
            kind = f"an animated {image.format}" if getattr(image, "is_animated", False) else image.format
            image.load()
    except Exception:  # Pillow's readers raise many kinds
        return "cut short or damaged" if kind else "not an image"
    return f"{kind}, of a kind that TensorFlow does not read"


@tf.function(autograph=False, input_signature=[tf.TensorSpec((), tf.string)])
def _decode(encoded):
    return preprocessing.pixels(encoded, 3)


def read_all(paths: list[str]) -> Iterator[Reading]:
    """Yields the `Reading` of each path, in order; several are read at a time."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), 1024):  # so that an interruption is heeded soon
            yield from pool.map(read, paths[start : start + 1024])
