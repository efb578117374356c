import numpy as np
import pytest
import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import L1Ball, L2Ball, LinfBall, Square
from keras_sat.attacks.square import bump, square_sizes

WEIGHTS = np.random.default_rng(3).normal(0, 1e-2, size=(48, 2)).astype(np.float32)
IMAGES = np.random.default_rng(4).uniform(100, 150, (6, 4, 4, 3)).astype(np.float32)


def linear(images):
    return (tf.reshape(images, (-1, 48)) - 128) @ WEIGHTS + [6.0, 0.0]


def smallest(norm):
    logits = np.array(linear(IMAGES))
    w = WEIGHTS[:, 1] - WEIGHTS[:, 0]
    dual = np.linalg.norm(w, {"linf": 1, "l2": 2, "l1": np.inf}[norm])  # in L1, with bounds, the distance is larger
    return logits.argmax(1), np.abs(logits[:, 1] - logits[:, 0]) / dual


@pytest.mark.parametrize("ball", [LinfBall, L2Ball, L1Ball])
def test_never_breaks_what_cannot_be_and_finds_what_easily_can(ball):
    labels, distances = smallest(ball.norm)
    for epsilon, breaks in ((0.99 * distances.min(), False), (4 * distances.max(), True)):
        adversarial = Square(ball(epsilon), queries=300)(linear, IMAGES, labels)
        assert np.all((np.argmax(linear(adversarial), -1) != labels) == breaks)


def test_l1_starts_with_all_of_epsilon():
    """The first proposal is better or not; the start is what is returned where it is not."""
    grey = np.full((20, 10, 10, 3), 128, np.uint8)
    weights = np.random.default_rng(3).normal(0, 1e-3, (300, 2)).astype(np.float32)

    def robust(images):
        return tf.reshape(images, (-1, 300)) @ weights + [1000.0, 0.0]

    adversarial = Square(L1Ball(600), queries=1)(robust, grey, np.zeros(20, int)).numpy()
    np.testing.assert_allclose(np.abs(adversarial.astype(float) - grey).sum((1, 2, 3)), 600, rtol=1e-3)


def test_more_queries_raise_the_margin(tiny_model, images):
    model = tiny_model()
    labels = np.argmax(model(images), -1)
    margins = [
        losses.margin(labels, model(Square(LinfBall(3), queries=queries)(model, images, labels)))
        for queries in (1, 150)
    ]
    assert np.mean(margins[1]) > np.mean(margins[0])


def test_schedule_of_the_squares():
    sizes = square_sizes(5000, 0.8, 28, 28, "linf")
    assert len(sizes) == 5001
    # p halves after 10, 50, 200, 500, 1000, 2000, 4000 queries: sqrt(p * 28 * 28), rounded
    at = {1: 0.8, 12: 0.4, 60: 0.2, 300: 0.1, 600: 0.05, 1500: 0.025, 3000: 0.0125, 4500: 0.00625}
    for query, p in at.items():
        assert sizes[query] == max(1, round(np.sqrt(p * 28 * 28)))
    assert all(size % 2 == 1 for size in square_sizes(5000, 0.8, 31, 31, "l2")[1:])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_bump(size):
    pattern = bump(size)
    assert np.linalg.norm(pattern) == pytest.approx(1)
    assert np.all(pattern[: size // 2] > 0)
    assert np.all(pattern[size // 2 :] < 0)


def test_unknown_sizes_and_bad_settings():
    with pytest.raises(ValueError, match="p_init"):
        Square(LinfBall(4), p_init=0)
    with pytest.raises(ValueError, match=r"channels first.*, 3, 8, 8\)"):
        Square(LinfBall(4))(linear, tf.zeros((2, 3, 8, 8)), tf.zeros(2, tf.int32))
    run = tf.function(lambda x: Square(LinfBall(4))(linear, x, tf.zeros(2, tf.int32)))
    with pytest.raises(ValueError, match="size of the images"):
        run.get_concrete_function(tf.TensorSpec((2, None, None, 3)))
