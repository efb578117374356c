import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat import activations, losses, models
from keras_sat.attacks import value_and_gradient
from keras_sat.models import folding, resnet

# ResNeXt50_32x4d with one block for each stage
RESNEXT = resnet.network("ResNeXt14_32x4d", resnet.Spec(resnet._BLOCK_32X4D, (1, 1, 1, 1)), "sat")
BUILDERS = {
    "resnet": lambda: models.ResNet20(activation="silu", classes=10),
    "grouped": lambda: RESNEXT(activation="smooth_relu", input_shape=(32, 32, 3), classes=10),
    "depthwise, squeeze-excite": lambda: models.EfficientNetB0(activation="gelu", input_shape=(32, 32, 3), classes=10),
}


def shaken(model):
    """Gives a network weights and statistics like those of a trained one: no mean is 0, no variance 1, no gamma 0."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = (weight.shape for weight in layer.get_weights())
            values = rng.uniform(0.5, 1.5, gamma), rng.normal(0, 0.2, beta), rng.normal(0, 0.5, mean)
            layer.set_weights([*values, rng.uniform(0.5, 2, variance)])
    return model


def test_the_copy_that_folds_never_gets_weights():
    model = BUILDERS["resnet"]()
    gc.collect()  # what other tests left, which may go at any moment
    before = len([one for one in gc.get_objects() if isinstance(one, tf.Variable)])
    folded = folding.Folding(model, "mixed_bfloat16")
    with keras.StatelessScope():  # at its end Keras initialises whatever waits for it
        pass
    tf.function(lambda images: folded.bind()(images), autograph=False)(tf.zeros((1, 32, 32, 3)))
    assert len([one for one in gc.get_objects() if isinstance(one, tf.Variable)]) == before


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_same_logits_and_gradients(build):
    model = shaken(build())
    folded = folding.fold(model)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)
    images = tf.random.stateless_uniform((4, 32, 32, 3), (0, 1), 0, 255)
    results = [value_and_gradient(m, losses.margin, images, tf.constant([0, 1, 2, 3])) for m in (model, folded)]
    for ours, theirs in zip(*results):
        assert np.abs(ours - theirs).max() <= 1e-4 * max(1e-6, np.ptp(theirs))


@pytest.mark.parametrize(
    "activation", [*activations.names(), keras.activations.mish], ids=lambda one: getattr(one, "__name__", one)
)
def test_logits_alone_in_a_graph(activation):
    """Without a gradient, TensorFlow fuses more operations: bias, addition of a residual block, and activation."""
    model = shaken(models.ResNet8(activation=activation, input_shape=(16, 16, 3), classes=4))
    images = tf.random.stateless_uniform((4, 16, 16, 3), (0, 1), 0, 255)
    logits = tf.function(folding.fold(model), autograph=False)(images)
    assert np.abs(logits - model(images)).max() <= 1e-5 * np.ptp(logits)


def test_what_cannot_be_folded_stays():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x)  # after an activation
    y = keras.layers.Conv2D(4, 3, padding="same")(x)
    z = keras.layers.BatchNormalization()(y)  # y is used besides
    z = keras.layers.DepthwiseConv2D(3, use_bias=False)(keras.layers.Add()([y, z]))
    z = keras.layers.BatchNormalization(scale=False, center=False)(z)  # this one can be
    z = keras.layers.Dense(3)(keras.layers.Flatten()(z))
    model = shaken_statistics(keras.Model(inputs, keras.layers.BatchNormalization()(z)))  # and this
    folded = folding.fold(model)
    assert sum(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers) == 2
    images = np.random.default_rng(0).uniform(0, 1, (5, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(folded(images), model(images), atol=1e-4)


def shaken_statistics(model):
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return model


def test_falls_back_to_the_model_itself(tiny_model):
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    def function(x):
        return x

    plain = tiny_model(batch_norm=False)
    for subject in (Subclassed(), function, plain):
        assert folding.fold(subject) is subject


def test_the_model_itself_is_untouched_and_its_later_weights_do_not_reach_the_copy(tiny_model, images):
    model = tiny_model()
    before, logits = model.get_weights(), np.array(model(images))
    folded = folding.fold(model)
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)
    model.set_weights([2 * weight for weight in before])
    np.testing.assert_allclose(folded(images), logits, atol=1e-4)


def test_folding_follows_the_variables(tiny_model, images):
    model = tiny_model()
    model.compile("adam", "mse")  # a clone would have an optimizer of its own, and variables
    live = folding.Folding(model)
    in_a_graph = tf.function(lambda x: live.bind()(x), autograph=False)
    assert live._copy is not None
    for scale in (1, 2, 3):
        model.set_weights([scale * np.abs(weight) + 0.1 for weight in model.get_weights()])
        logits = np.array(model(images))
        for outputs in (live.bind()(images), in_a_graph(images)):
            np.testing.assert_allclose(outputs, logits, atol=1e-5 * np.ptp(logits) + 1e-5)


def test_folding_holds_no_weights_and_a_graph_folds_outside_its_loop(tiny_model, images):
    model = tiny_model()
    live = folding.Folding(model)

    @tf.function(autograph=False)
    def loop(x):
        logits_fn = live.bind()
        return tf.while_loop(lambda *_: True, lambda x: [x + tf.reduce_sum(logits_fn(x))], [x], maximum_iterations=3)

    graph = loop.get_concrete_function(tf.cast(images, tf.float32)).graph.as_graph_def()
    (body,) = [function for function in graph.library.function if "while_body" in function.signature.name]
    assert "Conv2D" in {node.op for node in body.node_def}
    assert "Rsqrt" not in {node.op for node in body.node_def}
    assert "Rsqrt" in {node.op for node in graph.node}
    assert all(variable._value is None for variable in live._copy.variables)


def test_folding_in_low_precision(tiny_model, images):
    model = tiny_model(batch_norm=False)
    low = folding.Folding(model, "mixed_bfloat16").bind()(images)
    logits = np.array(model(images))
    difference = np.abs(tf.cast(low, tf.float32) - logits).max()
    assert 0 < difference < 0.05 * np.ptp(logits)
    for subject, precision, message in (
        (model, "bf16", "must be one of"),
        (lambda x: x, "mixed_bfloat16", "copied in"),
    ):
        with pytest.raises(ValueError, match=message):
            folding.Folding(subject, precision)


def test_folding_falls_back_to_the_model_itself(tiny_model, images):
    model = tiny_model(batch_norm=False)
    assert folding.Folding(model).bind().func is model


def test_only_what_is_keras_own_is_folded(foreign_model, images):
    for name, folds in (("own convolution", False), ("lora", False), ("normalization", True), ("derived", True)):
        model = foreign_model(name)
        folded = folding.fold(model)
        assert (folded is not model) == folds, name
        np.testing.assert_allclose(folded(images), model(images), atol=1e-4)


def test_a_batch_norm_before_which_the_output_is_used_by_a_function_stays(images):
    """In y + norm(y), the addition is not a layer."""
    inputs = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255)(inputs))
    z = keras.layers.BatchNormalization()(y) + y
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(z)))
    shaken_statistics(model)
    assert folding.fold(model) is model
    assert not folding.Folding(model).is_copy


def test_calls_are_counted_within_the_model(images):
    """Its layers may be called in other models too; a layer that this model calls twice is not folded."""
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(3, 3, padding="same")]
    layers += [keras.layers.BatchNormalization(), keras.layers.Flatten(), keras.layers.Dense(4)]
    grown = keras.Sequential([keras.Input((8, 8, 3))])
    for layer in layers:
        grown.add(layer)  # Keras calls all layers anew each time
    keras.Sequential([keras.Input((8, 8, 3)), *layers[:-1]])
    folded = folding.fold(shaken_statistics(grown))
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)
    np.testing.assert_allclose(folded(images), grown(images), atol=1e-4)

    scale, convolution, norm, flatten, dense = layers
    inputs = keras.Input((8, 8, 3))
    x = norm(convolution(scale(inputs)))
    for again in (convolution(x), keras.layers.BatchNormalization()(norm(x))):
        model = keras.Model(inputs, dense(flatten(again)))
        assert folding.fold(model) is model


def test_layers_that_are_not_folded_are_the_models_own_in_training(foreign_model, images):
    """So layers with an incomplete configuration, or layers that are adapted later, are attacked as they are."""
    images = tf.cast(images, tf.float32)
    for name in ("normalization", "derived", "forgetful"):
        model = foreign_model(name)
        live = folding.Folding(model)
        assert live.is_copy
        in_a_graph = tf.function(lambda x, live=live: live.bind()(x), autograph=False)
        for scale in (1, 3):
            model.layers[-1].kernel.assign(scale * model.layers[-1].kernel)
            for outputs in (live.bind()(images), in_a_graph(images)):
                np.testing.assert_allclose(outputs, model(images), rtol=1e-3, atol=1e-4)
        assert len(model.layers[0]._inbound_nodes) == 1  # the model itself is as it was


def test_giving_up_attacks_the_model_itself(tiny_model):
    live = folding.Folding(tiny_model())
    assert live.is_copy
    live.give_up()
    assert not live.is_copy
    assert live.bind().func is live._model


def test_models_within_models_in_low_precision(foreign_model, images):
    """Layers with the same name in both models are distinguished. Rescaling layers are shared, also in inner models."""
    inner = foreign_model("normalization")
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Dense(4, name=inner.layers[-1].name)(inner(inputs))
    outer = keras.Model(inputs, keras.layers.BatchNormalization(name=inner.layers[2].name)(x))
    for model in (outer, keras.Sequential([keras.Input((8, 8, 3)), inner])):
        low = tf.cast(folding.Folding(model, "mixed_bfloat16").bind()(tf.cast(images, tf.float32)), tf.float32)
        assert 0 < np.abs(low - model(images)).max() < 0.05 * np.ptp(model(images))
