"""Image classifiers that apply the activation `activation=` at every nonlinearity."""

from typing import Any

import keras

from keras_sat.models import folding, pytorch, release, wide_resnet
from keras_sat.models import normalization as normalization_lib
from keras_sat.models.builder import Builder
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
BUILDERS: dict[str, Builder] = {each.__name__: each for each in _ALL}


def builder(name: str) -> Builder:
    """Returns the builder of a network, such as `ResNet50`, by its name.

    Args:
        name: a key of `BUILDERS`, or WideResNet<depth>_<width> with other numbers, such as "WideResNet34_15".

    Raises:
        ValueError: if there is no such network. The message says which there are.
    """
    found = BUILDERS.get(name) or wide_resnet.by_name(name)
    if found is None:
        raise ValueError(
            f"model must be one of {', '.join(BUILDERS)}, or WideResNet<depth>_<width>. Received: {name!r}"
        )
    return found


def build(
    name: str, form: str | None = None, normalization: Any = normalization_lib.PUBLISHED, **options: Any
) -> keras.Model:
    """Builds a network that plain values describe, such as those of flags or of a JSON file.

    Args:
        name: name of the network, see `builder`.
        form: name of a published variant: the builder's argument `form` or `stem`. Default: the builder's own.
        normalization: the builder's argument; lists [mean, std] and "none" (for None) too, as JSON and flags have them.
        options: further arguments of the builder.

    Raises:
        ValueError: if there is no such network or form, or for invalid arguments.
    """
    function = builder(name)
    check_variant(name, form, normalization)
    if form is not None:
        options[function.variant] = form
    return function(normalization=None if normalization == "none" else normalization, **options)


def check_variant(name: str, form: str | None = None, normalization: Any = None, channels: int | None = None) -> None:
    """Raises ValueError if a network does not exist, or has no such form or normalization. Builds nothing.

    Args:
        name, form, normalization: see `build`.
        channels: number of channels of the images; None: 1 or 3.
    """
    function = builder(name)
    if form not in (None, *function.forms):
        raise ValueError(f"{function.variant} of {name} must be one of {', '.join(function.forms)}. Received: {form!r}")
    if normalization in (None, "none", normalization_lib.PUBLISHED):
        return
    if isinstance(normalization, str) and normalization not in normalization_lib.NAMED:
        names = ", ".join(("published", "none", *normalization_lib.NAMED))
        raise ValueError(f"normalization must be one of {names}, or [mean, std]. Received: {normalization!r}")
    if channels is None:
        values = normalization if isinstance(normalization, (list, tuple)) else []
        channels = 1 if any(isinstance(each, (list, tuple)) and len(each) == 1 for each in values) else 3
    normalization_lib.statistics(normalization, channels)


def describe(model: keras.Model, name: str, form: str | None, activation: Any) -> dict[str, Any]:
    """Returns which network a model is, as plain values: "name", "form", "activation" and "normalization".

    The normalization is [mean, std] of images in 0..1, as the model has it; None for a model without such a layer.

    Args:
        model: the network.
        name, form: see `build`.
        activation: its activation, a name or a dict.
    """
    statistics = normalization_lib.of_model(model)
    plain = statistics and [list(each) if isinstance(each, tuple) else each for each in statistics]
    return {
        "name": name,
        "form": form or builder(name).form,
        "activation": activation,
        "normalization": plain,
    }


__all__ = [
    "BUILDERS",
    "build",
    "builder",
    "check_variant",
    "describe",
    "folding",
    "list_weights",
    "pytorch",
    "release",
    "without_softmax",
    "WideResNet",
    *BUILDERS,
]
