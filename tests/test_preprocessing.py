import io
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from keras_sat import preprocessing
from keras_sat.preprocessing import CROPS, Preprocessing

LANDSCAPE = pathlib.Path(__file__).parent / "landscape"  # see CONTRIBUTING.md


@pytest.fixture(scope="module")
def reference():
    with np.load(LANDSCAPE / "landscape.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def jpeg():
    return tf.constant((LANDSCAPE / "landscape.jpg").read_bytes())


def test_the_padded_centre_crop_is_that_of_the_authors_code(jpeg, reference):
    """Our pixels are rounded and clipped to 0..255, so they differ by up to half a grey level."""
    padded = Preprocessing(224, 224, 3, "padded")
    crop = preprocessing.pixels(jpeg, 3, padded._window)
    np.testing.assert_array_equal(crop, reference["efficientnet_crop_224"])
    ours = padded(jpeg)
    assert ours.dtype == tf.uint8
    expected = np.clip(reference["efficientnet_224"], 0, 255)
    assert np.max(np.abs(np.float32(ours) - expected)) <= 0.5 + 1e-3


def test_the_shortest_edge_is_nearly_that_of_opencv(reference):
    """The bicubic kernels differ (A = -0.5 and -0.75): the documented difference."""
    png = tf.constant((LANDSCAPE / "landscape.png").read_bytes())
    ours = np.float32(Preprocessing(224, 224, 3, "shortest_edge")(png))
    difference = np.abs(ours - np.float32(reference["resnet_224"]))
    print(f"shortest_edge: mean {difference.mean():.2f}, largest {difference.max():.0f} grey levels")
    assert difference.mean() < 1.0


def by_torchvision(image, crop):
    """RobustBench's preprocessing as torchvision defines it for Pillow's images: Resize and CenterCrop."""
    width, height = image.size
    if crop == "Res224":
        return np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR))
    if "Res256" in crop:
        size = (256, 256 * height // width) if width < height else (256 * width // height, 256)
        image = image.resize(size, Image.Resampling.BICUBIC if "Bicubic" in crop else Image.Resampling.BILINEAR)
    size, (width, height) = int(crop[-3:]), image.size
    across, down = max(size - width, 0), max(size - height, 0)
    border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
    image = ImageOps.expand(image, border)
    left, top = round((image.size[0] - size) / 2), round((image.size[1] - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("size", [None, (341, 255), (200, 301), (289, 288)])
@pytest.mark.parametrize("crop", preprocessing.ROBUSTBENCH)
def test_robustbenchs_preprocessings_are_those_of_pillow(crop, size, jpeg):
    """To 1 grey level. A JPEG file is decoded as by Pillow. The sizes have odd margins, and sides below the crop's."""
    photograph = Image.open(io.BytesIO(jpeg.numpy()))
    if size is not None:
        photograph = photograph.resize(size)
    file = jpeg if size is None else tf.constant(np.asarray(photograph))
    side = preprocessing.size_of(crop)
    ours = Preprocessing(side, side, 3, crop)(file).numpy().astype(int)
    difference = np.abs(ours - by_torchvision(photograph, crop))
    assert difference.max() <= 1
    assert difference.mean() < 0.25


def test_robustbenchs_preprocessings_have_one_size_and_ignore_exif(encode):
    with pytest.raises(ValueError, match="crop Crop288 gives 288 x 288 pixels. Received: 224 x 224"):
        Preprocessing(224, 224, 3, "Crop288")
    exif = Image.Exif()
    exif[0x0112] = 6
    how = Preprocessing(224, 224, 1, "Res224")
    turned, upright = (how(tf.constant(encode("L", "PNG", **options))) for options in ({"exif": exif}, {}))
    np.testing.assert_array_equal(turned, upright)


def test_a_random_part_is_of_the_image_and_of_its_seed(jpeg):
    seeds = [tf.constant([0, number]) for number in range(20)]
    parts = [preprocessing.random_part(jpeg, (32, 32, 3), seed).numpy() for seed in seeds]
    assert {(part.shape, part.dtype) for part in parts} == {((32, 32, 3), np.dtype(np.uint8))}
    np.testing.assert_array_equal(parts[3], preprocessing.random_part(jpeg, (32, 32, 3), seeds[3]))
    assert len({part.tobytes() for part in parts}) == 20


def test_other_formats_give_the_same_part(jpeg):
    image = tf.io.decode_jpeg(jpeg)[:96, :120]
    png, bmp_like = tf.io.encode_png(image), tf.io.encode_jpeg(image, quality=100, chroma_downsampling=False)
    seed = tf.constant([4, 2])
    one, other = (np.float32(preprocessing.random_part(encoded, (48, 48, 3), seed)) for encoded in (png, bmp_like))
    assert np.mean(np.abs(one - other)) < 2  # the same part, except for JPEG's loss


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


def by_pillow(file, channels):
    """Returns the pixels as Pillow reads them, int [height, width, channels]."""
    image = Image.open(io.BytesIO(file))
    if image.mode.startswith("I"):  # Pillow does not scale 16 bits
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    pixels = np.asarray(ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_file_has_the_pixels_that_pillow_sees(channels, image_files):
    """JPEG decoders differ by a few grey levels, because they round differently; other formats by one, in the luma."""
    for name, file in image_files.items():
        expected = by_pillow(file, channels)
        ours = np.asarray(preprocessing.pixels(tf.constant(file), channels)).astype(int)
        assert ours.shape == expected.shape, name
        assert np.max(np.abs(ours - expected)) <= (8 if "JPEG" in name else 1), name
        assert np.mean(np.abs(ours - expected)) <= 1.5, name


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_images_are_turned_as_exif_says(kind, order, encode):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif.endian = order
        exif[0x010F] = "a maker"
        exif[0x0112] = orientation
        exif[0x0132] = "2020:01:01 00:00:00"
        options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
        file = encode("RGB", kind, exif=exif, **options)
        assert preprocessing.orientation(tf.constant(file)) == orientation
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")).astype(int)
        for crop in set(CROPS) - set(preprocessing.ROBUSTBENCH):
            how = Preprocessing(expected.shape[0] // 2, expected.shape[1] // 2, 3, crop)
            turned, plain = how(tf.constant(file)), how(tf.constant(expected.astype(np.uint8)))
            assert np.max(np.abs(np.int32(turned) - np.int32(plain))) <= 8, (orientation, crop)


def test_exif_data_that_are_damaged_turn_nothing(encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encode("RGB", "JPEG", exif=exif)
    at = file.index(b"Exif")
    for cut in (file[: at + 6] + b"\0" * 20 + file[at + 26 :], file[: at + 10] + b"\xff" * 16 + file[at + 26 :]):
        assert preprocessing.orientation(tf.constant(cut)) == 1
    for other in (b"", b"BM", b"\xff\xd8", b"RIFF", b"\x89PNGeXIf", file[: at + 6], file[: at + 14]):
        assert preprocessing.orientation(tf.constant(other)) == 1


def test_a_comment_that_speaks_of_exif_is_none(encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encode("RGB", "JPEG", exif=exif)
    text = b"EXIF data edited eXIf Exif\0\0"
    comment = b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
    assert preprocessing.orientation(tf.constant(file[:2] + comment + file[2:])) == 6
    assert preprocessing.orientation(tf.constant(encode("RGB", "JPEG")[:2] + comment + encode("RGB", "JPEG")[2:])) == 1


def test_a_bmp_whose_channels_are_in_another_order_is_refused(encode):
    file = encode("RGBA", "BMP")
    blue, green, red = b"\xff\0\0\0", b"\0\xff\0\0", b"\0\0\xff\0"

    def with_masks(masks):  # bit masks, between the header and the pixels
        return tf.constant(
            file[:10] + (66).to_bytes(4, "little") + file[14:30] + b"\3" + file[31:54] + masks + file[54:]
        )

    usual = preprocessing.pixels(with_masks(red + green + blue), 3)
    np.testing.assert_array_equal(usual, preprocessing.pixels(tf.constant(file), 3))
    with pytest.raises(tf.errors.InvalidArgumentError, match="of another order, cannot be read"):
        preprocessing.pixels(with_masks(blue + green + red), 3)


def test_files_of_a_phone_with_a_profile_before_their_exif_data(encode):
    """Some programs write a colour profile, or a comment, before the EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = 8
    file = encode("RGB", "JPEG", exif=exif)
    profile = b"\xff\xe2" + (40_002).to_bytes(2, "big") + bytes(40_000)
    assert preprocessing.orientation(tf.constant(file[:2] + 2 * profile + file[2:])) == 8


@pytest.mark.parametrize("crop", sorted(set(CROPS) - set(preprocessing.ROBUSTBENCH)))
def test_sizes_down_to_one_pixel(crop, image_files, shades):
    for height, width in ((1, 1), (3, 3), (2, 9), (28, 28), (60, 80)):
        for image in (tf.constant(image_files["PNG"]), tf.constant(np.asarray(shades(size=(3, 2))))):
            for channels in (1, 3):
                assert Preprocessing(height, width, channels, crop)(image).shape == (height, width, channels)


def test_an_image_of_the_size_stays_as_it_is(image_files, shades):
    np.testing.assert_array_equal(Preprocessing(60, 80, 3)(tf.constant(image_files["PNG"])), shades())


@pytest.mark.parametrize(("size", "kept"), [(3, 2), (16, 14), (28, 24), (112, 98), (224, 196), (448, 418)])
def test_the_padded_crop_keeps_seven_eighths_of_small_images(size, kept):
    """The published margin of 32 pixels is for images of 224 pixels."""
    window = Preprocessing(size, size, 3, "padded")._window(tf.constant([size, size, 3]))
    np.testing.assert_array_equal(window, [(size - kept + 1) // 2] * 2 + [kept] * 2)


def test_a_description_can_be_written_and_read():
    how = Preprocessing(28, 30, 1, "padded")
    assert Preprocessing.of(how.settings()) == how
    for options, message in (
        ({"crop": "centre"}, "crop must be one of stretch, padded, shortest_edge"),
        ({"channels": 4}, "channels must be 1"),
        ({"height": 0}, "height must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Preprocessing.of(how.settings() | options)
    with pytest.raises(ValueError, match="lacks a value"):
        Preprocessing.of({"height": 3})
