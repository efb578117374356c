"""EfficientNet B0 to B8, L1 and L2 (Tan and Le, arXiv:1905.11946), with the batch norm of the SAT release."""

import functools
import math

import keras

from keras_sat.models import blocks
from keras_sat.models.builder import Form, builder
from keras_sat.models.normalization import SYMMETRIC

# Stages of B0: (repeats, kernel size, strides, expansion, filters). Other networks scale repeats and filters.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_FILTERS, HEAD_FILTERS = 32, 1280
DROP_CONNECT = 0.2  # drop rate of the last block; it grows linearly from 0 at the first one


def _round_filters(filters, width):
    """Returns filters * width, rounded to a multiple of 8, but not down by more than 10 %."""
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _trunk(width, depth, x, activation):
    conv = functools.partial(blocks.conv_bn, padding="same", activation=activation)
    x = conv(x, _round_filters(STEM_FILTERS, width), 3, strides=2, name="stem")
    repeats = [math.ceil(depth * stage[0]) for stage in STAGES]
    index = 0
    for count, (_, size, strides, expansion, filters) in zip(repeats, STAGES):
        for position in range(count):
            x = blocks.mbconv(
                x,
                _round_filters(filters, width),
                size,
                strides if position == 0 else 1,
                expansion,
                activation,
                drop_rate=DROP_CONNECT * index / sum(repeats),
                name=f"blocks_{index}",
            )
            index += 1
    return conv(x, _round_filters(HEAD_FILTERS, width), 1, name="head")


def _efficientnet(name, width, depth, size, dropout):
    form = Form(
        functools.partial(_trunk, width, depth),
        kernel_initializer=functools.partial(keras.initializers.VarianceScaling, 1 / 3, "fan_out", "uniform"),
        normalization=SYMMETRIC,
        input_shape=(size, size, 3),
        top=lambda x: keras.layers.Dropout(dropout, name="top_dropout")(x),
    )
    sites = ", the inner one of squeeze-and-excite included (its gate stays a sigmoid)"
    return builder(name, {"sat": form}, sites=sites)


EfficientNetB0 = _efficientnet("EfficientNetB0", 1.0, 1.0, 224, 0.2)
EfficientNetB1 = _efficientnet("EfficientNetB1", 1.0, 1.1, 240, 0.2)
EfficientNetB2 = _efficientnet("EfficientNetB2", 1.1, 1.2, 260, 0.3)
EfficientNetB3 = _efficientnet("EfficientNetB3", 1.2, 1.4, 300, 0.3)
EfficientNetB4 = _efficientnet("EfficientNetB4", 1.4, 1.8, 380, 0.4)
EfficientNetB5 = _efficientnet("EfficientNetB5", 1.6, 2.2, 456, 0.4)
EfficientNetB6 = _efficientnet("EfficientNetB6", 1.8, 2.6, 528, 0.5)
EfficientNetB7 = _efficientnet("EfficientNetB7", 2.0, 3.1, 600, 0.5)
EfficientNetB8 = _efficientnet("EfficientNetB8", 2.2, 3.6, 672, 0.5)
EfficientNetL1 = _efficientnet("EfficientNetL1", 3.9, 3.7, 600, 0.5)
EfficientNetL2 = _efficientnet("EfficientNetL2", 4.3, 5.3, 800, 0.5)
