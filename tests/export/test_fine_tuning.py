import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat import data, models
from keras_sat.attacks import PGD, LinfBall
from keras_sat.export import export_saved_model, load_for_fine_tuning, verify
from keras_sat.training import AdversarialModel

KNOWN = 7  # of the ten classes of Fashion-MNIST; the others are new


@functools.cache
def whole(split):
    images, labels = next(iter(data.load("fashion_mnist_mini", split, batch_size=10_000, image_size=14)))
    return images.numpy(), labels.numpy()


def examples(split, number, wanted):
    """Returns images and labels, counted from 0, of some classes."""
    images, labels = whole(split)
    keep = np.flatnonzero(np.isin(labels, wanted))[:number]
    return images[keep], labels[keep] - min(wanted)


def train(model, images, labels, epochs, rate):
    keras.utils.set_random_seed(1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(images, labels, batch_size=50, epochs=epochs, verbose=0)


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = models.ResNet8(activation="silu", input_shape=(14, 14, 1), classes=KNOWN)
    train(model, *examples("train", 5000, range(KNOWN)), 2, 0.003)
    return model


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "known"
    export_saved_model(trained, folder, signatures=[])
    return folder


def test_fine_tunes_to_new_classes_as_the_original_does(trained, saved, tmp_path):
    new = range(KNOWN, 10)
    train_set, test_set = examples("train", 300, new), examples("test", 400, new)
    copy = keras.models.clone_model(trained)
    copy.set_weights(trained.get_weights())
    head = keras.layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(stddev=0.01))
    original = keras.Model(copy.inputs[0], head(copy.layers[-1].input))
    tuned = load_for_fine_tuning(saved, classes=3)
    train(original, *train_set, 10, 0.003)
    train(tuned, *train_set, 10, 0.003)
    logits = tuned(test_set[0])
    of_original, of_tuned = (np.mean(np.argmax(z, -1) == test_set[1]) for z in (original(test_set[0]), logits))
    assert of_original > 0.7
    assert of_tuned >= 0.9 * of_original
    export_saved_model(tuned, tmp_path / "tuned", signatures=[], labels=["sneaker", "bag", "boot"])
    verify(tmp_path / "tuned", tuned)
    tuned.save(tmp_path / "tuned.keras")
    again = keras.models.load_model(tmp_path / "tuned.keras")
    np.testing.assert_allclose(again(test_set[0]), logits, atol=1e-5)


def test_trains_adversarially(saved):
    model = load_for_fine_tuning(saved)
    images, labels = examples("train", 100, range(KNOWN))
    before = model.get_weights()
    trainer = AdversarialModel(model, PGD(LinfBall(8), steps=1))
    trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    trainer.fit(images, labels, batch_size=50, verbose=0)
    assert all(np.any(one != other) for one, other in zip(before, model.get_weights()))


@pytest.mark.parametrize("freeze", ["backbone", "batch_norm"])
def test_freeze(saved, freeze):
    model = load_for_fine_tuning(saved, classes=2, freeze=freeze)
    before = {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.weights}
    images, labels = examples("train", 100, range(2))
    train(model, images, labels, 1, 0.01)
    moved = {w.path for w in model.weights if np.any(before[w.path] != keras.ops.convert_to_numpy(w))}
    if freeze == "backbone":
        assert moved == {weight.path for weight in model.layers[-1].weights}
    else:
        norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert moved == {w.path for w in model.weights} - {w.path for norm in norms for w in norm.weights}


def test_networks_of_others_come_back_as_they_were_or_are_refused(foreign_model, images, tmp_path):
    for name in ("normalization", "derived", "own convolution", "lora"):
        model = foreign_model(name)
        export_saved_model(model, tmp_path / name, signatures=["features", "input_gradient"])
        again = load_for_fine_tuning(tmp_path / name)
        np.testing.assert_allclose(again(images), model(images), atol=1e-5)
        verify(tmp_path / name, again)
    export_saved_model(foreign_model("forgetful"), tmp_path / "forgetful")
    verify(tmp_path / "forgetful", foreign_model("forgetful"))  # the export is good
    with pytest.raises(ValueError, match="cannot be rebuilt.*logits that differ.*get_config of a layer"):
        load_for_fine_tuning(tmp_path / "forgetful")
    with pytest.raises(ValueError, match="cannot be exported in bfloat16: its copy has logits that differ"):
        export_saved_model(foreign_model("forgetful"), tmp_path / "low", precision="bfloat16")
    assert not (tmp_path / "low").exists()


def test_the_head_is_what_makes_the_output_not_what_was_made_last(tmp_path):
    inputs = keras.Input((8, 8, 3))
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    gate = keras.layers.Dense(192, activation="sigmoid", name="gate")
    head = keras.layers.Dense(4, name="head")
    model = keras.Model(inputs, head(keras.layers.Multiply()([features, gate(features)])))
    export_saved_model(model, tmp_path / "saved", signatures=["features"])
    tuned = load_for_fine_tuning(tmp_path / "saved", classes=3, freeze="backbone")
    assert tuned.output_shape == (None, 3)
    tuned = load_for_fine_tuning(tmp_path / "saved", freeze="backbone")
    assert [layer.name for layer in tuned.layers if layer.trainable_weights] == ["head"]


def test_nothing_stays_frozen_that_was_frozen_when_it_was_exported(tmp_path):
    inner = models.ResNet8(input_shape=(14, 14, 1), classes=10)
    model = keras.Sequential([keras.Input((14, 14, 1)), inner, keras.layers.Dense(10)])
    number = len(model.trainable_weights)
    inner.trainable = False
    for layer in inner.layers[:-1]:
        layer.trainable = False
    export_saved_model(model, tmp_path / "saved", signatures=[])
    assert len(load_for_fine_tuning(tmp_path / "saved").trainable_weights) == number
    assert len(load_for_fine_tuning(tmp_path / "saved", classes=3).trainable_weights) == number
    assert len(load_for_fine_tuning(tmp_path / "saved", freeze="backbone").trainable_weights) == 2


def own_activation(x):
    return x * keras.ops.sigmoid(1.5 * x)


def test_a_function_of_ones_own(tiny_model, images, tmp_path):
    model = tiny_model(activation=own_activation)
    export_saved_model(model, tmp_path / "saved", signatures=[])
    with pytest.raises(ValueError, match="passed in custom_objects"):
        load_for_fine_tuning(tmp_path / "saved")
    again = load_for_fine_tuning(tmp_path / "saved", custom_objects={"own_activation": own_activation})
    np.testing.assert_allclose(again(images), model(images), atol=1e-6)


def test_refusals(saved, tmp_path, tiny_model):
    tf.saved_model.save(tf.train.Checkpoint(), tmp_path / "other")
    export_saved_model(tiny_model(activation=lambda x: x), tmp_path / "lambda", signatures=[])
    pooled = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalMaxPool2D()])
    export_saved_model(pooled, tmp_path / "pooled", signatures=[])
    for path, arguments, message in (
        (tmp_path / "none", {}, "is not a SavedModel"),
        (tmp_path / "other", {}, "does not say its architecture"),
        (tmp_path / "lambda", {}, "a lambda"),
        (tmp_path / "pooled", {"classes": 2}, "does not end in a dense layer"),
        (saved, {"classes": 0}, "integer >= 1"),
        (saved, {"freeze": "all"}, "freeze must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            load_for_fine_tuning(path, **arguments)
