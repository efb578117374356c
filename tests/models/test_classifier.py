import keras
import numpy as np
import pytest
import tensorflow as tf

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


def heads(tiny_model):
    """Returns {kind: classifiers that end in such probabilities}, each made in another way."""
    activations = [tf.nn.softmax, keras.ops.softmax, "softmax"]
    layers = [[keras.layers.Dense(3, activation=activation)] for activation in activations]
    layers += [[keras.layers.Dense(3), keras.layers.Lambda(tf.nn.softmax)]]
    layers += [[keras.layers.Dense(3), keras.layers.Softmax(), keras.layers.Activation("linear", dtype="float32")]]
    networks = {"softmax": [keras.Sequential([tiny_model(), *more]) for more in layers]}
    base = tiny_model()
    networks["softmax"] += [keras.Model(base.inputs[0], keras.ops.softmax(base.outputs[0]))]
    networks["softmax"] += [keras.Sequential([keras.Sequential([tiny_model(), keras.layers.Softmax()])])]
    layers = [[keras.layers.Dense(units, activation="sigmoid")] for units in (3, 1)]
    networks["sigmoid"] = [keras.Sequential([tiny_model(), *more]) for more in layers]
    for model in (*networks["softmax"], *networks["sigmoid"]):
        model.build((None, 8, 8, 3))
    return networks


def test_probabilities_are_judged_by_what_is_returned_and_can_be_taken_off(tiny_model, images):
    for kind, networks in heads(tiny_model).items():
        for model in networks:
            with pytest.raises(ValueError, match=rf"ends in probabilities \(a {kind}\).*without_softmax"):
                classifier.check(model)
            stripped = models.without_softmax(model)
            classifier.check(stripped)
            squash = keras.ops.softmax if kind == "softmax" else keras.ops.sigmoid
            np.testing.assert_allclose(squash(stripped(images)), model(images), atol=1e-5)


def test_layers_that_are_called_elsewhere_too(images):
    """`layer.output` belongs to the first call: here by another model, or by a sequential model with fewer layers."""
    grown = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Rescaling(1 / 255)])
    for layer in (keras.layers.Dense(4), keras.layers.Softmax(), keras.layers.Activation("linear")):
        grown.add(layer)
    other = keras.Input((8, 8, 3))
    again = other
    for layer in grown.layers:
        again = layer(again)
    for model in (grown, keras.Model(other, again)):
        stripped = models.without_softmax(model)
        np.testing.assert_allclose(keras.ops.softmax(stripped(images)), model(images), atol=1e-5)
        assert classifier.output_layer(stripped) is grown.layers[2]
        assert classifier.features(stripped).output_shape == (None, 192)
        np.testing.assert_allclose(classifier.features(stripped)(images), np.reshape(images, (8, -1)) / 255, rtol=1e-5)


def gated():
    """A network of logits whose last layer, the one made last, is a sigmoid gate."""
    inputs = keras.Input((8, 8, 3))
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    logits = keras.layers.Dense(4)(features)
    gate = keras.layers.Dense(4, activation="sigmoid")
    return keras.Model(inputs, keras.layers.Multiply()([logits, gate(features)])), keras.Model(
        inputs,
        keras.layers.Dense(4, name="head")(keras.layers.Multiply()([features, keras.layers.Dense(192)(features)])),
    )


def test_a_gate_is_no_head():
    for model in gated():
        classifier.check(model)
        with pytest.raises(ValueError, match="does not end in a softmax"):
            models.without_softmax(model)
    multiplied, dense = gated()
    assert classifier.features(multiplied) is None
    assert classifier.features(dense).output_shape == (None, 192)
    assert classifier.output_layer(dense).name == "head"


def test_several_inputs_and_outputs_are_refused():
    one, other = keras.Input((4,)), keras.Input((4,))
    logits = keras.layers.Dense(3)
    for model in (
        keras.Model([one, other], logits(keras.layers.Add()([one, other]))),
        keras.Model(one, [logits(one), logits(one)]),
        keras.Model(one, keras.layers.Reshape((3, 1))(logits(one))),
    ):
        with pytest.raises(
            ValueError, match="must take images alone, and return logits .* alone. It takes .* and returns"
        ):
            classifier.check(model)


def test_what_a_layer_derives_from_its_weights_is_refreshed(foreign_model, images):
    for name in ("normalization", "derived"):
        model = foreign_model(name)
        twin = keras.models.model_from_json(model.to_json())
        twin.set_weights(model.get_weights())
        assert np.abs(twin(images) - model(images)).max() > 0.1 * np.ptp(model(images))  # Keras' own leaves it out
        classifier.set_weights(twin, model.get_weights())
        np.testing.assert_allclose(twin(images), model(images), atol=1e-5)


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


def test_freeze_sets_what_is_trained_whatever_was_before():
    model = models.ResNet8(input_shape=(8, 8, 1), classes=3)
    inner = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    nested = keras.Sequential([keras.Input((8, 8, 1)), inner, keras.layers.Dense(3)])
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    number = len(model.trainable_weights)
    classifier.freeze(model, "backbone")
    assert [weight.path for weight in model.trainable_weights] == ["linear/kernel", "linear/bias"]
    assert all(not layer.trainable for layer in norms)
    classifier.freeze(model, "batch_norm")
    assert len(model.trainable_weights) == number - 2 * len(norms)
    classifier.freeze(model, None)
    assert len(model.trainable_weights) == number
    classifier.freeze(nested, "backbone")
    assert len(nested.trainable_weights) == 2
    classifier.freeze(nested, None)
    assert len(nested.trainable_weights) == 4
    with pytest.raises(ValueError, match=r"freeze must be one of \(None, 'backbone', 'batch_norm'\). Received: 'all'"):
        classifier.freeze(model, "all")
