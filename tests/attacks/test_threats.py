import numpy as np
import pytest
import tensorflow as tf

from keras_sat.attacks import L2Ball, LinfBall

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (50, 6, 6, 3)).astype(np.float32)
BALLS = [LinfBall(8), L2Ball(60), LinfBall(0.03, bounds=(0, 1)), L2Ball(0.5, bounds=(0, 1))]


def norm(ball, delta):
    delta = delta.reshape(len(delta), -1)
    return np.abs(delta).max(1) if ball.norm == "linf" else np.linalg.norm(delta, axis=1)


def scaled(ball):
    return IMAGES * (ball.bounds[1] / 255)


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_projection_is_in_the_ball_and_the_bounds_and_keeps_what_is(ball):
    images = scaled(ball).astype(np.float64)
    far = images + RNG.normal(0, ball.epsilon, images.shape)
    projected = ball.project(tf.constant(far, tf.float32), tf.constant(images, tf.float32)).numpy()
    assert norm(ball, projected - images).max() <= ball.epsilon + 1e-5
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


@pytest.mark.parametrize("ball", [LinfBall, L2Ball])
def test_refusals(ball):
    for epsilon in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epsilon"):
            ball(epsilon)
    for bounds in ((1, 0), (0, float("inf")), (0, 1, 2)):
        with pytest.raises(ValueError, match="bounds"):
            ball(1, bounds=bounds)
    with pytest.warns(UserWarning, match=r"bounds=\(0, 1\)"):
        ball(8 / 255)
