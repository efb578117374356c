"""Every family of networks, in every published variant, through what the package does with a network."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat import deployed, losses, models
from keras_sat.attacks import PGD, LinfBall, agreement, value_and_gradient
from keras_sat.export import export_litert, export_saved_model, load_for_fine_tuning
from keras_sat.models import blocks, classifier, convnext, folding, resnet, wide_resnet
from keras_sat.training import AWP, TRADES, AdversarialModel

SHAPE = (16, 16, 3)
PREACT = wide_resnet.network("PreActResNet6", wide_resnet.PREACT, (1, 1), 8, (8, 16))
RESNET = resnet.network("ResNet6", resnet.Spec(blocks.basic, (1, 1), (8, 16)), "sat", "small", "torchvision")
CONVNEXT = convnext.network("ConvNeXtSmaller", convnext.Spec((1, 2), (16, 32), (8, 12, 16), 0.3))
# {network: (its builder, the number of batch norms that cannot be folded, for they follow no convolution)}
NETWORKS = {
    "WideResNet trades": (functools.partial(models.WideResNet, 10, 1, "trades"), 4),
    "WideResNet dm": (functools.partial(models.WideResNet, 10, 1, "dm"), 4),
    "PreActResNet plain": (functools.partial(PREACT, form="plain", normalization="cifar100"), 2),
    "PreActResNet batch_norm": (functools.partial(PREACT, form="batch_norm"), 3),
    "PreActResNet dm": (functools.partial(PREACT, form="dm"), 3),
    "ResNet sat": (functools.partial(RESNET, form="sat"), 0),
    "ResNet small": (functools.partial(RESNET, form="small"), 0),
    "ResNet torchvision": (functools.partial(RESNET, form="torchvision"), 0),
    "ConvNeXt conv": (functools.partial(CONVNEXT, stem="conv"), 0),
    "ConvNeXt patch": (functools.partial(CONVNEXT, stem="patch"), 0),
}
FAMILIES = ("WideResNet dm", "PreActResNet batch_norm", "ResNet torchvision", "ConvNeXt conv")
of_each_family = pytest.mark.parametrize("name", FAMILIES)


def build(name):
    """Returns a network with random weights like those of a trained one: no mean is 0, no variance or factor is 1."""
    keras.utils.set_random_seed(0)
    model, rng = NETWORKS[name][0](input_shape=SHAPE, classes=4), np.random.default_rng(0)
    for layer in model.layers:
        for weight in layer.weights:
            fan_in = np.prod(weight.shape[: 2 if isinstance(layer, keras.layers.DepthwiseConv2D) else -1])
            if weight.name == "kernel":
                weight.assign(rng.normal(0, 1.2 / np.sqrt(fan_in), weight.shape))
            elif weight.name in ("gamma", "moving_variance"):
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
            else:
                weight.assign(rng.normal(0, 0.2, weight.shape))
    return model


def pixels(number, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, *SHAPE)).astype(np.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_norms_are_folded_where_they_follow_a_convolution(name):
    model = build(name)
    folded = folding.fold(model)
    kept = sum(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)
    assert kept == NETWORKS[name][1]
    assert (folded is model) == name.startswith("ConvNeXt")
    images, labels = tf.cast(pixels(4), tf.float32), tf.constant([0, 1, 2, 3])
    for ours, theirs in zip(*(value_and_gradient(m, losses.margin, images, labels) for m in (model, folded))):
        assert np.abs(ours - theirs).max() <= 1e-4 * np.ptp(theirs)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@of_each_family
def test_the_attacked_copy_in_low_precision_is_the_same_network(name, precision):
    model, images = build(name), tf.cast(pixels(8), tf.float32)
    for copy in (folding.Folding(model, precision).bind(), classifier.in_precision(model, precision)):
        assert agreement.difference(model, copy, images, (0.02, 0.1)) is None
        assert agreement.difference(model, copy, images, (1e-5, 1.0))  # it does compute in low precision


@of_each_family
def test_a_step_of_training_moves_every_weight(name):
    model = build(name)
    before = [weight.numpy() for weight in model.trainable_weights]
    trainer = AdversarialModel(
        model,
        PGD(LinfBall(8), steps=1),
        objective=TRADES(),
        weight_perturbation=AWP(),
        attack_precision="mixed_bfloat16",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.SGD(0.1), loss)
    assert np.isfinite(trainer.train_on_batch(pixels(8), np.arange(8) % 4, return_dict=True)["loss"])
    same = [w.path for w, old in zip(model.trainable_weights, before) if np.array_equal(w.numpy(), old)]
    assert same == []


@of_each_family
def test_exported_fine_tuned_and_in_int8(name, tmp_path):
    model, images = build(name), pixels(16)
    logits = model(images).numpy()
    export_saved_model(model, tmp_path / "saved", signatures=[])
    again = load_for_fine_tuning(tmp_path / "saved")
    np.testing.assert_allclose(again(images), logits, atol=1e-5 * np.ptp(logits))
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    assert load_for_fine_tuning(tmp_path / "saved", classes=7).output.shape == (None, 7)
    pytest.importorskip("ai_edge_litert")
    export_litert(tmp_path / "saved", tmp_path / "small.tflite", pixels(64, seed=1))
    difference = deployed.load(tmp_path / "small.tflite")(images) - logits
    assert 0 < np.std(difference) < 0.15 * np.std(logits)
