import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat import preprocessing

LANDSCAPE = pathlib.Path(__file__).parent / "landscape"  # see CONTRIBUTING.md


@pytest.fixture(scope="module")
def reference():
    with np.load(LANDSCAPE / "landscape.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def jpeg():
    return tf.constant((LANDSCAPE / "landscape.jpg").read_bytes())


def test_the_padded_centre_crop_is_that_of_the_authors_code(jpeg, reference):
    """Rounded and cut off to 0..255, so up to half a grey level."""
    crop = preprocessing._decode(jpeg, 3, lambda shape: preprocessing._padded_centre(shape, 224))
    np.testing.assert_array_equal(crop, reference["efficientnet_crop_224"])
    ours = preprocessing.centre(jpeg, 224, 3, "padded")
    assert ours.dtype == tf.uint8
    expected = np.clip(reference["efficientnet_224"], 0, 255)
    assert np.max(np.abs(np.float32(ours) - expected)) <= 0.5 + 1e-3


def test_the_shortest_edge_is_nearly_that_of_opencv(reference):
    """The kernels differ (A = -0.5 and -0.75): the documented difference."""
    png = tf.constant((LANDSCAPE / "landscape.png").read_bytes())
    ours = np.float32(preprocessing.centre(png, 224, 3, "shortest_edge"))
    difference = np.abs(ours - np.float32(reference["resnet_224"]))
    print(f"shortest_edge: mean {difference.mean():.2f}, largest {difference.max():.0f} grey levels")
    assert difference.mean() < 1.0


def test_a_random_part_is_of_the_image_and_of_its_seed(jpeg):
    seeds = [tf.constant([0, number]) for number in range(20)]
    parts = [preprocessing.random_part(jpeg, 32, 3, seed).numpy() for seed in seeds]
    assert {(part.shape, part.dtype) for part in parts} == {((32, 32, 3), np.dtype(np.uint8))}
    np.testing.assert_array_equal(parts[3], preprocessing.random_part(jpeg, 32, 3, seeds[3]))
    assert len({part.tobytes() for part in parts}) == 20


def test_other_formats_give_the_same_part(jpeg):
    image = tf.io.decode_jpeg(jpeg)[:96, :120]
    png, bmp_like = tf.io.encode_png(image), tf.io.encode_jpeg(image, quality=100, chroma_downsampling=False)
    seed = tf.constant([4, 2])
    one, other = (np.float32(preprocessing.random_part(encoded, 48, 3, seed)) for encoded in (png, bmp_like))
    assert np.mean(np.abs(one - other)) < 2  # the same place, but for what JPEG loses


@pytest.mark.parametrize("layer", [keras.layers.RandAugment(), keras.layers.RandomContrast(0.9)], ids=lambda x: x.name)
def test_keras_layers_follow_the_seed_alone(layer, jpeg):
    image = tf.image.resize(tf.io.decode_jpeg(jpeg), (32, 32))
    made = [preprocessing.stateless(layer, tf.constant([0, number]), image).numpy() for number in (1, 1, 2, 3, 1)]
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[4])
    assert np.any(made[0] != made[2]) or np.any(made[0] != made[3])


def test_pixels_are_rounded_and_cut_off():
    values = preprocessing.to_uint8(tf.constant([-3.0, 0.4, 0.6, 254.6, 300.0]))
    np.testing.assert_array_equal(values, [0, 0, 1, 255, 255])
