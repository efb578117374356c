"""Image classifiers that apply the activation `activation=` at every nonlinearity."""

from collections.abc import Callable

import keras

from keras_sat.models import folding, release
from keras_sat.models.classifier import without_softmax
from keras_sat.models.efficientnet import (
    EfficientNetB0,
    EfficientNetB1,
    EfficientNetB2,
    EfficientNetB3,
    EfficientNetB4,
    EfficientNetB5,
    EfficientNetB6,
    EfficientNetB7,
    EfficientNetB8,
    EfficientNetL1,
    EfficientNetL2,
)
from keras_sat.models.leaderboard import list_weights
from keras_sat.models.resnet import (
    ResNet8,
    ResNet18,
    ResNet20,
    ResNet50,
    ResNet101,
    ResNet152,
    ResNeXt50_32x4d,
    ResNeXt50_32x8d,
    ResNeXt152_32x8d,
)

_RESNETS = (ResNet8, ResNet18, ResNet20, ResNet50, ResNet101, ResNet152)
_RESNEXTS = (ResNeXt50_32x4d, ResNeXt50_32x8d, ResNeXt152_32x8d)
_EFFICIENTNETS = (
    EfficientNetB0,
    EfficientNetB1,
    EfficientNetB2,
    EfficientNetB3,
    EfficientNetB4,
    EfficientNetB5,
    EfficientNetB6,
    EfficientNetB7,
    EfficientNetB8,
    EfficientNetL1,
    EfficientNetL2,
)
BUILDERS = {build.__name__: build for build in (*_RESNETS, *_RESNEXTS, *_EFFICIENTNETS)}


def builder(name: str) -> Callable[..., keras.Model]:
    """Returns the builder of a network, such as `ResNet50`, by its name.

    Raises:
        ValueError: if there is no such network. The message lists all names.
    """
    if name not in BUILDERS:
        raise ValueError(f"model must be one of {', '.join(BUILDERS)}. Received: {name!r}")
    return BUILDERS[name]


__all__ = ["BUILDERS", "builder", "folding", "list_weights", "release", "without_softmax", *BUILDERS]
