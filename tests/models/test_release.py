"""Parity with the authors' own code: fixtures that it computed, on checkpoints with known random weights."""

import functools
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from keras_sat import models
from keras_sat.attacks import PGD, LinfBall
from keras_sat.models import release as release_lib
from keras_sat.models.efficientnet import STAGES

ANY_SIZE = (None, None, 3)
NETWORKS = {
    "Res50-silu": (models.ResNet50, "silu"),
    "Res50-smoothrelu": (models.ResNet50, "smooth_relu"),
    "efficientnet-b0": (models.EfficientNetB0, "silu"),
}


def build(name):
    builder, activation = NETWORKS[name]
    return builder(input_shape=ANY_SIZE, activation=activation)


@pytest.fixture(scope="module")
def written(release, write_checkpoint, tmp_path_factory):
    """Returns a function that returns the variables of a fixture and the prefix of their checkpoint."""
    folder = tmp_path_factory.mktemp("release")

    @functools.cache
    def write(name):
        variables = release(name).variables()
        return variables, write_checkpoint(folder / name, variables)

    return write


@pytest.fixture(scope="module")
def loaded(written):
    """Returns a function that returns the model into which the checkpoint of a fixture was loaded; not to change."""

    @functools.cache
    def load(name):
        model = build(name)
        release_lib.load(model, written(name)[1])
        return model

    return load


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_authors_code(name, release, loaded):
    fixture, model = release(name), loaded(name)
    error = np.abs(model.predict(fixture.images, verbose=0) - fixture.logits).max()
    assert error < 1e-4 * np.ptp(fixture.logits)


def resnet50(variables, images, activation):
    """Computes the release's ResNet-50 with TensorFlow operations, directly from the variables of the checkpoint."""

    def conv_bn(x, scope, strides=1, act=True):
        kernel = variables[f"{scope}/W"]
        pad = len(kernel) // 2 if strides == 2 else 0
        x = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        x = tf.nn.conv2d(x, kernel, strides, "VALID" if strides == 2 else "SAME")
        norm = [variables[f"{scope}/bn/{name}"] for name in ("mean/EMA", "variance/EMA", "beta", "gamma")]
        x = tf.nn.batch_normalization(x, *norm, 1.001e-5)
        return activation(x) if act else x

    x = conv_bn(images[..., ::-1] * (2 / 255) - 1, "conv0", strides=2)
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    for group, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            scope, strides = f"group{group}/block{block}", 2 if group and not block else 1
            y = conv_bn(conv_bn(x, f"{scope}/conv1"), f"{scope}/conv2", strides)
            shortcut = x if block else conv_bn(x, f"{scope}/convshortcut", strides, act=False)
            x = activation(shortcut + conv_bn(y, f"{scope}/conv3", act=False))
    return tf.reduce_mean(x, (1, 2)) @ variables["linear/W"] + variables["linear/b"]


def efficientnet_b0(variables, images, activation):
    """Computes the release's EfficientNet-B0 with TensorFlow operations."""

    def weight(name):
        value = variables[f"efficientnet-b0/{name}"]
        return value.reshape(-1) if value.ndim == 5 else value

    def norm(x, scope, number=0):
        scope = f"{scope}/tpu_batch_normalization{f'_{number}' if number else ''}"
        values = [weight(f"{scope}/{name}") for name in ("moving_mean", "moving_variance", "beta", "gamma")]
        return tf.nn.batch_normalization(x, *values, 1.001e-5)

    def conv(x, name, strides=1):
        return tf.nn.conv2d(x, weight(f"{name}/kernel"), strides, "SAME")

    x = activation(norm(conv(images * (2 / 255) - 1, "stem/conv2d", 2), "stem"))
    strides = [stage[2] if first else 1 for stage in STAGES for first in [True] + [False] * (stage[0] - 1)]
    for index, stride in enumerate(strides):
        scope, y, expands = f"blocks_{index}", x, int(index > 0)
        if expands:
            y = activation(norm(conv(y, f"{scope}/conv2d"), scope))
        kernel = weight(f"{scope}/depthwise_conv2d/depthwise_kernel")
        y = tf.nn.depthwise_conv2d(y, kernel, (1, stride, stride, 1), "SAME")
        y = activation(norm(y, scope, expands))
        gate = tf.reduce_mean(y, (1, 2), keepdims=True)
        gate = activation(conv(gate, f"{scope}/se/conv2d") + weight(f"{scope}/se/conv2d/bias"))
        y *= tf.sigmoid(conv(gate, f"{scope}/se/conv2d_1") + weight(f"{scope}/se/conv2d_1/bias"))
        y = norm(conv(y, f"{scope}/conv2d{'_1' if expands else ''}"), scope, expands + 1)
        x = x + y if stride == 1 and x.shape[-1] == y.shape[-1] else y
    x = tf.reduce_mean(activation(norm(conv(x, "head/conv2d"), "head")), (1, 2))
    return x @ weight("head/dense/kernel") + weight("head/dense/bias")


