import numpy as np
import pytest
import tensorflow as tf

from keras_sat.attacks import FAB, L1Ball, L2Ball, LinfBall

WEIGHTS = np.random.default_rng(3).normal(0, 1e-2, size=(48, 3)).astype(np.float32)
BIAS = np.array([0.0, -6.0, -7.0], np.float32)
IMAGES = np.random.default_rng(4).uniform(100, 150, (6, 4, 4, 3)).astype(np.float32)


def linear(images):
    return (tf.reshape(images, (-1, 48)) - 128) @ WEIGHTS + BIAS


def largest_weights_first(w, difference, image):
    """Returns the smallest L1 distance at which w . change = difference: pixel after pixel moves to its bound."""
    distance = 0.0
    for k in np.argsort(-np.abs(w)):
        room = 255 - image[k] if w[k] > 0 else image[k]
        if np.abs(w[k]) * room >= difference:
            return distance + difference / np.abs(w[k])
        distance, difference = distance + room, difference - np.abs(w[k]) * room
    return np.inf


def smallest(norm):
    """Returns the distance of the nearest boundary of a linear model, far from the bounds: |difference| / dual norm."""
    logits = np.array(linear(IMAGES))
    labels = logits.argmax(1)
    distances = np.full(logits.shape, np.inf)
    for i, label in enumerate(labels):
        for k in set(range(3)) - {label}:
            w = WEIGHTS[:, k] - WEIGHTS[:, label]
            difference = logits[i, label] - logits[i, k]
            if norm == "l1":  # where the bounds matter
                distances[i, k] = largest_weights_first(w, difference, IMAGES[i].ravel())
                continue
            dual = np.abs(w).sum() if norm == "linf" else np.linalg.norm(w)
            distances[i, k] = difference / dual
    return labels, distances.min(1)


@pytest.mark.parametrize("targets", [0, 2])
@pytest.mark.parametrize("ball", [LinfBall(100), L2Ball(1000), L1Ball(5000)], ids=["linf", "l2", "l1"])
def test_smallest_perturbation_of_a_linear_model(ball, targets):
    labels, distances = smallest(ball.norm)
    adversarial = FAB(ball, steps=30, targets=targets, keep="closest")(linear, IMAGES, labels)
    assert np.all(np.argmax(linear(adversarial), -1) != labels)
    reached = ball.distance(adversarial, tf.constant(IMAGES)).numpy()
    assert np.all(reached >= distances * (1 - 1e-3))
    np.testing.assert_allclose(reached, distances, rtol=0.02)  # FAB's own overshoot


@pytest.mark.parametrize("ball", [LinfBall, L2Ball, L1Ball])
def test_breaks_those_within_epsilon_and_no_others(ball):
    labels, distances = smallest(ball.norm)
    epsilon = float(np.median(distances))
    clear = np.abs(distances / epsilon - 1) > 0.02
    adversarial = FAB(ball(epsilon), steps=20, targets=2)(linear, IMAGES, labels)
    broken = np.argmax(linear(adversarial), -1) != labels
    np.testing.assert_array_equal(broken[clear], (distances < epsilon)[clear])
    assert 0 < broken.sum() < len(broken)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_onto_a_plane_within_the_bounds(norm):
    """Compared with a bisection on the length of the step, in float64."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 255, (20, 3, 3, 1))
    normal, value = rng.normal(0, 1, points.shape), rng.normal(0, 150, 20)
    ball = LinfBall(8) if norm == "linf" else L2Ball(8)
    step = FAB(ball)._to_plane(*(tf.constant(x, tf.float32) for x in (points, normal, value))).numpy()
    for x, w, v, computed in zip(points, normal, value, step):
        direction = -np.sign(w) * np.sign(v)
        speed = 1.0 if norm == "linf" else np.abs(w)
        room = np.where(direction > 0, 255 - x, x)
        low, high = 0.0, 1e6
        for _ in range(100):
            t = (low + high) / 2
            reached = np.sum(np.abs(w) * np.minimum(t * speed, room)) >= abs(v)
            low, high = (low, t) if reached else (t, high)
        np.testing.assert_allclose(computed, direction * np.minimum(high * speed, room), atol=0.02)


def test_refusals_and_names():
    assert (str(FAB(LinfBall(4))), str(FAB(LinfBall(4), targets=0))) == ("FAB-T", "FAB")
    with pytest.raises(ValueError, match="closest"):
        FAB(LinfBall(4), keep="last")
