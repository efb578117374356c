"""Encoded images -> pixels 0..255: decoding, crops, resizing, and Keras' augmentations without a state of their own."""

import keras
import tensorflow as tf

MARGIN = 32  # pixels of the padded centre crop: EfficientNet's
SHORTEST_EDGE = 256 / 224
CROPS = ("stretch", "padded", "shortest_edge")


def centre(encoded, size, channels, crop):
    """Returns the centre of an encoded image as uint8 pixels [size, size, channels], for evaluation.

    Args:
        encoded: JPEG, PNG, GIF or BMP, a string tensor.
        size: height and width to return.
        channels: 1 or 3.
        crop: "padded": EfficientNet's, size / (size + 32) of the largest square, by the bicubic interpolation of
            TensorFlow 1; "shortest_edge": the shortest edge to size * 256 / 224, bicubic, then what fits.
    """
    if crop == "padded":
        image = _decode(encoded, channels, lambda shape: _padded_centre(shape, size))
        return to_uint8(tf.compat.v1.image.resize_bicubic(image[None], (size, size))[0])
    image = _decode(encoded, channels)
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    scale = SHORTEST_EDGE * size / tf.minimum(height, width)
    edges = tf.cast(tf.round(tf.stack([height, width]) * scale), tf.int32)
    top, left = tf.unstack((edges - size) // 2)
    resized = tf.image.resize(image, edges, "bicubic")[top : top + size, left : left + size]
    return to_uint8(tf.ensure_shape(resized, (size, size, channels)))


def random_part(encoded, size, channels, seed):
    """Returns a random part of an encoded image, resized (bilinear) to uint8 pixels [size, size, channels].

    The part is Inception's (arXiv:1409.4842): 8 % .. 100 % of the area, of an aspect ratio of 3/4 .. 4/3. Of a JPEG it
    alone is decoded.

    Args: as of `centre`, and
        seed: int32 tensor [2]; the same gives the same.
    """

    def part(shape):
        whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape, whole, seed, 0.0, (3 / 4, 4 / 3), (0.08, 1.0), 10
        )
        return tf.concat([begin[:2], extent[:2]], axis=0)

    # Within the range, so rounding is all that is needed: one pass over the pixels in place of four.
    return tf.cast(tf.image.resize(_decode(encoded, channels, part), (size, size)) + 0.5, tf.uint8)


def random_shift(image, most, seed):
    """Returns an image moved by up to `most` pixels each way; what comes in is black."""
    padded = tf.pad(image, [[most, most], [most, most], [0, 0]])
    return tf.image.stateless_random_crop(padded, image.shape, seed)


def resize(image, size):
    """Returns an image (or a batch) resized to `size`, (height, width): bilinear, antialiased; float32 in 0..255."""
    return tf.clip_by_value(tf.image.resize(image, size, antialias=True), 0, 255)


def fold(seed, number):
    """Returns another seed, int32 [2], for each number."""
    return tf.random.experimental.stateless_fold_in(seed, number)


def to_uint8(image):
    """Returns pixels as whole numbers 0..255: rounded, and cut off where an interpolation leaves the range."""
    return tf.saturate_cast(tf.round(image), tf.uint8)


def stateless(layer, seed, inputs):
    """Returns what a Keras preprocessing layer makes of `inputs` with the random numbers of `seed`, int32 [2].

    Its own state is neither used nor moved, so that a pipeline repeats bit for bit and can begin anywhere.
    """
    seeds = [(variable, tf.bitcast(fold(seed, number), tf.uint32)) for number, variable in enumerate(layer.variables)]
    with keras.StatelessScope(state_mapping=seeds):
        return layer(inputs, training=True)


def _padded_centre(shape, size):
    height, width = shape[0], shape[1]
    edge = tf.cast(size / (size + MARGIN) * tf.cast(tf.minimum(height, width), tf.float32), tf.int32)
    return tf.stack([(height - edge + 1) // 2, (width - edge + 1) // 2, edge, edge])


def _decode(encoded, channels, part=None):
    """Returns the pixels of an image, or of the `part(shape)` of it: top, left, height and width."""

    def anything():
        image = tf.io.decode_image(encoded, channels, expand_animations=False)
        return image if part is None else tf.image.crop_to_bounding_box(image, *tf.unstack(part(tf.shape(image))))

    if part is None:
        return tf.ensure_shape(anything(), (None, None, channels))

    def jpeg():
        return tf.io.decode_and_crop_jpeg(encoded, part(tf.io.extract_jpeg_shape(encoded)), channels)

    return tf.ensure_shape(tf.cond(tf.io.is_jpeg(encoded), jpeg, anything), (None, None, channels))
