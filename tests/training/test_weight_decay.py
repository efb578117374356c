import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sat
from keras_sat.attacks import PGD, LinfBall
from keras_sat.training import AdversarialModel, decay_weights, distribution

RATE, MOMENTUM, DECAY = 0.2, 0.9, 0.05
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DECAYING = {  # of the tiny model: kernel and bias, gamma and beta, kernel and bias
    "kernels": [1, 0, 0, 0, 1, 0],
    "all": [1, 1, 1, 1, 1, 1],
    "all_but_batch_norm": [1, 1, 0, 0, 1, 1],
    "all_but_biases": [1, 0, 0, 0, 1, 0],
}


def gradients(model, images, labels):
    with tf.GradientTape() as tape:
        loss = CROSS_ENTROPY(labels, model(tf.cast(images, tf.float32), training=True))
    return [np.float64(g) for g in tape.gradient(loss, [v.value for v in model.trainable_variables])]


def values(model):
    return [np.float64(variable) for variable in model.trainable_variables]


@pytest.mark.parametrize("nesterov", [False, True], ids=["momentum", "nesterov"])
@pytest.mark.parametrize("on", DECAYING)
def test_sgd_decays_as_torch(on, nesterov, tiny_model, images, labels):
    """torch.optim.SGD: g += weight_decay w; buffer = momentum buffer + g; w -= rate (g + momentum buffer | buffer)."""
    model, optimizer = tiny_model(), keras.optimizers.SGD(RATE, momentum=MOMENTUM, nesterov=nesterov)
    for variable in model.trainable_variables:  # biases and shifts of 0 would show no decay
        variable.assign_add(0.3 * tf.ones(variable.shape))
    decay_weights(model, optimizer, DECAY, on=on)
    trainer = AdversarialModel(model, PGD(LinfBall(0), steps=1))
    trainer.compile(optimizer, CROSS_ENTROPY, run_eagerly=True)
    buffers = [0.0] * len(DECAYING[on])
    for _ in range(2):
        before, descent = values(model), gradients(model, images, labels)
        trainer.train_on_batch(images, labels)
        for place, (w, g, decays) in enumerate(zip(before, descent, DECAYING[on])):
            g = g + DECAY * decays * w
            buffers[place] = MOMENTUM * buffers[place] + g
            step = g + MOMENTUM * buffers[place] if nesterov else buffers[place]
            np.testing.assert_allclose(values(model)[place], w - RATE * step, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("on", "strategy"), [*((on, "none") for on in DECAYING), ("kernels", "mirrored")])
def test_adamw_decays_the_weights_themselves(on, strategy, tiny_model):
    """torch.optim.AdamW: w -= rate weight_decay w, then Adam's step, which is 0 for a gradient of 0."""
    strategy = distribution.strategy(strategy)
    with strategy.scope():
        model, optimizer = tiny_model(), keras.optimizers.AdamW(RATE)
        decay_weights(model, optimizer, DECAY, on=on)
        optimizer.build(model.trainable_variables)
    for variable in model.trainable_variables:
        variable.assign_add(0.3 * tf.ones(variable.shape))
    before = values(model)
    zeros = [tf.zeros(variable.shape) for variable in model.trainable_variables]
    strategy.run(tf.function(lambda: optimizer.apply(zeros, model.trainable_variables)))
    for after, w, decays in zip(values(model), before, DECAYING[on]):
        np.testing.assert_allclose(after, w * (1 - RATE * DECAY * decays), rtol=1e-6)


@pytest.mark.parametrize("name", ["ConvNeXtTiny", "EfficientNetB0"])
def test_kernels_are_what_has_two_dimensions(name):
    """Depthwise kernels decay; the layer scale of ConvNeXt, and the scale and shift of norms, do not. So in timm."""
    model = getattr(keras_sat.models, name)(classes=3, input_shape=(32, 32, 3))
    decay_weights(model, keras.optimizers.SGD(0.1), DECAY)
    decaying = {v.path for v in model.trainable_variables if v.regularizer is not None}
    depthwise = {layer.kernel.path for layer in model.layers if isinstance(layer, keras.layers.DepthwiseConv2D)}
    assert depthwise
    assert depthwise < decaying
    assert {path.rpartition("/")[2] for path in decaying} <= {"kernel"}
    rest = {v.path.rpartition("/")[2] for v in model.trainable_variables} - {"kernel"}
    assert rest == {"bias", "gamma", "beta"}


def test_refusals(tiny_model):
    model = tiny_model()
    with pytest.raises(
        ValueError, match="on must be one of kernels, all, all_but_batch_norm, all_but_biases. Received: 'biases'"
    ):
        decay_weights(model, keras.optimizers.SGD(), DECAY, on="biases")
    with pytest.raises(ValueError, match="weight_decay must be >= 0"):
        decay_weights(model, keras.optimizers.SGD(), -1.0)
    with pytest.raises(ValueError, match="decays weights already"):
        decay_weights(model, keras.optimizers.SGD(weight_decay=0.1), DECAY)
    built = keras.optimizers.SGD()
    built.build(model.trainable_variables)
    with pytest.raises(ValueError, match="was built before"):
        decay_weights(model, built, DECAY)
