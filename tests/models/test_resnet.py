import keras
import numpy as np
import pytest

from keras_sat import activations, models

# Trainable parameters at 1000 classes and 224 x 224 x 3; those of the small ones at 10 classes and 32 x 32 x 3.
# ResNet-50/101/152 and ResNeXt-50 32x4d: He et al., Xie et al. (and torchvision); ResNet-18 and -20 for small images:
# the CIFAR networks with projection shortcuts; the others: added up over the variables of the authors' release.
PARAMETERS = {
    "ResNet50": 25_557_032,
    "ResNet101": 44_549_160,
    "ResNet152": 60_192_808,
    "ResNeXt50_32x4d": 25_028_904,
    "ResNeXt50_32x8d": 48_021_800,
    "ResNeXt152_32x8d": 122_372_392,
    "ResNet18": 11_173_962,
    "ResNet20": 272_474,
}
SMALL = ("ResNet8", "ResNet18", "ResNet20")


def build(name, **options):
    return models.BUILDERS[name](**({"classes": 10} if name in SMALL else {}), **options)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name, without_weights):
    with without_weights():
        model = build(name)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "sites"), [("ResNet50", 49), ("ResNeXt50_32x4d", 49), ("ResNet18", 17), ("ResNet20", 19)]
)
def test_every_nonlinearity_follows_the_activation(name, sites):
    model = build(name, activation={"name": "parametric_softplus", "alpha": 3})
    chosen = [layer for layer in model.layers if isinstance(layer, activations.ParametricSoftplus)]
    assert len(chosen) == sites
    assert {layer.alpha for layer in chosen} == {3}
    others = [getattr(layer, "activation", None) for layer in model.layers]
    assert set(others) <= {None, keras.activations.linear}
    assert not any(isinstance(layer, (keras.layers.Activation, keras.layers.ReLU)) for layer in model.layers)


def test_smooth_relu_has_a_beta_for_each_site():
    betas = [w for w in build("ResNet50", activation="smooth_relu").trainable_weights if w.name == "root_beta"]
    assert len(betas) == 49
    assert {beta.shape for beta in betas} == {(1,)}


@pytest.mark.parametrize("size", [32, 33, 47])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["ResNet8", "ResNet20", "ResNet50"])
def test_any_size_and_channels_and_pixels_of_any_type(name, size, channels):
    model = build(name, input_shape=(None, None, channels))
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, channels)).astype(np.uint8)
    logits = model(images)
    assert logits.shape == (2, 1000 if name == "ResNet50" else 10)
    assert logits.dtype == "float32"
    np.testing.assert_allclose(model(images.astype(np.float32)), logits)


def test_the_stride_2_output_sizes_and_the_padding_are_the_releases():
    model = build("ResNet50", include_top=False, input_shape=(63, 63, 3))
    assert model.get_layer("conv0").output.shape[1] == 32  # fixed (3, 3) padding, then valid
    assert model.get_layer("pool0").output.shape[1] == 16  # SAME
    assert model.output.shape[1:] == (2, 2, 2048)
    # SAME would pad an even size unevenly: the fixed padding is one more on the left.
    conv = model.get_layer("group1_block0_conv2")
    assert (conv.padding, conv.strides) == ("valid", (2, 2))


def test_a_block_starts_as_its_shortcut():
    gammas = {w.path: w.numpy() for w in build("ResNet50").trainable_weights if w.name == "gamma"}
    zero = {path.split("/")[0] for path, gamma in gammas.items() if not gamma.any()}
    assert zero == {f"group{g}_block{b}_conv3_bn" for g, size in enumerate((3, 4, 6, 3)) for b in range(size)}


def test_heads():
    assert build("ResNet20", include_top=False).output.shape == (None, 8, 8, 64)
    assert build("ResNet20", include_top=False, pooling="avg").output.shape == (None, 64)
    assert build("ResNet20", include_top=False, pooling="max").output.shape == (None, 64)
    model = build("ResNet20", classifier_activation="softmax")
    np.testing.assert_allclose(np.sum(model(np.zeros((2, 32, 32, 3))), -1), 1, rtol=1e-5)


def test_builds_on_a_tensor():
    inputs = keras.Input((16, 16, 3), name="pixels")
    model = build("ResNet8", input_tensor=keras.layers.RandomFlip()(inputs))
    assert model.inputs[0] is inputs
    assert any(isinstance(layer, keras.layers.RandomFlip) for layer in model.layers)


def test_mixed_precision_keeps_pixels_and_logits_in_float32():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build("ResNet8")
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("rescaling").compute_dtype == model.get_layer("linear").compute_dtype == "float32"
    assert model.get_layer("conv0").compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_shape": (3, 32, 32)}, "1 or 3 channels"),
        ({"input_shape": (32, 32)}, "1 or 3 channels"),
        ({"input_tensor": np.zeros((1, 32, 32, 3))}, "Keras tensor"),
        ({"pooling": "mean"}, "pooling"),
        ({"classes": 0}, "classes"),
        ({"classifier_activation": "sigmoid"}, "classifier_activation"),
        ({"activation": "swich"}, "Known are"),
        ({"weights": "imagenet"}, "weights.h5"),
        ({"weights": "sat-imagenet"}, "no weights .* for ResNet8; there are for EfficientNetB0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        models.ResNet8(**options)


def test_signature_and_help():
    assert models.ResNet50.__name__ == "ResNet50"
    assert "ResNet50" in models.ResNet50.__doc__
    assert models.ResNet8(name="mine").name == "mine"


def test_each_model_draws_its_own_weights_and_a_seed_repeats_them():
    def weights(seed):
        keras.utils.set_random_seed(seed)
        return [weight.numpy() for weight in build("ResNet8").trainable_weights]

    first, again, other = weights(0), weights(0), weights(1)
    for one, same, different in zip(first, again, other):
        np.testing.assert_array_equal(one, same)
        if one.ndim > 1:
            assert np.any(one != different)
