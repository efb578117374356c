"""Square: a random search that uses only the logits."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients, randomness, survivors, threats, validation
from keras_sat.attacks.attack import Attack
from keras_sat.typing import LogitsFunction

_CHUNK = 100  # number of queries for which random numbers are drawn at once
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the squares' area is halved


@dataclasses.dataclass(frozen=True)
class Square(Attack):
    """Square attack (Andriushchenko et al. 2020, arXiv:1912.00049), with the settings of AutoAttack.

    Each query proposes a square at a random place of each image, with a colour at the border of the ball (L-inf), or
    moves the perturbation of one window into another (L2, and L1 as in arXiv:2103.01208). A proposal is kept if it
    raises the margin of the best wrong class. Square uses no gradients: if it breaks images that gradient-based attacks
    do not, the gradients are masked. An example for which no misclassified image is found returns the image of the
    largest margin.

    Args:
        ball: `LinfBall`, `L2Ball` or `L1Ball`.
        queries: number of proposals of each start, >= 1. Each is a forward pass; the initial point needs one more.
        restarts: number of independent starts, >= 1, for examples that are still robust.
        p_init: share of the image that the first squares cover, in (0, 1].

    Raises:
        ValueError: for a field with an invalid value. A call also raises it for images of unknown size.
    """

    queries: int = 5000
    restarts: int = 1
    p_init: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.check_integers(self, positive=("queries", "restarts"))
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init is a share of the image, above 0, at most 1. Received: {self.p_init!r}")

    def __str__(self) -> str:
        return "Square"

    @property
    def max_forward_passes(self) -> int:
        """Forward passes of one example at most."""
        return (self.queries + 1) * self.restarts

    @property
    def needs_gradients(self) -> bool:
        """Whether the attack uses gradients of the network: no."""
        return False

    def perturb(
        self,
        logits_fn: LogitsFunction,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        start: tf.Tensor | None = None,
        *,
        static_shapes: bool = False,
    ) -> tf.Tensor:
        """Runs the algorithm. See `Attack.perturb`."""
        if None in images.shape[1:]:
            raise ValueError(f"Square must know the size of the images. Received shape: {images.shape}")
        validation.check_channels_last(images)
        start, propose = (_stripes, _recolour) if self.ball.norm == "linf" else (_tiles, _move_window)
        sizes = tf.constant(square_sizes(self.queries, self.p_init, images.shape[1], images.shape[2], self.ball.norm))

        def attempt(number, state):
            seeds = randomness.fold(state["seeds"], number)
            batch = tf.shape(seeds)[0]
            search = {**state, "seeds": seeds, "margin": tf.fill([batch], tf.float32.min)}
            search["result"] = start(self.ball, state["images"], randomness.fold(seeds, 0))
            search["draws"] = tf.zeros([batch, _CHUNK, _PLACES + images.shape[3]])
            result, broken = survivors.loop(query, search, self.queries + 1, static_shapes)
            return {**state, "result": result, "broken": broken}

        def query(number, state):
            draws = _draws(number, state)
            draw, size = tf.gather(draws, number % _CHUNK, axis=1), tf.gather(sizes, number)
            proposal = propose(self.ball, state["images"], state["result"], size, draw)
            points = tf.where(number > 0, proposal, state["result"])  # the first query is the start itself
            logits = gradients.logits(logits_fn, points)
            margin, broken = losses.margin(state["labels"], logits), losses.is_broken(state["labels"], logits)
            better = broken | (margin > state["margin"])
            result = tf.where(better[:, None, None, None], points, state["result"])
            best = tf.where(better, margin, state["margin"])
            return {**state, "draws": draws, "result": result, "margin": best, "broken": broken}

        state = survivors.initial_state(images, labels, seed)
        return survivors.loop(attempt, state, self.restarts, static_shapes)[0]


def square_sizes(queries: int, p_init: float, height: int, width: int, norm: str) -> list[int]:
    """Returns the side length of the square of each query, in pixels; 0 for the first query, which is the start.

    A square covers a share p of the image, which is `p_init` at first. p is halved after 10, 50, 200, 500, 1000, 2000,
    4000, 6000 and 8000 queries.

    Args:
        queries: See `Square`.
        p_init: See `Square`.
        height: height of the images in pixels.
        width: width of the images in pixels.
        norm: "linf", "l2" or "l1". For "l2" and "l1" sizes are odd and at least 3, where the images are large enough.
    """
    sizes = [0]
    for query in range(queries):
        share = p_init / 2 ** sum(query > halving for halving in _HALVINGS)
        size = round(math.sqrt(share * height * width))
        size = max(size, 3) // 2 * 2 + 1 if norm != "linf" else max(size, 1)
        sizes.append(min(size, height, width))
    return sizes


_PLACES = 5  # random numbers of a query before the signs: the corners of two windows, and an orientation


def _draws(number, state):
    """Returns uniform numbers [batch, chunk, ...]: new ones at the beginning of a chunk, otherwise the state's."""

    def draw():
        return randomness.uniform(randomness.fold(state["seeds"], 1 + number // _CHUNK), tf.shape(state["draws"]))

    return tf.cond(number % _CHUNK == 0, draw, lambda: state["draws"])


def _sign(uniform):
    return tf.where(uniform < 0.5, -1.0, 1.0)


def _stripes(ball, images, seeds):
    """Returns the start for L-inf: vertical stripes of epsilon."""
    shape = tf.shape(images)
    signs = _sign(randomness.uniform(seeds, [shape[0], 1, shape[2], shape[3]]))
    return ball.project(images + ball.to_channels(ball.radius * signs), images)


def _recolour(ball, images, best, size, draw):
    """Returns the best points with a square of +-epsilon added, one sign per channel."""
    inside = _window(images.shape, draw[:, 0:2], size)
    signs = _sign(draw[:, _PLACES:])[:, None, None, :]
    return ball.project(best + ball.to_channels(tf.where(inside, 2 * ball.radius * signs, 0.0)), images)


def _corner(shape, draw, size):
    """Returns top and left of a window within the image, int [batch] each, from uniform numbers [batch, 2]."""
    room = tf.constant(shape[1:3].as_list()) - size
    corner = tf.cast(draw * tf.cast(room + 1, tf.float32), tf.int32)
    return tf.unstack(tf.minimum(corner, room), axis=1)


def _window(shape, draw, size):
    """Returns a mask of the window, bool [batch, height, width, 1]."""
    inside = []
    for corner, length in zip(_corner(shape, draw, size), shape[1:3]):
        place = tf.range(length) - corner[:, None]
        inside.append((place >= 0) & (place < size))
    return (inside[0][:, :, None] & inside[1][:, None, :])[..., None]


def _tiles(ball, images, seeds):
    """Returns the start for L2 and L1: tiles of bumps with a random sign per channel and a random orientation."""
    height, width, channels = images.shape[1:]
    size = max(1, min(height, width) // 5)
    rows, columns = height // size, width // size
    draw = randomness.uniform(seeds, [tf.shape(images)[0], rows, columns, channels + 1])
    draw = tf.repeat(tf.repeat(draw, size, axis=1), size, axis=2)
    tile = bump(size, ball.norm)
    tiled = tf.constant(np.tile(tile, (rows, columns)))[None, :, :, None]
    turned = tf.constant(np.tile(tile.T, (rows, columns)))[None, :, :, None]
    delta = tf.where(draw[..., :1] < 0.5, tiled, turned) * _sign(draw[..., 1:])
    top, left = (height - rows * size) // 2, (width - columns * size) // 2
    delta = tf.image.pad_to_bounding_box(delta, top, left, height, width)
    if ball.norm == "l1":  # each tile sums to the bounds' range in each channel, as in the authors' code
        low, high = map(np.asarray, ball.bounds)
        delta *= ball.from_channels(tf.constant(high - low, tf.float32))
    return _used_up(ball, images, delta)


def _used_up(ball, images, delta):
    """Returns the images plus a perturbation, in the units of one radius: L2 uses all of epsilon, L1 at most that."""
    delta = ball.without_fixed_channels(delta)
    if ball.norm == "l1":
        return ball.project(images + ball.to_channels(delta), images)
    return ball.clip(images + ball.to_channels(ball.radius * threats.normalized(delta)))


def _move_window(ball, images, best, size, draw):
    """Returns the points with the perturbation of one window moved into another, so that all of epsilon is used.

    Algorithm 3 of the paper: one window gets a bump plus its former direction, with a norm that uses up epsilon. The
    perturbation of the other window becomes 0.
    """
    channels = images.shape[3] if ball.shares is None else tf.reduce_sum(tf.cast(ball.shares > 0, tf.float32))
    delta, power = ball.from_channels(best - images), 2 if ball.norm == "l2" else 1
    here, there = _window(images.shape, draw[:, 0:2], size), _window(images.shape, draw[:, 2:4], size)
    shape = _placed_bump(images.shape, draw[:, 0:2], size, turned=draw[:, 4] < 0.5, norm=ball.norm)
    new = shape * _sign(draw[:, _PLACES:])[:, None, None, :] + _unit(tf.where(here, delta, 0.0), power)
    sizes = tf.abs(delta) ** power
    unused = tf.maximum(ball.radius**power - tf.reduce_sum(sizes, axis=(1, 2, 3), keepdims=True), 0.0) / channels
    freed = tf.reduce_sum(tf.where(here | there, sizes, 0.0), axis=(1, 2), keepdims=True)
    length = tf.sqrt(unused + freed) if power == 2 else (unused + freed) * channels  # L1: then projected
    return _used_up(ball, images, tf.where(here, length * _unit(new, power), tf.where(there, 0.0, delta)))


def _unit(x, power):
    """Returns x scaled to norm 1 in each channel: L2 for power 2, L1 for power 1; zeros stay 0."""
    return x / (1e-12 + tf.reduce_sum(tf.abs(x) ** power, axis=(1, 2), keepdims=True) ** (1 / power))


def _placed_bump(shape, draw, size, turned, norm):
    """Returns a bump of this size in its window, and 0 elsewhere, [batch, height, width, 1]."""
    largest = min(shape[1:3])
    bumps = tf.constant(np.stack([np.pad(bump(n, norm), (0, largest - n)) for n in range(largest + 1)]))
    pattern = tf.gather(bumps, size)
    down, right = (
        tf.clip_by_value(tf.range(length) - corner[:, None], 0, largest - 1)
        for corner, length in zip(_corner(shape, draw, size), shape[1:3])
    )
    upright = tf.gather(tf.gather(pattern, down), right, axis=2, batch_dims=1)
    lying = tf.gather(tf.gather(tf.transpose(pattern), down), right, axis=2, batch_dims=1)
    placed = tf.where(turned[:, None, None], lying, upright)[..., None]
    return tf.where(_window(shape, draw, size), placed, 0.0)


def bump(size: int, norm: str = "l2") -> np.ndarray:
    """Returns two opposite bumps of norm 1, the upper half positive, the lower half negative, float32 [size, size].

    At distance d from the middle of a bump (the larger of rows and columns), its value is the sum of 1 / (k + 1)^2
    over d <= k < extent, section 3.3 of the paper; of 1 / (k + 1)^4 for norm="l1".
    """
    order = {"l2": 2, "l1": 1}[norm]
    if size == 0:
        return np.zeros((0, 0), np.float32)
    halves = [_half_bump(size // 2, size, order), -_half_bump(size - size // 2, size, order)]
    whole = np.concatenate(halves)
    return (whole / np.linalg.norm(whole.ravel(), order)).astype(np.float32)


def _half_bump(height, width, order):
    if height == 0:
        return np.zeros((0, width))
    extent = max(height // 2, width // 2) + 1
    by_distance = np.cumsum([1 / (k + 1) ** (4 / order) for k in reversed(range(extent))])[::-1]
    rows, columns = np.abs(np.arange(height) - height // 2), np.abs(np.arange(width) - width // 2)
    values = by_distance[np.maximum(rows[:, None], columns[None, :])]
    return values / np.linalg.norm(values.ravel(), order)
