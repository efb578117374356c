import numpy as np
import pytest

from keras_sat import activations, models
from keras_sat.models import blocks, resnet, wide_resnet

# Trainable parameters with 10 classes: published, or counted in RobustBench's own classes.
PARAMETERS = {
    ("WideResNet16_2", "trades"): 691_674,
    ("WideResNet16_2", "dm"): 691_674,
    ("WideResNet28_10", "trades"): 36_479_194,
    ("WideResNet34_10", "trades"): 46_160_474,
    ("PreActResNet18", "plain"): 11_171_146,
    ("PreActResNet18", "batch_norm"): 11_172_170,
    ("PreActResNet18", "dm"): 12_548_426,
}


# ResNet50, ResNet18 and PreActResNet18 in their forms, with fewer blocks and filters.
SMALLER = resnet.network("ResNet6", resnet.Spec(blocks.bottleneck, (1, 1), (8, 16)), "sat", "small", "torchvision")
SMALLER18 = resnet.network("ResNet5", resnet.Spec(blocks.basic, (1, 1), (8, 16)), "small", "torchvision")
PREACT = wide_resnet.network("PreActResNet6", wide_resnet.PREACT, (1, 1), 8, (8, 16))


@pytest.mark.parametrize(("name", "form"), PARAMETERS)
def test_parameter_counts_are_the_published_ones(name, form, without_weights):
    with without_weights():
        model = models.builder(name)(form=form)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == PARAMETERS[name, form]


@pytest.mark.parametrize(
    ("name", "form", "sites"),
    [("WideResNet16_1", "trades", 13), ("WideResNet10_2", "dm", 7), ("PreActResNet18", "plain", 16)]
    + [("PreActResNet18", form, 17) for form in ("batch_norm", "dm")],
)
def test_every_nonlinearity_follows_the_activation(name, form, sites):
    model = models.builder(name)(form=form, activation={"name": "parametric_softplus", "alpha": 3})
    chosen = [layer for layer in model.layers if isinstance(layer, activations.ParametricSoftplus)]
    assert len(chosen) == sites
    assert {layer.alpha for layer in chosen} == {3}


@pytest.mark.parametrize("size", [16, 33])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["trades", "dm"])
def test_any_size_and_channels(form, channels, size):
    model = models.WideResNet(10, 1, form, input_shape=(None, None, channels), classes=7)
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, channels)).astype(np.uint8)
    logits = model(images)
    assert (logits.shape, logits.dtype) == ((2, 7), "float32")


@pytest.mark.parametrize(
    ("build", "forms", "size"),
    [(models.builder("WideResNet10_1"), {"trades": 9, "dm": 9}, 33)]
    + [(models.builder("WideResNet10_1"), {"trades": 8, "dm": 8}, 32)]
    + [(models.PreActResNet18, {"plain": 5, "batch_norm": 5, "dm": 4}, 33)],
)
def test_sizes_of_the_feature_map(build, forms, size):
    """DeepMind's PreActResNet in PyTorch pads strided convolutions below and on the right alone."""
    for form, expected in forms.items():
        model = build(form=form, include_top=False, input_shape=(size, size, 3))
        assert model.output.shape[1:3] == (expected, expected)


def test_deepminds_form_pads_after_the_image_alone():
    strided = models.WideResNet(10, 1, "dm").get_layer("layer.1.block.0.conv_0")
    assert (strided.strides, strided.padding) == ((2, 2), "same")
    pad = models.PreActResNet18(form="dm").get_layer("layer_1.0.conv_2d_1_pad")
    assert pad.padding == ((0, 1), (0, 1))
    pad = models.WideResNet(10, 1, "trades").get_layer("block2.layer.0.conv1_pad")
    assert pad.padding == ((1, 1), (1, 1))


@pytest.mark.parametrize("depth_width", [(28, 0), (27, 10), (4, 1), (28.0, 10), (28, True), ("28", 10)])
def test_depth_and_width_that_there_are_not(depth_width):
    with pytest.raises(ValueError, match=r"depth must be 6 n \+ 4, such as 16, 28, 34 or 70"):
        models.WideResNet(*depth_width)


def test_names_of_builders():
    assert models.builder("WideResNet28_10") is models.WideResNet28_10
    assert models.builder("WideResNet10_1")(classes=3).name == "WideResNet10_1"
    with pytest.raises(ValueError, match="depth must be"):
        models.builder("WideResNet29_10")
    with pytest.raises(ValueError, match="form of WideResNet10_1 must be one of trades, dm. Received: 'deepmind'"):
        models.WideResNet(10, 1, form="deepmind")


@pytest.mark.parametrize(
    ("build", "forms"),
    [
        (models.builder("WideResNet10_1"), ("trades", "dm")),
        (PREACT, ("plain", "batch_norm")),
        (SMALLER18, ("small", "torchvision")),
        (SMALLER, ("sat", "torchvision", "small")),
    ],
)
def test_weights_of_one_form_are_refused_by_the_others(build, forms, tmp_path):
    for one in forms:
        path = tmp_path / f"{one}.weights.h5"
        build(form=one, classes=10, normalization=None).save_weights(path)
        for other in forms:
            options = {"form": other, "classes": 10, "normalization": None, "weights": path}
            if one == other:
                build(**options)
            else:
                with pytest.raises(ValueError, match="does not fit"):
                    build(**options)
