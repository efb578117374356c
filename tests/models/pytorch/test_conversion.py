"""Parity with RobustBench's own classes: fixtures that they computed, on checkpoints with known random weights."""

import os
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from keras_sat import models
from keras_sat.models import folding, normalization, pytorch

ANY_SIZE = {"input_shape": (None, None, 3)}
NETWORKS = {
    "trades_wrn_16_2": ("WideResNet16_2", {"activation": "relu"}),
    "dm_wrn_16_2_swish": ("WideResNet16_2", {"form": "dm", "activation": "silu"}),
    "dm_preactresnet18_swish": ("PreActResNet18", {"form": "dm", "activation": "silu"}),
    "preactresnet18_plain": ("PreActResNet18", {"activation": "relu"}),
    "cifar_resnet18": ("ResNet18", {"activation": "relu"}),
    "torchvision_resnet18": ("ResNet18", {"form": "torchvision", "activation": "relu"} | ANY_SIZE),
    "torchvision_resnet50": ("ResNet50", {"form": "torchvision", "activation": "relu"} | ANY_SIZE),
    "convnext_t_cvst": ("ConvNeXtTiny", {"activation": {"name": "gelu", "approximate": False}} | ANY_SIZE),
}
SMALL = "dm_wrn_16_2_swish"


@pytest.fixture
def written(tmp_path, robustbench):
    """Returns a function that writes the checkpoint of a fixture, or changed arrays, and returns the path."""

    def write(name, change=lambda arrays: arrays):
        path = tmp_path / f"{name}.safetensors"
        save_file(change(robustbench(name).state_dict()), path)
        return path

    return write


def network(name=SMALL, **options):
    builder, own = NETWORKS[name]
    return models.builder(builder)(**own | options)


def loaded(name, path):
    builder, options = NETWORKS[name]
    return pytorch.build(models.builder(builder), path, **options)


