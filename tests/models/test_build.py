"""Networks that plain values describe: `models.build`, `check_variant` and `describe`."""

import json

import pytest

from keras_sat import models
from keras_sat.models import normalization

SMALL = {"input_shape": (8, 8, 3), "classes": 4}
CIFAR10 = normalization.NAMED["cifar10"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0.0, 1.0)),
        ({"form": "dm"}, CIFAR10),
        ({"form": "dm", "normalization": "published"}, CIFAR10),
        ({"form": "dm", "normalization": "none"}, (0.0, 1.0)),
        ({"normalization": "cifar10"}, CIFAR10),
        ({"normalization": [[0.1, 0.2, 0.3], 0.5]}, ((0.1, 0.2, 0.3), 0.5)),
    ],
)
def test_form_and_normalization(given, expected):
    model = models.build("WideResNet10_1", activation="relu", **given, **SMALL)
    assert normalization.of_model(model) == expected
    described = models.describe(model, "WideResNet10_1", given.get("form"), "relu")
    assert (described["form"], described["activation"]) == (given.get("form", "trades"), "relu")
    again = json.loads(json.dumps(described))
    assert normalization.of_model(models.build(**again, **SMALL)) == expected


def test_every_network_says_its_forms():
    for name, build in models.BUILDERS.items():
        form, *_ = build.forms
        models.check_variant(name, form)
        assert build.variant == ("stem" if name.startswith("ConvNeXt") else "form")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ResNet9",), "model must be one of ResNet8"),
        (("WideResNet29_10",), "depth must be 6 n"),
        (("WideResNet28_10", "sat"), "form of WideResNet28_10 must be one of trades, dm. Received: 'sat'"),
        (("ResNet8", None, "cifar"), "one of published, none, cifar10, cifar100, imagenet"),
        (("ResNet8", None, [0.5]), "normalization must be"),
        (("ResNet8", None, 5), "normalization must be"),
        (("ResNet8", None, [[0.5] * 3, [0.5] * 3], 1), "The images have 1 channels"),
        (("ResNet8", None, [0.5, 0.0]), "std above 0"),
    ],
)
def test_bad_variants_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.check_variant(*arguments)