@pytest.mark.parametrize("size", [(64, 64), (63, 97), (90, 51), (33, 33)])
@pytest.mark.parametrize(("name", "reference"), [("Res50-silu", resnet50), ("efficientnet-b0", efficientnet_b0)])
def test_any_image_size_odd_ones_included(name, reference, size, release, written, loaded):
    fixture, model, variables = release(name), loaded(name), written(name)[0]
    images = tf.image.resize(fixture.images[:2], size)
    expected = reference(variables, images, tf.nn.silu)
    if size == (64, 64):  # the operations above are those of the authors
        np.testing.assert_allclose(expected, fixture.logits[:2], atol=1e-3)
    np.testing.assert_allclose(model(images), expected, atol=1e-4 * np.ptp(expected) + 1e-4)


def test_pgd_is_that_of_the_authors_code(loaded):
    model = loaded("Res50-silu")
    expected = np.load(pathlib.Path(__file__).parent / "release" / "pgd_Res50-silu.npz")
    attack = PGD(LinfBall(4), steps=3, random_start=False)
    adversarial = attack(model, expected["images"], expected["labels"])
    gradients = np.abs(expected["gradients_scaled"])
    sure = np.all(gradients > 1e-4 * gradients.max(), axis=0)  # elsewhere a sign may be rounding's
    assert np.mean(sure) > 0.5
    np.testing.assert_allclose(adversarial.numpy()[sure], expected["adversarial_pixels"][sure], atol=1e-3)


@pytest.fixture(scope="module")
def untrained():
    model = build("efficientnet-b0")
    return model, model.get_weights()


@pytest.fixture
def small(written, untrained):
    """The variables of the smallest fixture, and a model for them, with other weights."""
    model, weights = untrained
    model.set_weights(weights)
    return dict(written("efficientnet-b0")[0]), model


def test_training_checkpoints_and_other_builds_of_the_same_code(small, checkpoint, release):
    variables, model = small
    fixture = release("efficientnet-b0")
    other = {}
    for name, array in variables.items():
        flat = array.reshape(-1) if array.ndim == 5 else array
        other[name.replace("tpu_batch_normalization", "batch_normalization")] = flat
        other[f"{name}/RMSProp"] = other[f"{name}/RMSProp_1"] = other[f"{name}/Momentum"] = np.zeros(1, np.float32)
        other[f"{name}/ExponentialMovingAverage"] = np.zeros_like(array)
    other |= {"global_step": np.int64(7), "learning_rate": np.float32(0.1)}
    release_lib.load(model, checkpoint(other))
    np.testing.assert_allclose(model.predict(fixture.images[:2], verbose=0), fixture.logits[:2], atol=1e-3)


def test_moving_averages(small, checkpoint):
    variables, model = small
    suffix = release_lib.EMA
    averages = {name + suffix: array for name, array in variables.items()}
    both = averages | {name: np.zeros_like(array) for name, array in variables.items()}
    release_lib.load(model, checkpoint(both, "both"), ema=True)
    kernel = model.get_layer("stem").get_weights()[0]
    np.testing.assert_array_equal(kernel, variables["efficientnet-b0/stem/conv2d/kernel"])
    release_lib.load(model, checkpoint(both, "plain"))
    assert not model.get_layer("stem").get_weights()[0].any()
    release_lib.load(model, checkpoint(averages, "averages"))
    np.testing.assert_array_equal(model.get_layer("stem").get_weights()[0], kernel)


def spoil(variables, what):
    name = "efficientnet-b0/blocks_3/conv2d/kernel"
    if what == "missing":
        del variables[name]
    elif what == "left over":
        variables["efficientnet-b0/blocks_99/conv2d/kernel"] = np.zeros(3, np.float32)
    elif what == "of another shape":
        variables[name] = variables[name][..., :-1]
    else:
        variables[name] = variables[name].copy()
        variables[name].flat[5] = np.nan


@pytest.mark.parametrize("what", ["missing", "left over", "of another shape", "not finite"])
def test_what_does_not_fit_is_named_and_changes_nothing(what, small, checkpoint):
    variables, model = small
    spoil(variables, what)
    before = [weight.numpy() for weight in model.weights]
    with pytest.raises(ValueError, match=rf"1 {what} \(blocks_\d+/conv2d/kernel"):
        release_lib.load(model, checkpoint(variables))
    for old, weight in zip(before, model.weights):
        np.testing.assert_array_equal(old, weight.numpy())


def test_another_activation_or_network_is_refused(written, without_weights):
    _, prefix = written("Res50-smoothrelu")
    for network, activation, message in (
        (models.ResNet50, "silu", r"49 left over \(conv0/smoothrelu_beta, .*, \.\.\.\)"),
        (models.ResNet101, "smooth_relu", "306 missing"),
        (models.EfficientNetB0, "smooth_relu", "missing"),
    ):
        with without_weights():
            model = network(input_shape=ANY_SIZE, activation=activation)
        with pytest.raises(ValueError, match=message):
            release_lib.load(model, prefix)


def test_unreadable_checkpoints(small, checkpoint, tmp_path):
    variables, model = small
    with pytest.raises(ValueError, match="no readable checkpoint"):
        release_lib.load(model, tmp_path / "none")
    prefix = checkpoint(variables)
    data = pathlib.Path(f"{prefix}.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-10_000])
    with pytest.raises(ValueError, match="no readable checkpoint"):
        release_lib.load(model, prefix)
