import numpy as np
import pytest
import tensorflow as tf

from keras_sat.attacks import PGD, LinfBall
from keras_sat.evaluation import Corruption, evaluate
from keras_sat.evaluation.corruptions import SEVERITIES


def smooth_images():
    """Smooth grey images with a disc. Corruptions are made for photographs, which are smooth, not for noise."""
    y, x = np.mgrid[:24, :24] / 24
    image = 255 * np.stack([x, y, ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1) * 0.8 + 0.1], -1)
    return np.stack([image, image[::-1], image[:, ::-1]]).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SEVERITIES)
def test_more_severe_is_farther_from_the_image(name, channels):
    images = smooth_images()[..., :channels]
    errors = []
    for severity in (1, 3, 5):
        corrupted = Corruption(name, severity)(None, images, None, seed=1).numpy()
        assert corrupted.shape == images.shape
        assert corrupted.min() >= 0
        assert corrupted.max() <= 255
        errors.append(np.mean((corrupted - images) ** 2))
    assert 0 < errors[0] < errors[1] < errors[2]


def test_known_values():
    images = smooth_images().astype(np.float32)
    mean = images.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(Corruption("contrast", 3)(None, images, None), mean + 0.2 * (images - mean), atol=1e-3)
    grey = images[..., :1]
    np.testing.assert_allclose(Corruption("brightness", 1)(None, grey, None), np.clip(grey + 25.5, 0, 255), atol=1e-3)
    flat = np.full((2, 64, 64, 3), 128, np.float32)
    noise = Corruption("gaussian_noise", 2)(None, flat, None, seed=3).numpy() - 128
    assert noise.std() == pytest.approx(0.12 * 255, rel=0.03)
    salt = Corruption("impulse_noise", 4)(None, flat, None, seed=3).numpy()
    assert np.mean(salt != 128) == pytest.approx(0.17, rel=0.05)


def test_they_are_rows_that_count_all_images(tiny_model, images):
    model = tiny_model()
    labels = np.argmax(model(Corruption("contrast", 5)(None, images, None)), -1)  # right when corrupted, of all images
    report = evaluate(model, (images, labels), [Corruption("contrast", 5), PGD(LinfBall(1), steps=1)], progress=False)
    assert report["contrast-5"].correct == 8
    assert report["contrast-5"].settings == {"corruption": "contrast", "severity": 5, "bounds": (0.0, 255.0)}
    assert report["clean"].correct < 8


def test_an_examples_noise_is_its_own():
    images, seeds = smooth_images(), tf.constant([[0, 4], [0, 5], [0, 6]])
    together = Corruption("gaussian_noise")(None, images, None, seeds)
    alone = Corruption("gaussian_noise")(None, images[1:2], None, seeds[1:2])
    np.testing.assert_array_equal(together[1], alone[0])


def test_refusals():
    with pytest.raises(ValueError, match="gaussian_noise.*Received: 'fog'"):
        Corruption("fog")
    with pytest.raises(ValueError, match="1..5. Received: 6"):
        Corruption("contrast", 6)
    with pytest.raises(ValueError, match="bounds must be two numbers"):
        Corruption("contrast", bounds=(1, 0))


def test_images_of_another_range_are_no_images(images):
    with pytest.raises(ValueError, match="must lie within the bounds"):
        Corruption("contrast")(None, images.astype(np.float32) - 100, None)
    with pytest.warns(UserWarning, match=r"bounds=\(0, 1\)"):
        Corruption("contrast")(None, images / 255, None)


def test_bounds_of_each_channel(images):
    low, high = np.array([-2.0, -1.0, 0.0]), np.array([2.0, 1.0, 3.0])
    scaled = (low + images / 255 * (high - low)).astype(np.float32)
    ours, pixels = (
        Corruption("contrast", bounds=b)(None, x, None) for b, x in (((low, high), scaled), ((0, 255), images))
    )
    np.testing.assert_allclose((ours - low) / (high - low) * 255, pixels, atol=1e-3)
