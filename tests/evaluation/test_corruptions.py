import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_sat.attacks import PGD, LinfBall
from keras_sat.evaluation import AttackResult, Corruption, RobustnessReport, corruptions, distortions, evaluate
from keras_sat.evaluation.corruptions import SEVERITIES


def smooth_images():
    """Smooth grey images with a disc. Corruptions are made for photographs, which are smooth, not for noise."""
    y, x = np.mgrid[:24, :24] / 24
    image = 255 * np.stack([x, y, ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1) * 0.8 + 0.1], -1)
    return np.stack([image, image[::-1], image[:, ::-1]]).astype(np.uint8)


@pytest.mark.parametrize("benchmark", SEVERITIES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SEVERITIES["ImageNet-C"])
def test_more_severe_is_farther_from_the_image(name, channels, benchmark):
    images = smooth_images()[..., :channels]
    errors = []
    for severity in (1, 5):
        corrupted = Corruption(name, severity, severities=benchmark)(None, images, None, seed=1).numpy()
        assert corrupted.shape == images.shape
        assert corrupted.min() >= 0
        assert corrupted.max() <= 255
        errors.append(np.mean((corrupted - images) ** 2))
    assert errors[0] > 0
    # The authors' elastic transform moves farther, and then less far but more roughly.
    assert errors[0] < errors[1] or name == "elastic_transform"


def test_known_values():
    images = smooth_images().astype(np.float32)
    mean = images.mean((1, 2), keepdims=True)

    def corrupted(name, severity, images=images, table="ImageNet-C"):
        return Corruption(name, severity, severities=table)(None, images, None, seed=3).numpy()

    np.testing.assert_allclose(corrupted("contrast", 3), mean + 0.2 * (images - mean), atol=1e-3)
    np.testing.assert_allclose(
        corrupted("contrast", 3, table=None), mean + 0.4 * (images - mean), atol=1e-3
    )  # small: CIFAR's
    grey = images[..., :1]
    np.testing.assert_allclose(corrupted("brightness", 1, grey), np.clip(grey + 25.5, 0, 255), atol=1e-3)
    hue, saturation, value = tf.unstack(tf.image.rgb_to_hsv(images / 255), axis=-1)
    brighter = 255 * tf.image.hsv_to_rgb(tf.stack([hue, saturation, tf.minimum(value + 0.3, 1)], -1))
    np.testing.assert_allclose(corrupted("brightness", 3), brighter, atol=1e-2)
    flat = np.full((2, 64, 64, 3), 128, np.float32)
    assert (corrupted("gaussian_noise", 2, flat) - 128).std() == pytest.approx(0.12 * 255, rel=0.03)
    assert np.mean(corrupted("impulse_noise", 4, flat) != 128) == pytest.approx(0.17, rel=0.05)
    photons = corrupted("shot_noise", 1, flat) / 255 * 60  # whole numbers, of variance = mean
    np.testing.assert_allclose(photons, np.round(photons), atol=1e-3)
    assert photons.var() == pytest.approx(60 * 128 / 255, rel=0.05)
    for blur in ("gaussian_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"):  # keep one colour
        np.testing.assert_allclose(corrupted(blur, 5, flat), flat, atol=1e-3, err_msg=blur)


def test_pillows_own():
    levels = smooth_images()
    picture = Image.fromarray(levels[0])
    small = picture.resize((12, 12), Image.Resampling.BOX).resize((24, 24), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=15)
    for name, expected, severity in (("pixelate", small, 2), ("jpeg_compression", Image.open(file), 3)):
        ours = Corruption(name, severity, severities="ImageNet-C")(None, levels, None)[0]
        np.testing.assert_allclose(ours, np.asarray(expected, np.float32), atol=1e-3)


def test_blurs_of_a_point_and_of_a_ramp():
    """Their kernels: the Gaussian, the disk, half a Gaussian along a line; and the enlargement of a ramp."""
    random = np.random.default_rng(0)
    point = np.zeros((41, 41, 1))
    point[20, 20] = 1
    squares = (np.arange(41) - 20) ** 2
    gauss = np.exp(-squares / (2 * 2**2)) * (squares <= 8**2)
    gauss /= gauss.sum()
    np.testing.assert_allclose(distortions.gaussian_blur(point, 2)[..., 0], np.outer(gauss, gauss), atol=1e-9)
    disk = distortions.defocus_blur(point, (3, 1e-3), random)[..., 0]
    np.testing.assert_allclose(disk, (squares[:, None] + squares <= 9) / 29, atol=1e-9)
    line = distortions.motion_blur(point, (10, 3), random)[..., 0]
    weights = np.exp(-(np.arange(21) ** 2) / (2 * 3**2))
    np.testing.assert_allclose(np.sort(line[line > 0])[::-1], weights[: np.sum(line > 0)] / weights.sum(), rtol=1e-9)
    ramp = np.linspace(0, 1, 41)[:, None, None] * np.ones((1, 41, 1))
    part, enlarged = 38, 42  # ceil(41 / 1.1), round(38 * 1.1): the middle 41 of 42, between pixels 1 and 38
    expected = np.interp(1 + np.arange(enlarged)[:41] * (part - 1) / (enlarged - 1), np.arange(41), ramp[:, 0, 0])
    np.testing.assert_allclose(distortions._enlarged(ramp, 1.1)[:, 7, 0], expected, atol=1e-9)


