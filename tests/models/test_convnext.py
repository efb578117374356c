"""ConvNeXt. convnext/*.npz come from timm: a small network in evaluation mode, with known random weights.

Computed with timm and PyTorch 2.13, in float32 on a CPU. They hold the state dict, images of 38 x 45 pixels, logits,
and the gradient of the summed cross entropy of the labels 0 and 1 with respect to the images in 0..1. (The ConvStem is
that of Singh et al.; the other network sees the images normalized with ImageNet's mean and std.)
"""

import inspect
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from keras_sat import activations, losses, models
from keras_sat.attacks import value_and_gradient
from keras_sat.models import convnext, normalization

FILES = pathlib.Path(__file__).parent / "convnext"
# Trainable parameters with 1000 classes, counted in timm's networks; those with a ConvStem as Singh et al. build them.
PARAMETERS = {
    ("ConvNeXtTiny", "conv"): 28_627_432,
    ("ConvNeXtTiny", "patch"): 28_589_128,
    ("ConvNeXtSmall", "conv"): 50_261_992,
    ("ConvNeXtSmall", "patch"): 50_223_688,
    ("ConvNeXtBase", "conv"): 88_753_416,
    ("ConvNeXtBase", "patch"): 88_591_464,
    ("ConvNeXtLarge", "conv"): 198_134_680,
    ("ConvNeXtLarge", "patch"): 197_767_336,
}
DROP_RATES = {
    "ConvNeXtTiny": 0.1,
    "ConvNeXtSmall": 0.4,
    "ConvNeXtBase": 0.5,
    "ConvNeXtLarge": 0.5,
}  # Liu et al., table 5; Singh et al. train the "conv" form without
small = convnext.network("Small", convnext.Spec((1, 1, 2, 1), (8, 16, 16, 24), (4, 6, 8), 0.3))


@pytest.mark.parametrize(("name", "stem"), PARAMETERS)
def test_parameter_counts_and_drop_rates_are_the_published_ones(name, stem, without_weights):
    with without_weights():
        model = models.BUILDERS[name](stem=stem)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == PARAMETERS[name, stem]
    drops = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert max(drops, default=0) == pytest.approx(DROP_RATES[name] if stem == "patch" else 0)


@pytest.mark.parametrize("stem", ["conv", "patch"])
def test_it_computes_what_timm_computes(stem, tmp_path):
    file = np.load(FILES / f"{stem}.npz")
    entries = {name: file[name] for name in file.files if name not in ("images", "logits", "gradient")}
    save_file(entries, tmp_path / "model.safetensors")
    model = small(stem=stem, classes=5, input_shape=file["images"].shape[1:])
    models.pytorch.load(model, tmp_path / "model.safetensors")  # an entry is missing or left over if a name differs
    _, logits, gradient = value_and_gradient(
        model, losses.cross_entropy, tf.constant(file["images"], tf.float32), np.array([0, 1])
    )
    assert np.abs(logits - file["logits"]).max() <= 1e-5 * np.ptp(file["logits"])
    assert np.abs(255 * gradient - file["gradient"]).max() <= 1e-5 * np.ptp(file["gradient"])


@pytest.mark.parametrize(("stem", "sites"), [("conv", 3 + 5), ("patch", 5)])
def test_every_nonlinearity_follows_the_activation(stem, sites):
    model = small(stem=stem, activation={"name": "parametric_softplus", "alpha": 3})
    chosen = [layer for layer in model.layers if isinstance(layer, activations.ParametricSoftplus)]
    assert len(chosen) == sites
    assert {layer.alpha for layer in chosen} == {3}
    defaults = [layer.approximate for layer in small(stem=stem).layers if isinstance(layer, activations.GELU)]
    assert defaults == [False] * sites


def test_stochastic_depth_rises_over_the_blocks_and_drops_whole_blocks():
    drops = [layer for layer in small(stem="patch").layers if isinstance(layer, keras.layers.Dropout)]
    assert [layer.name for layer in drops] == [
        f"stages.{block}.drop_path" for block in ("1.blocks.0", "2.blocks.0", "2.blocks.1", "3.blocks.0")
    ]
    assert [layer.rate for layer in drops] == pytest.approx([0.075, 0.15, 0.225, 0.3])
    kept = drops[-1](np.ones((400, 2, 2, 3), np.float32), training=True).numpy().reshape(400, -1)
    assert set(np.ptp(kept, axis=1)) == {0.0}
    assert 0.6 < np.mean(kept > 0) < 0.8


def test_a_block_starts_nearly_as_its_input():
    scales = [layer.gamma.numpy() for layer in small().layers if isinstance(layer, convnext.LayerScale)]
    assert len(scales) == 5
    assert {value for scale in scales for value in scale} == {np.float32(1e-6)}


def test_each_kernel_draws_values_of_its_own():
    kernels = [weight.numpy() for weight in small().trainable_weights if weight.name == "kernel"]
    assert len({kernel.flat[0] for kernel in kernels}) == len(kernels)
    assert np.concatenate([kernel.ravel() for kernel in kernels]).std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("size", [32, 45])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stem", ["conv", "patch"])
def test_any_size_and_channels(stem, channels, size):
    model = small(stem=stem, input_shape=(None, None, channels), classes=7)
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, channels)).astype(np.uint8)
    assert (model(images).shape, model(images).dtype) == ((2, 7), "float32")


def test_without_the_head_it_ends_before_its_layer_norm():
    assert small(include_top=False, input_shape=(64, 64, 3)).output.shape == (None, 2, 2, 24)
    pooled = small(include_top=False, pooling="avg", input_shape=(64, 64, 3))
    assert pooled.output.shape == (None, 24)
    assert "head.norm" not in [layer.name for layer in pooled.layers]


def test_the_stem_is_an_argument_like_the_others(tmp_path):
    arguments = inspect.signature(models.ConvNeXtTiny).parameters
    assert arguments["stem"].default == "conv"
    assert "form" not in arguments
    assert "stem: the published variant" in inspect.getdoc(models.ConvNeXtTiny)
    options = {"input_shape": (32, 32, 3), "classes": 3, "normalization": None}
    path = tmp_path / "net.weights.h5"
    small(stem="patch", **options).save_weights(path)
    small(stem="patch", weights=path, **options)
    with pytest.raises(ValueError, match="does not fit"):
        small(stem="conv", weights=path, **options)
    with pytest.raises(ValueError, match="stem of Small must be one of conv, patch. Received: 'conv3'"):
        small(stem="conv3")
    with pytest.raises(TypeError, match="unexpected keyword argument 'form'"):
        small(form="conv")


def test_the_normalization_is_the_published_one():
    for stem, statistics in (("conv", (0.0, 1.0)), ("patch", normalization.NAMED["imagenet"])):
        layer = small(stem=stem).get_layer("normalization")
        assert (layer.mean, layer.std) == statistics


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match=r"32 x 32 pixels suffice. Received: \(28, 64\)"):
        models.ConvNeXtTiny(input_shape=(28, 64, 3))
