"""Turns encoded images into pixels 0..255: decoding, crops, resizing and stateless augmentation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

__all__ = ["Preprocessing", "random_part"]

MARGIN = 32  # pixels that EfficientNet's padded crop leaves around an image of 224 pixels or more
SMALLEST_WITH_MARGIN = 224  # below this size, the crop keeps 224 / (224 + 32) = 7/8 of the image
SHORTEST_EDGE = 256 / 224  # the ratio of the resized shortest edge to the size of the crop
# RobustBench's preprocessings (robustbench/data.py), made of torchvision's transforms: the size of the output, the size
# to which the shorter side is resized (None: no resizing; 0: both sides become the output's), and Pillow's kernel.
ROBUSTBENCH = {
    "Res256Crop224": (224, 256, "bilinear"),
    "BicubicRes256Crop224": (224, 256, "bicubic"),
    "Crop288": (288, None, ""),
    "Res224": (224, 0, "bilinear"),
}
INTERPOLATIONS = {
    "stretch": "bilinear, antialiased",
    "padded": "bicubic (TensorFlow 1)",
    "shortest_edge": "bicubic",
    **{name: f"{kernel}, antialiased (Pillow)" if kernel else "none" for name, (_, _, kernel) in ROBUSTBENCH.items()},
}
CROPS = tuple(INTERPOLATIONS)
# The bytes that precede EXIF data in a JPEG, PNG or WebP file, and the TIFF header with which the data begin.
EXIF = r"\A\C*?(?:Exif\x00\x00|eXIf|EXIF\C{4})(?:Exif\x00\x00)?(II\*\x00|MM\x00\*)"
EXIF_BYTES = 2**18  # EXIF data are searched for in this many first bytes of a JPEG file
BMP_MASKS = b"\0\0\xff\0\0\xff\0\0\xff\0\0\0"  # of red, green and blue: the only order that TensorFlow decodes
DIRECTORY_BYTES = 2**12  # the orientation is searched for in this many first bytes of the EXIF data


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Converts an encoded image to pixels. Evaluation, calibration, `predict` and exports use the same conversion.

        pixels = Preprocessing(224, 224, 3, crop="padded")(tf.io.read_file("cat.jpg"))  # uint8 [224, 224, 3]

    An image file is JPEG, PNG, GIF (the first image is read), BMP or WebP. The image is rotated and mirrored as its
    EXIF orientation says. Pixels of 16 bits are reduced to 8 bits. Transparency is dropped, as Pillow's
    `convert("RGB")` does; transparent pixels of a GIF become black. With one channel, colours become their luma,
    0.299 R + 0.587 G + 0.114 B.

    Args:
        height: height of the returned pixels, an integer >= 1.
        width: width of the returned pixels, an integer >= 1.
        channels: 1 (grey) or 3 (RGB).
        crop: which part of the image is used.
            "stretch" (default): the whole image, resized (bilinear, antialiased). An image that already has this size
            is unchanged.
            "padded": EfficientNet's centre crop. It is the largest centred part with the aspect ratio of the output,
            reduced by the factor size / (size + 32), where size is the shorter side of the output, or by 7/8 if size <
            224. It is resized with TensorFlow 1's bicubic kernel.
            "shortest_edge": the image is resized (bicubic) to the smallest size that covers 256/224 of the output's
            height and width. Then its centre is cut out.
            "Res256Crop224", "BicubicRes256Crop224", "Crop288" and "Res224": RobustBench's preprocessings. Photographs
            differ by at most 1 grey level from those of torchvision with Pillow. The number at the end is the size of
            the output. "Res256": the shorter side becomes 256 pixels. "Crop": the centre, with a black border around an
            image that is smaller. "Res224": the whole image, resized. As in RobustBench, the EXIF orientation is
            ignored.

    Raises:
        ValueError: for an invalid size, number of channels or crop.
    """

    height: int
    width: int
    channels: int
    crop: str = "stretch"

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ValueError(f"{name} must be an integer >= 1, in pixels. Received: {getattr(self, name)!r}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB). Received: {self.channels!r}")
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}. Received: {self.crop!r}")
        size = size_of(self.crop)
        if size is not None and (self.height, self.width) != (size, size):
            raise ValueError(f"crop {self.crop} gives {size} x {size} pixels. Received: {self.height} x {self.width}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the returned pixels: (height, width, channels)."""
        return self.height, self.width, self.channels

    def settings(self) -> dict[str, Any]:
        """Returns the arguments, and the interpolation, as a dict for a JSON file. `Preprocessing.of` reads it."""
        return dataclasses.asdict(self) | {"interpolation": INTERPOLATIONS[self.crop]}

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "Preprocessing":
        """Returns the `Preprocessing` that has these settings.

        Args:
            settings: a dict as `Preprocessing.settings` returns it; other keys are ignored.

        Raises:
            ValueError: if a value is missing or invalid.
        """
        try:
            return cls(**{field.name: settings[field.name] for field in dataclasses.fields(cls)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"A description of image preprocessing lacks a value: {error}") from error

    @tf.autograph.experimental.do_not_convert
    def __call__(self, image: tf.Tensor) -> tf.Tensor:
        """Returns uint8 pixels [height, width, channels].

        Args:
            image: the bytes of an image file, as a string tensor; or uint8 pixels [h, w, 1 or 3].

        Raises:
            tf.errors.InvalidArgumentError: if the bytes are not an image of these formats, or are damaged.
        """
        if self.crop in ROBUSTBENCH:
            return self._robustbench(_in_channels(_as_pillow(image), self.channels))
        if self.crop == "padded":
            part = pixels(image, self.channels, self._window)
            return self._finished(tf.raw_ops.ResizeBicubic(images=part[None], size=self.shape[:2])[0])
        whole = pixels(image, self.channels)
        if self.crop == "stretch":
            return self._finished(tf.image.resize(whole, self.shape[:2], antialias=True))
        edges = self._edges(tf.shape(whole))
        (top, left), size = tf.unstack((edges - self.shape[:2]) // 2), self.shape[:2]
        return self._finished(tf.image.resize(whole, edges, "bicubic")[top : top + size[0], left : left + size[1]])

    def _robustbench(self, image):
        """Returns RobustBench's preprocessing of uint8 pixels [h, w, channels]."""
        size, shorter, kernel = ROBUSTBENCH[self.crop]
        if shorter is None:
            return tf.ensure_shape(_centre(image, size), self.shape)
        sides = tf.shape(image)[:2]
        # torchvision's integers: the longer side is cut off, not rounded.
        target = shorter * sides // tf.reduce_min(sides) if shorter else tf.constant([size, size])
        for sizes in ((sides[0], target[1]), target):  # Pillow resizes the width first, and rounds in between
            resized = tf.image.resize(image, sizes, kernel, antialias=True)
            image = tf.saturate_cast(tf.floor(resized + 0.5001), tf.uint8)  # halves go up, also after rounding errors
        return tf.ensure_shape(_centre(image, size), self.shape)

    def _finished(self, image):
        return to_uint8(tf.ensure_shape(image, self.shape))

    def _window(self, shape):
        """Returns the padded crop of an image of this shape: int32 [top, left, height, width]."""
        size = max(min(self.height, self.width), SMALLEST_WITH_MARGIN)
        share = size / (size + MARGIN)
        sides = tf.cast(shape[:2], tf.float32)
        scale = tf.reduce_min(sides / self.shape[:2]) * share
        extent = tf.maximum(1, tf.cast(scale * tf.constant(self.shape[:2], tf.float32), tf.int32))
        return tf.concat([(shape[:2] - extent + 1) // 2, extent], 0)

    def _edges(self, shape):
        """Returns the size to resize to before the "shortest_edge" crop: int32 [height, width]."""
        sides = tf.cast(shape[:2], tf.float32)
        scale = SHORTEST_EDGE / tf.reduce_min(sides / self.shape[:2])
        return tf.maximum(self.shape[:2], tf.cast(tf.round(sides * scale), tf.int32))


def size_of(crop: str | None) -> int | None:
    """Returns the height and width of the pixels that a crop gives, or None if it gives any size."""
    return ROBUSTBENCH[crop][0] if crop in ROBUSTBENCH else None


@tf.autograph.experimental.do_not_convert
def random_part(image: tf.Tensor, shape: tuple[int, int, int], seed: tf.Tensor) -> tf.Tensor:
    """Returns a random part of an image, resized (bilinear) to uint8 pixels of `shape`.

    The part is drawn as for Inception (arXiv:1409.4842): 8 % .. 100 % of the area, with an aspect ratio of 3/4 .. 4/3.
    For a JPEG file, only this part is decoded.

    Args:
        image: the bytes of an image file, as a string tensor; or uint8 pixels [h, w, 1 or 3].
        shape: (height, width, channels) of the returned pixels.
        seed: int32 tensor [2]. The same seed gives the same part.
    """

    def part(shape):
        whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape, whole, seed, 0.0, (3 / 4, 4 / 3), (0.08, 1.0), 10
        )
        return tf.concat([begin[:2], extent[:2]], axis=0)

    # Bilinear values stay in 0..255, so rounding is enough: one pass over the pixels, where to_uint8 takes four.
    return tf.cast(tf.image.resize(pixels(image, shape[-1], part), shape[:2]) + 0.5, tf.uint8)


def random_shift(image: tf.Tensor, most: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns an image shifted at random by up to `most` pixels in each direction. The uncovered border is black.

    Args:
        image: pixels [height, width, channels], of static shape.
        most: the largest shift, in pixels.
        seed: int32 tensor [2].
    """
    padded = tf.pad(image, [[most, most], [most, most], [0, 0]])
    return tf.image.stateless_random_crop(padded, image.shape, seed)


@tf.autograph.experimental.do_not_convert
def apply_to_each(
    function: Callable[..., tf.Tensor],
    elements: tuple[tf.Tensor, ...],
    shape: tuple[int, int, int],
    parallel: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies a function to each of n elements. Returns the results, and the indices of the elements where it failed.

    If a decoder fails in a graph, the whole graph fails, and the error does not name the image. But a dataset can skip
    the elements that fail (`ignore_errors`). Their indices are then missing from the results.

    Args:
        function: called as function(*element), returns uint8 pixels of `shape`.
        elements: a tuple of tensors [n, ...], one for each argument of the function.
        shape: (height, width, channels) of the pixels that the function returns.
        parallel: number of parallel calls, such as tf.data.AUTOTUNE. Default: one call at a time.

    Returns:
        The results of the calls that succeeded, uint8 [number, height, width, channels], and the indices of the
        elements that failed, int32 [n - number].
    """
    number = tf.shape(elements[0])[0]
    results = tf.data.Dataset.from_tensor_slices((tf.range(number), *elements))
    results = results.map(tf.autograph.experimental.do_not_convert(lambda n, *given: (n, function(*given))), parallel)
    # A first element that never fails: a batch without any element would have no shape.
    filler = tf.data.Dataset.from_tensors((-1, tf.zeros(shape, tf.uint8)))
    whole = filler.concatenate(results.ignore_errors()).batch(tf.cast(number, tf.int64) + 1)
    indices, images = whole.get_single_element()
    failed = tf.sets.difference(tf.range(number)[None], indices[None, 1:]).values
    return tf.ensure_shape(images[1:], (None, *shape)), failed


def fold(seed: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
    """Returns a new seed, int32 [2], that depends on `seed`, int32 [2], and on a number."""
    return tf.random.experimental.stateless_fold_in(seed, number)


def to_uint8(image: tf.Tensor) -> tf.Tensor:
    """Returns pixels as uint8: rounded, and clipped to 0..255, which a bicubic interpolation can leave."""
    return tf.saturate_cast(tf.round(image), tf.uint8)


def stateless(layer: keras.layers.Layer, seed: tf.Tensor, inputs: Any) -> Any:
    """Returns the output of a random Keras preprocessing layer, with random numbers that depend on `seed` alone.

    The layer's own random state is neither read nor changed. So a data pipeline that uses it is reproducible, and can
    begin at any step.

    Args:
        layer: a Keras preprocessing layer, such as RandAugment.
        seed: int32 tensor [2].
        inputs: the input of the layer.
    """
    seeds = [(variable, tf.bitcast(fold(seed, number), tf.uint32)) for number, variable in enumerate(layer.variables)]
    with keras.StatelessScope(state_mapping=seeds):
        return layer(inputs, training=True)


@tf.autograph.experimental.do_not_convert
def pixels(image: tf.Tensor, channels: int, part: Callable[[tf.Tensor], tf.Tensor] | None = None) -> tf.Tensor:
    """Returns the uint8 pixels [h, w, channels] of an image, or of a part of it.

    Args:
        image: the bytes of an image file, as a string tensor; or uint8 pixels [h, w, 1 or 3].
        channels: 1 (grey) or 3 (RGB).
        part: a function from the image's shape, int32 [height, width, channels], to the part to return, int32 [top,
            left, height, width]. Default: the whole image.
    """
    if image.dtype != tf.string:
        return _in_channels(_cut(image, part), channels)
    turn = orientation(image)

    def whole():
        return _cut(_turned(_decoded(image), turn), part)

    def part_of_jpeg():
        return tf.io.decode_and_crop_jpeg(image, part(tf.io.extract_jpeg_shape(image)), 3)

    # The operations in a branch of tf.cond cost time even if the branch is not taken: keep branches few and small.
    is_fast = tf.io.is_jpeg(image) & tf.equal(turn, 1)
    rgb = whole() if part is None else tf.cond(is_fast, part_of_jpeg, whole)
    return _in_channels(tf.ensure_shape(rgb, (None, None, 3)), channels)


def _decoded(encoded):
    """Returns the uint8 RGB pixels of an image file."""

    def any_other():
        return tf.io.decode_image(encoded, 3, expand_animations=False)

    rgb = tf.cond(tf.equal(tf.strings.substr(encoded, 0, 2), b"BM"), lambda: _bmp(encoded), any_other)
    return tf.ensure_shape(rgb, (None, None, 3))


def _as_pillow(image):
    """Returns the uint8 pixels of an image file as Pillow decodes them, without regard to its EXIF orientation."""
    if image.dtype != tf.string:
        return image

    def jpeg():  # TensorFlow's default transform is faster, and differs from Pillow's by some grey levels
        return tf.io.decode_jpeg(image, 3, dct_method="INTEGER_ACCURATE")

    rgb = tf.cond(tf.io.is_jpeg(image), jpeg, lambda: _decoded(image))
    return tf.ensure_shape(rgb, (None, None, 3))


def _centre(image, size):
    """Returns torchvision's CenterCrop: the centre [size, size, channels], padded with 0 where the image is smaller."""
    lacking = tf.maximum(size - tf.shape(image)[:2], 0)
    before = lacking // 2
    image = tf.pad(image, tf.concat([tf.stack([before, lacking - before], 1), [[0, 0]]], 0))
    # Python's round, to even numbers, as in torchvision.
    top, left = tf.unstack(tf.cast(tf.round(tf.cast(tf.shape(image)[:2] - size, tf.float32) / 2), tf.int32))
    return image[top : top + size, left : left + size]


def _cut(image, part):
    return image if part is None else tf.image.crop_to_bounding_box(image, *tf.unstack(part(tf.shape(image))))


def _in_channels(image, channels):
    if image.shape[-1] == channels:
        return image
    if channels == 3:
        return tf.image.grayscale_to_rgb(image)
    luma = tf.reduce_sum(tf.cast(image, tf.float32) * [0.299, 0.587, 0.114], -1, keepdims=True)
    return to_uint8(luma)


def _bmp(encoded):
    """Returns the RGB pixels of a BMP file. TensorFlow's decoder ignores the palette of files with 8 bits a pixel."""
    header = _bytes(tf.strings.substr(encoded, 0, 54))
    begin, bits, compression = 14 + _number(header[14:18], 4), _number(header[28:30], 2), _number(header[30:34], 4)
    is_usual = tf.equal(tf.strings.substr(encoded, 54, 12), BMP_MASKS)
    is_known = tf.equal(compression, 0) | (tf.equal(compression, 3) & is_usual)
    known = tf.debugging.Assert(is_known, ["a BMP file that is compressed, or of another order, cannot be read"])
    with tf.control_dependencies([known]):
        image = tf.io.decode_bmp(encoded)
    palette = tf.reshape(_bytes(tf.strings.substr(encoded, begin, 4 * 256)), (-1, 4))[:, 2::-1]

    def by_palette():
        return tf.cast(tf.gather(palette, tf.cast(image[..., 0], tf.int32)), tf.uint8)

    return tf.cond(tf.equal(bits, 8), by_palette, lambda: image[..., :3])


def orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of a JPEG, PNG or WebP file, int32 in 1..8, or 1 (upright) if it has none.

    EXIF 2.32 defines the numbers (tag 0x0112, in the first directory of a TIFF header).

    Args:
        encoded: the bytes of an image file, as a string tensor.
    """
    data = _exif_data(encoded)
    is_little = tf.equal(data[0], ord("I"))

    def number(at, size):
        values = tf.gather(data, tf.clip_by_value(at[..., None] + tf.range(size), 0, tf.size(data) - 1))
        return _number(tf.where(is_little, values, values[..., ::-1]), size)

    first = tf.clip_by_value(number(tf.constant(4), 4), 0, tf.size(data) - 2)
    entries = first + 2 + 12 * tf.range(tf.minimum(number(first, 2), (tf.size(data) - first) // 12))
    values = tf.boolean_mask(number(entries + 8, 2), tf.equal(number(entries, 2), 0x0112))
    value = tf.concat([values, [1]], 0)[0]
    return tf.where((value >= 1) & (value <= 8), value, 1)


def _exif_data(encoded):
    """Returns the first bytes of a file's EXIF data, int32, or zeros if there are none."""
    length, start = tf.strings.length(encoded), tf.strings.substr(encoded, 0, 6)
    is_jpeg = tf.equal(tf.strings.substr(start, 0, 2), b"\xff\xd8")
    after_jfif = tf.strings.substr(encoded, tf.minimum(20, length), 2)
    # A JPEG file whose tables directly follow its JFIF header has no EXIF data: nothing is searched.
    is_plain = tf.equal(start, b"\xff\xd8\xff\xe0\x00\x10") & tf.equal(after_jfif, b"\xff\xdb")
    text = tf.strings.substr(encoded, 0, tf.where(is_plain, 0, tf.where(is_jpeg, EXIF_BYTES, length)))
    after = tf.strings.regex_replace(text, EXIF, r"\1", replace_global=False)
    has_exif = tf.strings.length(after) < tf.strings.length(text)
    data = _bytes(tf.strings.substr(after, 0, tf.where(has_exif, DIRECTORY_BYTES, 0)))
    return tf.pad(data, [[0, 16]])  # data that are cut short are read as zeros


def _bytes(text):
    return tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32)


def _number(values, size):
    """Returns the integers [...] that bytes [..., size] represent, least significant byte first."""
    return tf.reduce_sum(values * [256**place for place in range(size)], -1)


def _turned(image, turn):
    """Returns an image upright, given its EXIF orientation."""

    def turned(number):
        sides = _transposed(image) if number >= 5 else image
        axes = [axis for axis, numbers in ((0, (3, 4, 7, 8)), (1, (2, 3, 6, 7))) if number in numbers]
        return tf.reverse(sides, axes) if axes else sides

    return tf.switch_case(turn - 1, [lambda number=number: turned(number) for number in range(1, 9)])


def _transposed(image):
    """Returns an RGB image with height and width swapped. (With tf.transpose of bytes, oneDNN warns on stderr.)"""
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    places = tf.range(width)[:, None] + width * tf.range(height)
    return tf.gather(tf.reshape(image, (-1, 3)), places)