def input_gradient(model, images, labels):
    """Returns the gradient of the summed cross entropy by the image in 0..1."""
    pixels = tf.constant(images, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        losses = keras.losses.sparse_categorical_crossentropy(labels, model(pixels, training=False), from_logits=True)
        loss = tf.reduce_sum(losses)
    return 255 * tape.gradient(loss, pixels).numpy()


def gradient_errors(model, fixture):
    """Returns, for each image, the largest difference from the fixture's gradient, as a share of its range.

    A ReLU whose input is 0 up to rounding may be on either side of its kink, and both gradients are right. So the
    image is also moved by up to 1e-4 of a pixel, and the least error counts.
    """
    rng, least = np.random.default_rng(0), np.inf
    for size in [0, 1e-5, *[1e-4] * 6]:
        moved = fixture.images + size * rng.uniform(-1, 1, fixture.images.shape)
        difference = input_gradient(model, moved, fixture.labels) - fixture.input_gradient
        least = np.minimum(least, np.abs(difference).max((1, 2, 3)) / np.ptp(fixture.input_gradient))
        if np.all(least < 1e-5):
            break
    return least


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_are_those_of_the_published_class(name, robustbench, written):
    fixture = robustbench(name)
    model = loaded(name, written(name))
    for each in (model, folding.fold(model)):
        error = np.abs(each.predict(fixture.images, verbose=0) - fixture.logits).max()
        assert error < 1e-5 * np.ptp(fixture.logits)
        assert np.all(gradient_errors(each, fixture) < 1e-5)


def test_classes_and_channels_are_those_of_the_checkpoint(written):
    def change(arrays):
        kernel = arrays["init_conv.weight"][:, :1]
        head = {"logits.weight": np.zeros((100, 128), np.float32), "logits.bias": np.zeros(100, np.float32)}
        return arrays | {"init_conv.weight": np.ascontiguousarray(kernel)} | head

    model = loaded(SMALL, written(SMALL, change))
    assert (model.input_shape, model.output_shape) == ((None, 32, 32, 1), (None, 100))


def spoiled(arrays, what):
    name = "layer.1.block.0.conv_1.weight"
    if what == "missing":
        del arrays[name]
    elif what == "left over":
        arrays["layer.1.block.7.conv_1.weight"] = arrays[name]
    elif what == "of another shape":
        arrays[name] = np.ascontiguousarray(arrays[name][:-1])
    elif what == "of another type":
        arrays[name] = arrays[name].astype(np.int8)
    elif what == "not finite":
        arrays[name].flat[5] = np.nan
    return arrays


PROBLEMS = ("missing", "left over", "of another shape", "of another type", "not finite")


@pytest.mark.parametrize("what", PROBLEMS)
def test_what_does_not_fit_is_named_and_changes_nothing(what, written):
    path, model = written(SMALL, lambda arrays: spoiled(arrays, what)), network()
    before = model.get_weights()
    with pytest.raises(ValueError, match=rf"1 {what} \(layer.1.block.\d.conv_1.weight"):
        pytorch.load(model, path)
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_values_that_float32_cannot_hold_are_not_finite(written):
    def change(arrays):
        return arrays | {"logits.bias": np.full(10, 1e300)}

    with pytest.raises(ValueError, match=r"1 not finite \(logits.bias\)"):
        pytorch.load(network(), written(SMALL, change))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_precisions_become_float32(dtype, written, robustbench):
    path = written(SMALL, lambda arrays: {name: array.astype(dtype) for name, array in arrays.items()})
    fixture, model = robustbench(SMALL), loaded(SMALL, path)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    np.testing.assert_allclose(model(fixture.images), fixture.logits, atol=0.01 * np.ptp(fixture.logits))


def test_blocks_that_no_forward_pass_uses_are_left_out(written, robustbench):
    def change(arrays):
        unused = {
            name.replace("block1", "sub_block1"): np.array(2 * array)
            for name, array in arrays.items()
            if "block1" in name
        }
        return arrays | unused

    name = "trades_wrn_16_2"
    fixture, model = robustbench(name), loaded(name, written(name, change))
    np.testing.assert_allclose(model(fixture.images), fixture.logits, atol=1e-5 * np.ptp(fixture.logits))
    with pytest.raises(ValueError, match=r"1 left over \(sub_block1.layer.0.bn9.weight\)"):
        loaded(name, written(name, lambda arrays: arrays | {"sub_block1.layer.0.bn9.weight": np.ones(4, np.float32)}))
    with pytest.raises(ValueError, match=r"1 left over \(bn9.num_batches_tracked\)"):
        loaded(name, written(name, lambda arrays: arrays | {"bn9.num_batches_tracked": np.array(3)}))


def test_another_normalization_is_refused(written):
    path = written("torchvision_resnet18")
    with pytest.raises(ValueError, match=r"build it with normalization=\(\(0.485, 0.456, 0.406\), \(0.229"):
        pytorch.load(network("torchvision_resnet18", normalization=None), path)
    pytorch.load(network("torchvision_resnet18", normalization="imagenet"), path)


def test_without_a_normalization_that_of_the_checkpoint_is_taken(written, robustbench):
    fixture = robustbench("torchvision_resnet18")

    def change(arrays):
        return arrays | {"normalize.mean": np.full((1, 3, 1, 1), 0.25, np.float32)}

    model = loaded("torchvision_resnet18", written("torchvision_resnet18", change))
    assert normalization.same(normalization.of_model(model)[0], 0.25)
    assert not np.allclose(model(fixture.images), fixture.logits, atol=1e-3)
    for mean in (125.0, -1.0):  # of pixels 0..255, or of no image

        def change(arrays, mean=mean):
            return arrays | {"normalize.mean": np.full((1, 3, 1, 1), mean, np.float32)}

        with pytest.raises(ValueError, match=r"Divide values for pixels 0..255 by 255"):
            loaded("torchvision_resnet18", written("torchvision_resnet18", change))


def test_the_counter_of_averaged_weights_is_left_out(written, robustbench):
    def change(arrays):
        return {f"module.{name}": array for name, array in arrays.items()} | {"n_averaged": np.array(7)}

    fixture, model = robustbench(SMALL), loaded(SMALL, written(SMALL, change))
    np.testing.assert_allclose(model(fixture.images), fixture.logits, atol=1e-5 * np.ptp(fixture.logits))


def test_another_form_depth_or_network_is_refused(written):
    path = written(SMALL)
    for model in (
        models.WideResNet(16, 2),
        models.WideResNet(22, 2, "dm"),
        models.WideResNet(16, 1, "dm"),
        models.PreActResNet18(form="dm"),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            pytorch.load(model, path)
    with pytest.raises(ValueError, match="ResNet8 is in a form that PyTorch's checkpoints do not have"):
        pytorch.load(models.ResNet8(), path)


@pytest.mark.parametrize("name", ["trades_wrn_16_2", SMALL, "preactresnet18_plain", "convnext_t_cvst"])
def test_saving_returns_the_checkpoint(name, written, robustbench, tmp_path):
    path = tmp_path / "again.safetensors"
    pytorch.save(loaded(name, written(name)), path)
    stored = load_file(path)
    expected = {key: array for key, array in robustbench(name).state_dict().items() if "num_batches" not in key}
    assert set(stored) == set(expected)
    for entry, array in expected.items():
        np.testing.assert_array_equal(stored[entry], array)


def test_a_saved_file_holds_its_normalization(tmp_path):
    path = tmp_path / "net.safetensors"
    pytorch.save(models.WideResNet(10, 1, "dm", normalization="cifar100"), path)
    pytorch.load(models.WideResNet(10, 1, "dm", normalization=normalization.NAMED["cifar100"]), path)
    with pytest.raises(ValueError, match="is of a network that normalizes images with"):
        pytorch.load(models.WideResNet(10, 1, "dm"), path)
    for given in (None, (0.5, 0.5), (0.25, 0.5)):
        path = tmp_path / f"{given}.safetensors"
        pytorch.save(models.WideResNet(10, 1, "dm", normalization=given), path)
        with pytest.raises(ValueError, match=re.escape(f"build it with normalization={given}.")):
            pytorch.load(models.WideResNet(10, 1, "dm"), path)
        model = pytorch.build(models.builder("WideResNet10_1"), path, form="dm", activation="silu")
        assert normalization.shortest(*normalization.of_model(model)) == given


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="must end in .safetensors"):
        pytorch.save(models.WideResNet(10, 1), tmp_path / "net.pt")
    with pytest.raises(ValueError, match="is in a form that PyTorch's checkpoints do not have"):
        pytorch.save(models.ResNet8(), tmp_path / "net.safetensors")
    model = models.WideResNet(10, 1)
    model.get_layer("fc").bias.assign(np.full(10, np.inf))
    with pytest.raises(ValueError, match=r"cannot be saved: 1 not finite \(fc.bias\)"):
        pytorch.save(model, tmp_path / "net.safetensors")
    assert os.listdir(tmp_path) == []
