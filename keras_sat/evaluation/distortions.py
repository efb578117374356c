"""The corruptions of ImageNet-C and CIFAR-10-C (Hendrycks and Dietterich 2019, arXiv:1903.12261), in NumPy and Pillow.

Each function takes one image, float [height, width, channels] with values 0..1, the parameters of a severity, and a
random generator, and returns a corrupted image of the same shape. Its values may leave 0..1. The algorithms are those
of the authors' code, https://github.com/hendrycks/robustness, in their order of steps.
"""

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

LUMA = np.array([0.299, 0.587, 0.114])
FROST = np.array([0.563, 0.646, 0.692])  # mean red, green and blue of the authors' photographs of frost


def gaussian_noise(image: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    """Adds normal noise."""
    return image + random.normal(scale=deviation, size=image.shape)


def shot_noise(image: np.ndarray, photons: float, random: np.random.Generator) -> np.ndarray:
    """Replaces each value by a Poisson number of photons, of which white has `photons`."""
    return random.poisson(image * photons) / photons


def impulse_noise(image: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Makes a share of the values black or white."""
    draw = random.uniform(size=image.shape)
    return np.where(draw < share / 2, 0, np.where(draw > 1 - share / 2, 1, image))


def gaussian_blur(image: np.ndarray, deviation: float, random: np.random.Generator | None = None) -> np.ndarray:
    """Blurs with a Gaussian kernel of this standard deviation, in pixels, cut off at four of them."""
    return _smoothed(image, deviation, 4, "edge")


def defocus_blur(image: np.ndarray, settings: tuple, random: np.random.Generator) -> np.ndarray:
    """Blurs with a disk. `settings`: radius, and standard deviation of the disk's own blur, both in pixels."""
    kernel = _disk(*settings)
    reach = len(kernel) // 2
    rows, columns = (np.pad(np.arange(size), reach, "reflect" if size > 1 else "edge") for size in image.shape[:2])
    result = np.zeros_like(image)
    for down, across in zip(*np.nonzero(kernel)):
        part = image[rows[down : down + image.shape[0]]][:, columns[across : across + image.shape[1]]]
        result += kernel[down, across] * part
    return result


def glass_blur(image: np.ndarray, settings: tuple, random: np.random.Generator) -> np.ndarray:
    """Blurs, replaces pixels by near ones, and blurs. `settings`: deviation, largest distance, repetitions.

    The authors' code means to swap two pixels, but copies one to the other, for NumPy's rows are views.
    """
    deviation, most, repetitions = settings
    height, width = image.shape[:2]
    source = np.arange(height * width).tolist()
    for _ in range(repetitions):
        # Bottom right to top left. A pixel that was replaced may be copied again.
        steps = random.integers(-most, most, size=(height, width, 2))
        steps = (steps[..., 1] * width + steps[..., 0]).tolist()
        for row in range(height - most, most, -1):
            for column in range(width - most, most, -1):
                place = row * width + column
                source[place] = source[place + steps[row][column]]
    blurred = np.floor(255 * gaussian_blur(image, deviation)) / 255
    shuffled = blurred.reshape(-1, image.shape[-1])[source].reshape(image.shape)
    return gaussian_blur(shuffled, deviation)


def motion_blur(image: np.ndarray, settings: tuple, random: np.random.Generator) -> np.ndarray:
    """Blurs along a line of -45..45 degrees. `settings`: radius and standard deviation in pixels."""
    radius, deviation = settings
    return _moved(image, radius, deviation, random.uniform(-45, 45))


def zoom_blur(image: np.ndarray, settings: tuple, random: np.random.Generator) -> np.ndarray:
    """Returns the mean of the image and of its enlargements. `settings`: the end and the step of the factors from 1."""
    factors = np.arange(1, *settings)
    return (image + sum(_enlarged(image, factor) for factor in factors)) / (len(factors) + 1)


def snow(image: np.ndarray, settings: tuple, random: np.random.Generator) -> np.ndarray:
    """Adds flakes that fall, and whitens. `settings`: mean, deviation, size, threshold, radius, deviation, share."""
    mean, deviation, size, threshold, radius, blur, share = settings
    flakes = _enlarged(random.normal(mean, deviation, size=(*image.shape[:2], 1)), size)
    flakes = np.floor(255 * np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)) / 255
    flakes = np.round(255 * _moved(flakes, radius, blur, random.uniform(-135, -45))) / 255
    grey = image @ LUMA[:, None] if image.shape[-1] == 3 else image
    whitened = share * image + (1 - share) * np.maximum(image, 1.5 * grey + 0.5)
    return whitened + flakes + flakes[::-1, ::-1]


def frost(image: np.ndarray, settings: tuple, random: np.random.Generator) -> np.ndarray:
    """Lays frost over the image. `settings`: the weights of the image and of the frost.

    The authors take parts of five photographs. This texture is generated. It has the mean colour of the photographs,
    their deviations (0.15 from one part to the next, 0.09 inside of a part), and about their amount of detail.
    """
    ice = np.abs(2 * _plasma(max(image.shape[:2]), 1.1, random)[: image.shape[0], : image.shape[1], None] - 1)
    ice = (ice - ice.mean()) / max(ice.std(), 1e-6)
    colour = FROST if image.shape[-1] == 3 else FROST @ LUMA
    texture = np.clip(colour + random.normal(scale=0.15) + 0.09 * ice, 0, 1)
    return settings[0] * image + settings[1] * texture


def fog(image: np.ndarray, settings: tuple, random: np.random.Generator) -> np.ndarray:
    """Adds a fractal, and darkens to the image's own maximum. `settings`: the strength; how fast details decay."""
    strength, decay = settings
    most = image.max()
    cloud = _plasma(max(image.shape[:2]), decay, random)[: image.shape[0], : image.shape[1], None]
    return (image + strength * cloud) * most / (most + strength)


def brightness(image: np.ndarray, amount: float, random: np.random.Generator) -> np.ndarray:
    """Adds to the value (V) of HSV, with the same hue and saturation."""
    value = image.max(-1, keepdims=True)
    brighter = np.minimum(value + amount, 1)
    return np.where(value > 0, image * brighter / np.where(value > 0, value, 1), brighter)


def contrast(image: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    """Scales the distance to the mean of each channel."""
    mean = image.mean((0, 1), keepdims=True)
    return mean + factor * (image - mean)


def elastic_transform(image: np.ndarray, settings: tuple, random: np.random.Generator) -> np.ndarray:
    """Moves pixels by an affine map, and by smooth noise.

    `settings`: the strength of the noise, its smoothness, and the largest move of the affine map's three points, all as
    shares of the shorter side.
    """
    height, width = image.shape[:2]
    strength, smoothness, move = (share * min(height, width) for share in settings)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    centre, third = np.array([width // 2, height // 2]), min(height, width) // 3
    points = centre + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + random.uniform(-move, move, size=(3, 2))
    # The map from places in the result, (x, y, 1), to places in the image.
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points) if third else np.eye(3)[:, :2]
    across, down = np.moveaxis(np.stack([columns, rows, np.ones_like(rows)], -1) @ back, -1, 0)
    image = _sampled(image, down, across, _mirrored_at_pixels)
    down, across = (
        strength * _smoothed(random.uniform(-1, 1, size=(height, width, 1)), smoothness, 3, "symmetric")[..., 0]
        for _ in range(2)
    )
    return _sampled(image, rows + down, columns + across, _mirrored_at_edges)


def pixelate(image: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    """Makes the image smaller by this factor, and as large as before, with Pillow's box filter."""
    height, width = image.shape[:2]
    small = max(1, int(width * factor)), max(1, int(height * factor))
    return _by_pillow(
        image,
        lambda picture: picture.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX),
    )


def jpeg_compression(image: np.ndarray, quality: int, random: np.random.Generator) -> np.ndarray:
    """Compresses and decodes with Pillow."""

    def compressed(picture):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(image, compressed)


def _by_pillow(image: np.ndarray, function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    levels = np.round(255 * image).astype(np.uint8)
    picture = Image.fromarray(levels[..., 0] if image.shape[-1] == 1 else levels)
    return np.asarray(function(picture), image.dtype).reshape(image.shape) / 255


def _smoothed(image, deviation, truncate, mode):
    """Returns the image filtered with a Gaussian in both directions; `mode` is that of np.pad at the border."""
    down, across = (_gaussian_matrix(size, deviation, truncate, mode) for size in image.shape[:2])
    return np.einsum("ij,jkc,lk->ilc", down, image, across, optimize=True)


@functools.lru_cache(maxsize=32)
def _gaussian_matrix(size, deviation, truncate, mode):
    """Returns the matrix [size, size] that filters a vector with a Gaussian kernel."""
    reach = int(truncate * deviation + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(deviation, 1e-9)) ** 2)
    sources = np.pad(np.arange(size), reach, mode)
    matrix = np.zeros((size, size))
    for place, weight in enumerate(kernel / kernel.sum()):
        matrix[np.arange(size), sources[place : place + size]] += weight
    return matrix


def _disk(radius, blur):
    """Returns the kernel of `defocus_blur`: a disk of whole pixels, whose sum is 1, then blurred a little.

    The blur mirrors a disk of 10 pixels at its border, so that the sum of this kernel is a little above 1.
    """
    reach, size = (8, 3) if radius <= 8 else (radius, 5)
    squares = np.arange(-reach, reach + 1) ** 2
    disk = np.float64(squares[:, None] + squares <= radius**2)
    disk /= disk.sum()
    line = np.exp(-0.5 * (np.arange(-(size // 2), size // 2 + 1) / blur) ** 2)
    sources = np.pad(np.arange(len(squares)), size // 2, "reflect")
    for _ in range(2):  # rows, then columns
        disk = sum(weight * disk[sources[k : k + len(squares)]] for k, weight in enumerate(line / line.sum())).T
    return disk


def _moved(image, radius, deviation, angle):
    """Returns ImageMagick's motion blur: half a Gaussian, from each pixel along a line; the border is repeated."""
    places = np.arange(2 * radius + 1)
    weights = np.exp(-(places**2) / (2 * deviation**2))
    steps = np.ceil(np.outer((np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))), places) - 0.5).astype(int)
    result = np.zeros_like(image)
    for weight, down, across in zip(weights / weights.sum(), *steps):
        rows = np.clip(np.arange(image.shape[0]) + down, 0, image.shape[0] - 1)
        columns = np.clip(np.arange(image.shape[1]) + across, 0, image.shape[1] - 1)
        result += weight * image[rows][:, columns]
    return result


def _enlarged(image, factor):
    """Returns the centre of an image, enlarged by the factor (linear interpolation) to the size of the image."""
    down, across = (_enlarging_matrix(size, float(factor)) for size in image.shape[:2])
    return np.einsum("ij,jkc,lk->ilc", down, image, across, optimize=True)


@functools.lru_cache(maxsize=256)
def _enlarging_matrix(size, factor):
    """Returns the matrix [size, size] of `_enlarged` in one direction. The first and last pixels of the part stay."""
    part = int(np.ceil(size / factor))
    enlarged, begin = round(part * factor), (size - part) // 2
    places = np.arange(enlarged) * ((part - 1) / max(enlarged - 1, 1))
    places = begin + places[(enlarged - size) // 2 :][:size]
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size)))


def _plasma(size, decay, random):
    """Returns a plasma fractal [n, n], values 0..1, n the next power of two (diamond-square algorithm, periodic)."""
    step = 2 ** max(1, int(size - 1).bit_length())
    result, noise = np.zeros((step, step)), 100.0

    def mean_and_noise(*neighbours: Any) -> Any:
        return sum(neighbours) / 4 + noise**2 * random.uniform(-1, 1, size=neighbours[0].shape)

    while step > 1:
        half, corners = step // 2, result[::step, ::step]
        right = np.roll(corners, -1, 1)
        centres = mean_and_noise(corners, right, np.roll(corners, -1, 0), np.roll(right, -1, 0))
        result[half::step, half::step] = centres
        result[::step, half::step] = mean_and_noise(corners, right, centres, np.roll(centres, 1, 0))
        result[half::step, ::step] = mean_and_noise(corners, np.roll(corners, -1, 0), centres, np.roll(centres, 1, 1))
        step, noise = half, noise / decay
    result -= result.min()
    return result / result.max()


def _sampled(image, rows, columns, fold):
    """Returns the image at these places [height, width] (bilinear); `fold` maps places outside to places inside."""
    result = 0
    low = np.floor(rows).astype(int), np.floor(columns).astype(int)
    for down in (0, 1):
        for across in (0, 1):
            weight = np.abs(1 - down - (rows - low[0])) * np.abs(1 - across - (columns - low[1]))
            place = fold(low[0] + down, image.shape[0]), fold(low[1] + across, image.shape[1])
            result = result + weight[..., None] * image[place]
    return result


def _mirrored_at_edges(places, size):
    """Returns places inside: c b a | a b c | c b a."""
    places = places % (2 * size)
    return np.minimum(places, 2 * size - 1 - places)


def _mirrored_at_pixels(places, size):
    """Returns places inside: c b | a b c | b a."""
    places = places % max(1, 2 * size - 2)
    return np.minimum(places, 2 * size - 2 - places)
