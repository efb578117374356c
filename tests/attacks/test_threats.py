import numpy as np
import pytest
import tensorflow as tf

from keras_sat.attacks import L1Ball, L2Ball, LinfBall

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (50, 6, 6, 3)).astype(np.float32)
BALLS = [LinfBall(8), L2Ball(60), LinfBall(0.03, bounds=(0, 1)), L2Ball(0.5, bounds=(0, 1))]
BALLS += [L1Ball(300), L1Ball(2, bounds=(0, 1))]


def norm(ball, delta):
    delta = delta.reshape(len(delta), -1)
    return np.linalg.norm(delta, {"linf": np.inf, "l2": 2, "l1": 1}[ball.norm], axis=1)


def scaled(ball):
    return IMAGES * (ball.bounds[1] / 255)


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_projection_is_in_the_ball_and_the_bounds_and_keeps_what_is(ball):
    images = scaled(ball).astype(np.float64)
    far = images + RNG.normal(0, ball.epsilon, images.shape)
    projected = ball.project(tf.constant(far, tf.float32), tf.constant(images, tf.float32)).numpy()
    assert norm(ball, projected - images).max() <= ball.epsilon * (1 + 1e-6) + 1e-5
    assert projected.min() >= ball.bounds[0]
    assert projected.max() <= ball.bounds[1]
    again = ball.project(projected, tf.constant(images, tf.float32))
    np.testing.assert_allclose(again, projected, atol=2e-5)


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_samples_fill_the_ball_uniformly(ball):
    images = tf.zeros((2000, 2, 2, 1))
    radii = norm(ball, ball.sample(tf.constant([1, 2]), images).numpy()) / ball.epsilon
    assert radii.max() <= 1 + 1e-5
    # In d = 4 dimensions the radius to the 4th power is uniform on 0..1 for either norm.
    deciles = np.quantile(radii**4, np.linspace(0.1, 0.9, 9))
    np.testing.assert_allclose(deciles, np.linspace(0.1, 0.9, 9), atol=0.06)


@pytest.mark.parametrize("ball", BALLS, ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_steepest_has_unit_norm_at_any_scale_and_is_zero_at_zero(ball, scale):
    gradients = RNG.normal(0, scale, IMAGES.shape).astype(np.float32)
    np.testing.assert_allclose(norm(ball, ball.steepest(gradients).numpy()), 1, rtol=1e-5)
    assert np.all(ball.steepest(tf.zeros_like(gradients)) == 0)


def test_distance():
    moved = IMAGES.copy()
    moved[:, 0, 0, :2] += (3, -4)
    np.testing.assert_allclose(LinfBall(8).distance(moved, IMAGES), 4, rtol=1e-5)
    np.testing.assert_allclose(L2Ball(8).distance(moved, IMAGES), 5, rtol=1e-5)
    np.testing.assert_allclose(L1Ball(8).distance(moved, IMAGES), 7, rtol=1e-5)


def nearest_in_l1(point, image, epsilon):
    """Returns the nearest point in the L1 ball and in 0..255, in float64: it tries the threshold of each piece."""
    delta, room = point - image, np.where(point > image, 255 - image, image)

    def sizes(t):
        return np.clip(np.abs(delta) - t, 0, room)

    if sizes(0).sum() <= epsilon:
        return image + np.sign(delta) * sizes(0)
    pieces = np.unique(np.concatenate([np.abs(delta), np.maximum(np.abs(delta) - room, 0)]))
    low = max(t for t in pieces if sizes(t).sum() >= epsilon)
    high = min(t for t in pieces if sizes(t).sum() <= epsilon)
    above, below = sizes(low).sum(), sizes(high).sum()
    t = low if above == below else low + (high - low) * (above - epsilon) / (above - below)
    return image + np.sign(delta) * sizes(t)


@pytest.mark.parametrize("spread", [1, 30, 400])
def test_the_l1_projection_is_the_nearest_point(spread):
    images = IMAGES.copy()
    images[:5], images[5:10] = 0, 255  # at the bounds, where half of a perturbation does not count
    points = images + RNG.normal(0, spread, images.shape).astype(np.float32)
    points[10] += 1e4  # beyond the bounds everywhere
    projected = L1Ball(900).project(tf.constant(points), tf.constant(images)).numpy()
    for point, image, found in zip(points.astype(np.float64), images.astype(np.float64), projected):
        np.testing.assert_allclose(found, nearest_in_l1(point, image, 900), atol=2e-3)


def test_a_fixed_channel_stays_in_l1():
    ball = L1Ball([100, 0, 50])
    points = ball.project(ball.sample(tf.constant([1, 2]), IMAGES) + 30 * RNG.normal(size=IMAGES.shape), IMAGES).numpy()
    np.testing.assert_array_equal(points[..., 1], IMAGES[..., 1])
    delta = np.abs(points - IMAGES).sum((1, 2))
    assert (delta[:, 0] + 2 * delta[:, 2]).max() <= 100.001
    assert not np.any(ball.steepest(tf.constant(IMAGES))[..., 1])


def test_step_size_rules():
    assert LinfBall(4).default_step_size(1) == 4  # the release's: max(1, epsilon / steps)
    assert LinfBall(4).default_step_size(3) == pytest.approx(4 / 3)
    assert LinfBall(4).default_step_size(50) == 1
    assert LinfBall(4 / 255, bounds=(0, 1)).default_step_size(50) == pytest.approx(1 / 255)
    assert L2Ball(128).default_step_size(10) == 32


@pytest.mark.parametrize("ball", [LinfBall, L2Ball])
def test_numpy_numbers_and_lists_are_plain_values(ball):
    one, other = ball(np.float32(0.5), bounds=[0, np.int64(1)]), ball(0.5, bounds=(0, 1))
    assert one == other
    assert hash(one) == hash(other)
    assert type(one.epsilon) is float


MEAN, DEVIATION = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.25])
STANDARDISED = (-MEAN / DEVIATION, (1 - MEAN) / DEVIATION)


