"""Image classifiers that apply the activation `activation=` at every nonlinearity."""

from collections.abc import Callable

import keras

from keras_sat.models import folding, pytorch, release, wide_resnet
from keras_sat.models.classifier import without_softmax
from keras_sat.models.convnext import ConvNeXtBase, ConvNeXtLarge, ConvNeXtSmall, ConvNeXtTiny
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
    WideResNet50_2,
)
from keras_sat.models.wide_resnet import (
    PreActResNet18,
    WideResNet,
    WideResNet28_10,
    WideResNet34_10,
    WideResNet34_20,
    WideResNet70_16,
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
_WIDE_RESNETS = (WideResNet28_10, WideResNet34_10, WideResNet34_20, WideResNet70_16, WideResNet50_2)
_CONVNEXTS = (ConvNeXtTiny, ConvNeXtSmall, ConvNeXtBase, ConvNeXtLarge)
_ALL = (*_RESNETS, PreActResNet18, *_WIDE_RESNETS, *_RESNEXTS, *_EFFICIENTNETS, *_CONVNEXTS)
BUILDERS = {build.__name__: build for build in _ALL}


def builder(name: str) -> Callable[..., keras.Model]:
    """Returns the builder of a network, such as `ResNet50`, by its name.

    Args:
        name: a key of `BUILDERS`, or WideResNet<depth>_<width> with other numbers, such as "WideResNet34_15".

    Raises:
        ValueError: if there is no such network. The message lists all names.
    """
    build = BUILDERS.get(name) or wide_resnet.by_name(name)
    if build is None:
        raise ValueError(f"model must be one of {', '.join(BUILDERS)}. Received: {name!r}")
    return build


__all__ = [
    "BUILDERS",
    "builder",
    "folding",
    "list_weights",
    "pytorch",
    "release",
    "without_softmax",
    "WideResNet",
    *BUILDERS,
]