def test_glass_takes_pixels_from_near_by():
    places = np.arange(20 * 20.0).reshape(20, 20, 1) / 400
    shuffled = distortions.glass_blur(np.round(255 * places) / 255, (0.01, 2, 1), np.random.default_rng(0))
    np.testing.assert_array_equal(shuffled[:3], np.round(255 * places[:3]) / 255)  # the border stays
    moved = np.abs(shuffled - places)[3:18, 3:18]
    assert 0 < moved.max() <= (2 * 20 + 2) / 400 * 3  # a copy may be copied again
    assert np.mean(moved > 1e-2) > 0.5


def of_accuracies(accuracy):
    """A report with a row for each corruption; `accuracy` is a function of its name and severity."""
    rows = [
        AttackResult.of(str(each), 1000, round(1000 * accuracy(each.name, each.severity)), 1.0, each.settings())
        for each in corruptions.all_of()
    ]
    return RobustnessReport([AttackResult.of("clean", 1000, 900, 1.0, {}), *rows], {})


def test_mean_corruption_error():
    report = of_accuracies(lambda name, severity: 0.9 - severity / 10)
    assert corruptions.mean_accuracy(report) == pytest.approx(0.6)
    expected = np.mean([0.4 / error for error in corruptions.ALEXNET.values()])
    assert corruptions.mce(report) == pytest.approx(expected)
    assert list(corruptions.ALEXNET) == list(corruptions.NAMES)
    as_alexnet = of_accuracies(lambda name, severity: 1 - corruptions.ALEXNET[name])
    assert corruptions.mce(as_alexnet) == pytest.approx(1, abs=1e-3)
    lacking = dataclasses.replace(report, results=report.results[:-1])
    with pytest.raises(ValueError, match="lacks 1 of 75 corruptions, such as jpeg_compression-5"):
        corruptions.mce(lacking)
    with pytest.raises(ValueError, match="two rows of one corruption"):
        corruptions.mean_accuracy(dataclasses.replace(report, results=[*report.results, report.results[-1]]))
    with pytest.raises(ValueError, match="baseline must have .* It lacks: fog"):
        corruptions.mce(report, {name: error for name, error in corruptions.ALEXNET.items() if name != "fog"})


def test_they_are_rows_that_count_all_images(tiny_model, images):
    model = tiny_model()
    labels = np.argmax(model(Corruption("contrast", 5)(None, images, None)), -1)  # right when corrupted, of all images
    report = evaluate(model, (images, labels), [Corruption("contrast", 5), PGD(LinfBall(1), steps=1)], progress=False)
    assert report["contrast-5"].correct == 8
    expected = {"corruption": "contrast", "severity": 5, "bounds": (0.0, 255.0)}
    assert report["contrast-5"].settings.items() >= expected.items()
    assert "photographs" in Corruption("frost").settings()["differs"]
    assert report["clean"].correct < 8


@pytest.mark.parametrize("name", ["gaussian_noise", "glass_blur", "snow", "frost", "fog", "elastic_transform"])
def test_an_examples_noise_is_its_own(name):
    images, seeds = smooth_images(), tf.constant([[0, 4], [0, 5], [0, 6]])
    together = Corruption(name)(None, images, None, seeds)
    alone = Corruption(name)(None, images[1:2], None, seeds[1:2])
    np.testing.assert_array_equal(together[1], alone[0])
    other = Corruption(name)(None, images[1:2], None, seeds[2:])
    assert np.any(other[0] != alone[0])


def test_refusals():
    with pytest.raises(ValueError, match="gaussian_noise.*Received: 'rain'"):
        Corruption("rain")
    with pytest.raises(ValueError, match="1..5. Received: 6"):
        Corruption("contrast", 6)
    with pytest.raises(ValueError, match="severities must be ImageNet-C or CIFAR-10-C, or None"):
        Corruption("contrast", severities="imagenet")
    with pytest.raises(ValueError, match="bounds must be two numbers"):
        Corruption("contrast", bounds=(1, 0))
    with pytest.raises(ValueError, match="channels first"):
        Corruption("contrast")(None, np.zeros((2, 1, 8, 8), np.uint8), None)


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