@pytest.mark.parametrize("kind", [LinfBall, L2Ball])
def test_a_ball_of_standardised_images_is_that_of_the_pixels(kind):
    """All methods of a ball give the same results in both units; x = (pixel / 255 - mean) / deviation."""
    pixels, unit = kind(20.0), 255 * DEVIATION
    ball = kind(20.0 / unit, bounds=STANDARDISED)
    images = tf.constant((IMAGES / 255 - MEAN) / DEVIATION, tf.float32)
    moves = RNG.normal(0, 30, IMAGES.shape).astype(np.float32)
    gradients = RNG.normal(size=IMAGES.shape).astype(np.float32)

    def same(ours, theirs):
        np.testing.assert_allclose(ours * unit, theirs, atol=2e-3)

    seed, size = tf.constant([1, 2]), ball.radius / 20.0
    same(ball.sample(seed, images) - images, pixels.sample(seed, IMAGES) - IMAGES)
    same(ball.project(images + moves / unit, images) - images, pixels.project(IMAGES + moves, IMAGES) - IMAGES)
    same(ball.steepest(gradients * unit) * size, pixels.steepest(gradients))
    np.testing.assert_allclose(ball.length(moves / unit) / size, pixels.length(moves), rtol=1e-5)
    for steps in (1, 40):
        assert ball.default_step_size(steps) / size == pytest.approx(pixels.default_step_size(steps))


def test_channels_of_different_epsilon():
    ball = LinfBall([8, 4, 0])
    assert (ball.epsilon, ball.radius, ball.channels) == ((8, 4, 0), 8, 3)
    delta = ball.project(IMAGES + RNG.normal(0, 30, IMAGES.shape), IMAGES) - IMAGES
    np.testing.assert_allclose(np.abs(delta).max((0, 1, 2)), [8, 4, 0], atol=1e-4)
    assert ball.default_step_size(100) == 1  # a pixel of the first channel
    assert ball.with_radius(2).epsilon == (2, 1, 0)
    np.testing.assert_allclose(ball.steepest(tf.ones((1, 1, 1, 3)))[0, 0, 0], [1, 0.5, 0])
    assert L2Ball([0, 0], bounds=(0, 255)).default_step_size(1) == 0


@pytest.mark.parametrize("ball", [LinfBall(8), L2Ball(100), LinfBall([8, 4, 0]), L2Ball([60, 0, 30])], ids=str)
def test_a_scale_that_a_graph_computes_is_that_of_epsilon(ball):
    images, seed = np.clip(IMAGES, 100, 150), tf.constant([1, 2])
    far = (images + 60 * np.sign(RNG.normal(size=images.shape))).astype(np.float32)
    half = ball.with_radius(ball.radius / 2)
    in_graph = tf.function(lambda scale: (ball.project(far, images, scale), ball.sample(seed, images, scale)))
    for scaled, expected in zip(in_graph(tf.constant(0.5)), (half.project(far, images), half.sample(seed, images))):
        np.testing.assert_allclose(scaled, expected, atol=1e-4)
        assert np.any(scaled != images)
    for unmoved in in_graph(tf.constant(0.0)):
        np.testing.assert_allclose(unmoved, images, atol=1e-5)


def test_channels_that_stay_take_no_share_of_an_l2_ball():
    ball = L2Ball([60, 0, 30])
    moved = ball.sample(tf.constant([1, 2]), tf.zeros((500, 2, 2, 3)))
    assert np.all(moved[..., 1] == 0)
    deciles = np.quantile((ball.length(moved) / 60) ** 12, np.linspace(0.1, 0.9, 9))  # size counts all 12 values
    np.testing.assert_allclose(deciles, np.linspace(0.1, 0.9, 9), atol=0.1)
    with pytest.raises(ValueError, match="cannot be scaled"):
        LinfBall([0, 0]).with_radius(1)


def test_a_gradient_that_is_not_finite_moves_nothing():
    gradients = np.ones((1, 1, 1, 3), np.float32) * [np.nan, np.inf, 2]
    for ball in (LinfBall(8), L2Ball(8)):
        np.testing.assert_array_equal(ball.steepest(gradients)[0, 0, 0], [0, 0, 1])


@pytest.mark.parametrize("ball", [LinfBall, L2Ball])
def test_refusals(ball):
    for epsilon in ("8/255", None, [[8, 8]], [], [8, -1]):
        with pytest.raises(ValueError, match="epsilon must be a finite number >= 0, such as .*Received"):
            ball(epsilon)
    for bounds in (None, "01", 1, (0,), ([0, 0], [1, -1]), ([0, 0], [1, 1, 1]), (None, 1)):
        with pytest.raises(ValueError, match="bounds must be two finite numbers, the smaller first.*Received"):
            ball(8, bounds=bounds)
    with pytest.raises(ValueError, match="of the same channels"):
        ball([8, 8], bounds=([0, 0, 0], 255))
    for epsilon in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epsilon"):
            ball(epsilon)
    for bounds in ((1, 0), (0, float("inf")), (0, 1, 2)):
        with pytest.raises(ValueError, match="bounds"):
            ball(1, bounds=bounds)
    with pytest.warns(UserWarning, match=r"bounds=\(0, 1\)"):
        ball(8 / 255)
