import keras
import numpy as np
import pytest

from keras_sat import models
from keras_sat.models import classifier


def test_logits_are_accepted(tiny_model):
    classifier.check(tiny_model())
    classifier.check(models.ResNet8())
    classifier.check(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Rescaling(0.5)]))


@pytest.mark.parametrize(
    "last",
    [
        keras.layers.Dense(3, activation="softmax"),
        keras.layers.Dense(3, activation="sigmoid"),
        keras.layers.Activation("softmax"),
        keras.layers.Softmax(),
        keras.Sequential([keras.Input((3,)), keras.layers.Softmax()]),
    ],
    ids=["dense", "sigmoid", "activation", "layer", "nested"],
)
def test_probabilities_are_refused(last):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), last])
    with pytest.raises(ValueError, match="ends in probabilities"):
        classifier.check(model)


def test_what_is_no_built_model_is_refused():
    for model in (keras.Sequential([keras.layers.Dense(3)]), keras.layers.Dense(3), lambda x: x):
        with pytest.raises(ValueError, match="must be a built Keras classifier"):
            classifier.check(model)


@pytest.mark.parametrize("last", ["dense", "layer", "activation"])
def test_without_softmax_gives_the_logits(last):
    layers = {
        "dense": [keras.layers.Dense(3, activation="softmax")],
        "layer": [keras.layers.Dense(3), keras.layers.Softmax()],
        "activation": [keras.layers.Dense(3), keras.layers.Activation("softmax")],
    }
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), *layers[last]])
    stripped = models.without_softmax(model)
    classifier.check(stripped)
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    np.testing.assert_allclose(keras.ops.softmax(stripped(x)), model(x), rtol=1e-5)
    with pytest.raises(ValueError, match="does not end in a softmax"):
        models.without_softmax(stripped)


def test_in_precision(tiny_model, images):
    model = keras.Sequential([keras.Input((8, 8, 3)), tiny_model()])  # nested
    low = classifier.in_precision(model, "mixed_bfloat16")
    outer, inner = low.layers[-1], low.layers[-1].layers
    assert [layer.compute_dtype for layer in inner] == ["float32"] + ["bfloat16"] * (len(inner) - 1)
    assert all(variable.dtype == "float32" for variable in outer.variables)
    difference = np.abs(np.array(low(images), np.float32) - np.array(model(images)))
    assert 0 < difference.max() < 0.05 * np.ptp(model(images))
    with pytest.raises(ValueError, match="functional"):
        classifier.in_precision(lambda x: x, "mixed_bfloat16")
    with pytest.raises(ValueError, match="mixed_bfloat16.*Received: 'bf16'"):
        classifier.in_precision(model, "bf16")
