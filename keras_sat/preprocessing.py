"""Encoded images -> pixels 0..255: decoding, crops, resizing, and Keras' augmentations without a state of their own."""

import dataclasses

import keras
import tensorflow as tf

MARGIN = 32  # pixels around the padded crop of an image of 224 pixels or more: EfficientNet's
SMALLEST_WITH_MARGIN = 224  # below, the crop keeps the same share of the image as at 224: 7/8
SHORTEST_EDGE = 256 / 224
INTERPOLATIONS = {"stretch": "bilinear, antialiased", "padded": "bicubic (TensorFlow 1)", "shortest_edge": "bicubic"}
CROPS = tuple(INTERPOLATIONS)
# What stands before a TIFF header in a JPEG, a PNG and a WebP.
EXIF = r"\A\C*?(?:Exif\x00\x00|eXIf|EXIF\C{4})(?:Exif\x00\x00)?(II\*\x00|MM\x00\*)"
EXIF_BYTES = 2**18  # of a JPEG, among which EXIF data begin
BMP_MASKS = b"\0\0\xff\0\0\xff\0\0\xff\0\0\0"  # red, green and blue, in the order that TensorFlow's decoder takes
DIRECTORY_BYTES = 2**12  # of EXIF data, among which the orientation is


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes pixels: what evaluation, calibration, `predict` and an export's `serving_bytes` share.

        pixels = Preprocessing(224, 224, 3, crop="padded")(tf.io.read_file("cat.jpg"))  # uint8 [224, 224, 3]

    A file is JPEG, PNG, GIF (its first image), BMP or WebP. It is turned as its EXIF orientation says. 16 bits become
    8. Transparency is left out, as in Pillow's `convert("RGB")`; transparent pixels of a GIF are black. For one
    channel, colours become their luma, 0.299 R + 0.587 G + 0.114 B.

    Args:
        height, width: of the pixels to return.
        channels: 1 (grey) or 3 (RGB).
        crop: "stretch": the whole image, resized (bilinear, antialiased); an image of this size stays as it is.
            "padded": EfficientNet's centre crop, size / (size + 32) of the largest centred part of this shape (7/8 of
            it where the shorter side is below 224 pixels), resized as TensorFlow 1 does (bicubic).
            "shortest_edge": resized (bicubic) to 256/224 of the size, then the centre of it.

    Raises:
        ValueError: for a size, channels or a crop out of their range.
    """

    height: int
    width: int
    channels: int
    crop: str = "stretch"

    def __post_init__(self):
        for name in ("height", "width"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ValueError(f"{name} must be an integer >= 1, in pixels. Received: {getattr(self, name)!r}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB). Received: {self.channels!r}")
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}. Received: {self.crop!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the pixels."""
        return self.height, self.width, self.channels

    def settings(self) -> dict:
        """Returns plain values for a JSON file; `Preprocessing.of(settings)` reads them."""
        return dataclasses.asdict(self) | {"interpolation": INTERPOLATIONS[self.crop]}

    @classmethod
    def of(cls, settings: dict) -> "Preprocessing":
        """Returns what `settings` described.

        Raises:
            ValueError: if a value is missing or out of its range.
        """
        try:
            return cls(**{field.name: settings[field.name] for field in dataclasses.fields(cls)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"A description of image preprocessing lacks a value: {error}") from error

    @tf.autograph.experimental.do_not_convert
    def __call__(self, image: tf.Tensor) -> tf.Tensor:
        """Returns uint8 pixels [height, width, channels].

        Args:
            image: a file's bytes, a string tensor; or uint8 pixels [h, w, 1 or 3].

        Raises:
            tf.errors.InvalidArgumentError: for bytes that are no such image, or a damaged one.
        """
        if self.crop == "padded":
            part = pixels(image, self.channels, self._window)
            return self._finished(tf.raw_ops.ResizeBicubic(images=part[None], size=self.shape[:2])[0])
        whole = pixels(image, self.channels)
        if self.crop == "stretch":
            return self._finished(tf.image.resize(whole, self.shape[:2], antialias=True))
        edges = self._edges(tf.shape(whole))
        (top, left), size = tf.unstack((edges - self.shape[:2]) // 2), self.shape[:2]
        return self._finished(tf.image.resize(whole, edges, "bicubic")[top : top + size[0], left : left + size[1]])

    def _finished(self, image):
        return to_uint8(tf.ensure_shape(image, self.shape))

    def _window(self, shape):
        """Returns top, left, height and width of the padded crop."""
        size = max(min(self.height, self.width), SMALLEST_WITH_MARGIN)
        share = size / (size + MARGIN)
        sides = tf.cast(shape[:2], tf.float32)
        scale = tf.reduce_min(sides / self.shape[:2]) * share
        extent = tf.maximum(1, tf.cast(scale * tf.constant(self.shape[:2], tf.float32), tf.int32))
        return tf.concat([(shape[:2] - extent + 1) // 2, extent], 0)

    def _edges(self, shape):
        """Returns height and width to resize to, before the crop of the shortest edge."""
        sides = tf.cast(shape[:2], tf.float32)
        scale = SHORTEST_EDGE / tf.reduce_min(sides / self.shape[:2])
        return tf.maximum(self.shape[:2], tf.cast(tf.round(sides * scale), tf.int32))


@tf.autograph.experimental.do_not_convert
def random_part(image: tf.Tensor, shape: tuple[int, int, int], seed: tf.Tensor) -> tf.Tensor:
    """Returns a random part of an image, resized (bilinear) to uint8 pixels of `shape`.

    The part is Inception's (arXiv:1409.4842): 8 % .. 100 % of the area, of an aspect ratio of 3/4 .. 4/3. Of a JPEG it
    alone is decoded.

    Args:
        image: a file's bytes, a string tensor; or uint8 pixels [h, w, 1 or 3].
        shape: (height, width, channels) to return.
        seed: int32 tensor [2]; the same gives the same.
    """

    def part(shape):
        whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape, whole, seed, 0.0, (3 / 4, 4 / 3), (0.08, 1.0), 10
        )
        return tf.concat([begin[:2], extent[:2]], axis=0)

    # Within the range, so rounding is all that is needed: one pass over the pixels in place of four.
    return tf.cast(tf.image.resize(pixels(image, shape[-1], part), shape[:2]) + 0.5, tf.uint8)


def random_shift(image: tf.Tensor, most: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns an image moved by up to `most` pixels each way; what comes in is black."""
    padded = tf.pad(image, [[most, most], [most, most], [0, 0]])
    return tf.image.stateless_random_crop(padded, image.shape, seed)


@tf.autograph.experimental.do_not_convert
def apply_to_each(function, elements, shape, parallel=None):
    """Returns function(*element) for each of n elements, uint8 [n, *shape], and the numbers of those that failed.

    A decoder that fails ends the whole graph without saying at which image. A dataset can pass over its failures, so
    that what is missing at its end can be named.

    Args:
        function: makes uint8 pixels of `shape`.
        elements: a tuple of tensors [n, ...], the arguments of the function.
        shape: (height, width, channels).
        parallel: how many calls at a time, or None.
    """
    number = tf.shape(elements[0])[0]
    made = tf.data.Dataset.from_tensor_slices((tf.range(number), *elements))
    made = made.map(tf.autograph.experimental.do_not_convert(lambda n, *given: (n, function(*given))), parallel)
    none = tf.data.Dataset.from_tensors((-1, tf.zeros(shape, tf.uint8)))  # a batch of nothing would have no shape
    whole = none.concatenate(made.ignore_errors()).batch(tf.cast(number, tf.int64) + 1)
    numbers, found = whole.get_single_element()
    failed = tf.sets.difference(tf.range(number)[None], numbers[None, 1:]).values
    return tf.ensure_shape(found[1:], (None, *shape)), failed


def fold(seed: tf.Tensor, number: int) -> tf.Tensor:
    """Returns another seed, int32 [2], for each number."""
    return tf.random.experimental.stateless_fold_in(seed, number)


def to_uint8(image: tf.Tensor) -> tf.Tensor:
    """Returns pixels as whole numbers 0..255: rounded, and cut off where an interpolation leaves the range."""
    return tf.saturate_cast(tf.round(image), tf.uint8)


def stateless(layer, seed, inputs):
    """Returns what a Keras preprocessing layer makes of `inputs` with the random numbers of `seed`, int32 [2].

    Its own state is neither used nor moved, so that a pipeline repeats bit for bit and can begin anywhere.
    """
    seeds = [(variable, tf.bitcast(fold(seed, number), tf.uint32)) for number, variable in enumerate(layer.variables)]
    with keras.StatelessScope(state_mapping=seeds):
        return layer(inputs, training=True)


@tf.autograph.experimental.do_not_convert
def pixels(image: tf.Tensor, channels: int, part=None) -> tf.Tensor:
    """Returns uint8 pixels [h, w, channels] of an image, or of the `part(shape)` of it: top, left, height and width.

    Args:
        image: a file's bytes, a string tensor; or uint8 pixels [h, w, 1 or 3].
        channels: 1 or 3.
        part: a function of the shape, int32 [height, width, channels], that returns an int32 tensor [4].
    """
    if image.dtype != tf.string:
        return _in_channels(_cut(image, part), channels)
    turn = orientation(image)

    def whole():
        return _cut(_turned(_decoded(image), turn), part)

    def part_of_jpeg():
        return tf.io.decode_and_crop_jpeg(image, part(tf.io.extract_jpeg_shape(image)), 3)

    # All that follows of a tf.cond costs time, whether it is taken or not: there are few, and they are small.
    is_fast = tf.io.is_jpeg(image) & tf.equal(turn, 1)
    found = whole() if part is None else tf.cond(is_fast, part_of_jpeg, whole)
    return _in_channels(tf.ensure_shape(found, (None, None, 3)), channels)


def _decoded(encoded):
    """Returns the uint8 RGB pixels of a file."""

    def any_other():
        return tf.io.decode_image(encoded, 3, expand_animations=False)

    found = tf.cond(tf.equal(tf.strings.substr(encoded, 0, 2), b"BM"), lambda: _bmp(encoded), any_other)
    return tf.ensure_shape(found, (None, None, 3))


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
    """Returns the RGB pixels of a BMP file. TensorFlow's decoder leaves the palette of one with 8 bits unread."""
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
    """Returns the EXIF orientation of a JPEG, PNG or WebP file, int32 in 1..8; 1, as it is, where there is none.

    The meaning of the numbers: EXIF 2.32, tag 0x0112, in the first directory of a TIFF header.
    """
    length, start = tf.strings.length(encoded), tf.strings.substr(encoded, 0, 6)
    is_jpeg = tf.equal(tf.strings.substr(start, 0, 2), b"\xff\xd8")
    after_jfif = tf.strings.substr(encoded, tf.minimum(20, length), 2)
    # The usual JPEG has no EXIF data: its tables follow its JFIF header.
    is_plain = tf.equal(start, b"\xff\xd8\xff\xe0\x00\x10") & tf.equal(after_jfif, b"\xff\xdb")
    text = tf.strings.substr(encoded, 0, tf.where(is_plain, 0, tf.where(is_jpeg, EXIF_BYTES, length)))
    after = tf.strings.regex_replace(text, EXIF, r"\1", replace_global=False)
    is_found = tf.strings.length(after) < tf.strings.length(text)
    data = _bytes(tf.strings.substr(after, 0, tf.where(is_found, DIRECTORY_BYTES, 0)))
    data = tf.pad(data, [[0, 16]])  # what is cut short is read as zeros
    is_little = tf.equal(data[0], ord("I"))

    def number(at, size):
        values = tf.gather(data, tf.clip_by_value(at[..., None] + tf.range(size), 0, tf.size(data) - 1))
        return _number(tf.where(is_little, values, values[..., ::-1]), size)

    first = tf.clip_by_value(number(tf.constant(4), 4), 0, tf.size(data) - 2)
    entries = first + 2 + 12 * tf.range(tf.minimum(number(first, 2), (tf.size(data) - first) // 12))
    values = tf.boolean_mask(number(entries + 8, 2), tf.equal(number(entries, 2), 0x0112))
    value = tf.concat([values, [1]], 0)[0]
    return tf.where((value >= 1) & (value <= 8), value, 1)


def _bytes(text):
    return tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32)


def _number(values, size):
    """Returns the numbers that bytes [..., size] are, the lowest first."""
    return tf.reduce_sum(values * [256**place for place in range(size)], -1)


def _turned(image, turn):
    """Returns an image as it is to be seen, of the EXIF orientation `turn`."""

    def turned(number):
        sides = _transposed(image) if number >= 5 else image
        axes = [axis for axis, those in ((0, (3, 4, 7, 8)), (1, (2, 3, 6, 7))) if number in those]
        return tf.reverse(sides, axes) if axes else sides

    return tf.switch_case(turn - 1, [lambda number=number: turned(number) for number in range(1, 9)])


def _transposed(image):
    """Returns an image with its axes swapped. (Of tf.transpose on bytes oneDNN complains on stderr.)"""
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    places = tf.range(width)[:, None] + width * tf.range(height)
    return tf.gather(tf.reshape(image, (-1, 3)), places)
