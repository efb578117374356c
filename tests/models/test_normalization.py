import keras
import numpy as np
import pytest

from keras_sat import models
from keras_sat.models import normalization

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3)).astype(np.uint8)


def network(shape=(8, 8, 3), **options):
    return models.WideResNet(10, 1, input_shape=shape, **options)


def applied(value, pixels):
    inputs = keras.Input(pixels.shape[1:])
    return keras.Model(inputs, normalization.apply(inputs, value))(pixels).numpy()


@pytest.mark.parametrize("name", normalization.NAMED)
def test_a_name_is_the_published_mean_and_std(name):
    mean, std = normalization.NAMED[name]
    np.testing.assert_allclose(applied(name, PIXELS), (PIXELS / 255 - np.array(mean)) / np.array(std), atol=1e-6)
    np.testing.assert_array_equal(applied(name, PIXELS), applied((list(mean), np.array(std)), PIXELS))
    grey = PIXELS[..., :1]
    np.testing.assert_allclose(applied(name, grey), (grey / 255 - np.mean(mean)) / np.mean(std), atol=1e-6)


def test_none_and_symmetric_and_numbers():
    np.testing.assert_allclose(applied(None, PIXELS), PIXELS / 255, atol=1e-7)
    np.testing.assert_allclose(applied((0.5, 0.5), PIXELS), PIXELS / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(applied((0.1, (0.2, 0.3, 0.4)), PIXELS), (PIXELS / 255 - 0.1) / [0.2, 0.3, 0.4], 1e-5)


@pytest.mark.parametrize(
    "value",
    [
        *("cifar", 0.5, (0.5, 0.0), (0.5, -1), ((0.1, 0.2), 0.3), (np.nan, 1.0), ("a", "b"), (0.1, 0.2, 0.3), {}, True),
        *((125.3, 63.0), ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)), (-1, 1), (0.5, 2.0)),
    ],
)
def test_what_is_no_normalization_is_refused(value):
    with pytest.raises(ValueError, match="normalization must be None, .* Received: "):
        network(normalization=value)


def test_a_file_of_weights_holds_its_normalization(tmp_path):
    path = tmp_path / "net.weights.h5"
    network(normalization="cifar10").save_weights(path)
    network(normalization=normalization.NAMED["cifar10"], weights=path)
    for other in ("cifar100", None, (0.5, 0.5), (0.4914, 0.2471)):
        with pytest.raises(ValueError, match="does not fit"):
            network(normalization=other, weights=path)
    path = tmp_path / "symmetric.weights.h5"
    network(normalization=(0.5, 0.5)).save_weights(path)
    network(normalization=(0.5, 0.5), weights=path)
    with pytest.raises(ValueError, match="does not fit"):
        network(normalization=None, weights=path)


def test_pixels_are_not_rounded_in_low_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network(normalization="cifar10")
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("normalization").compute_dtype == "float32"
    assert model.get_layer("conv1").compute_dtype == "bfloat16"


def test_the_shortest_text_is_exact_in_float32():
    mean = np.float32([0.49139977, 0.4821586, 0.4465309])
    short = normalization.shortest(mean, np.full((1, 3, 1, 1), 0.25, np.float32))
    assert short == ((0.49139977, 0.4821586, 0.4465309), 0.25)
    np.testing.assert_array_equal(np.float32(short[0]), mean)
    assert normalization.statistics(normalization.shortest(0.25, [0.2, 0.3, 0.4]), 3) == (0.25, (0.2, 0.3, 0.4))
    assert normalization.shortest([0, 0, 0], 1.0) is None


def test_a_model_is_saved_with_it(tmp_path):
    model = network(normalization="cifar100")
    model.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(model(images), again(images))
    assert normalization.of_model(again) == normalization.NAMED["cifar100"]
