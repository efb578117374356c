"""Classifiers whose every nonlinearity follows `activation=`."""

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

BUILDERS = {
    builder.__name__: builder
    for builder in (
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
}

__all__ = ["BUILDERS", *BUILDERS]
