import numpy as np
import pytest
import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import APGD, L1Ball, L2Ball, LinfBall, value_and_gradient
from keras_sat.attacks.apgd_steps import checkpoints, of


def test_checkpoints_are_those_of_the_paper():
    """p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), in 100 steps."""
    p = [0, 22]
    while p[-1] + max(p[-1] - p[-2] - 3, 6) <= 100:
        p.append(p[-1] + max(p[-1] - p[-2] - 3, 6))
    marks = checkpoints(100)
    assert list(np.flatnonzero(marks)) == p[1:] == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [marks[at] for at in p[1:]] == list(np.diff(p))
    assert len(marks) == 101
    assert checkpoints(1) == [0, 1]


def by_the_paper(model, image, label, epsilon, steps, norm):
    """Runs algorithm 1 of arXiv:2003.01690 in NumPy, for one example, starting at the image. Returns all points."""

    def project(x):
        delta = x - image
        if norm == "linf":
            delta = np.clip(delta, -epsilon, epsilon)
        elif np.linalg.norm(delta) > epsilon:
            delta *= epsilon / np.linalg.norm(delta)
        return np.clip(image + delta, 0, 255)

    def loss_and_ascent(x):
        loss, _, gradient = value_and_gradient(model, losses.cross_entropy, tf.constant(x[None], tf.float32), [label])
        gradient = gradient.numpy()[0].astype(float)
        return float(loss[0]), np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)

    x = previous = best = image
    loss, ascent = loss_and_ascent(x)
    best_loss, best_ascent, step, rises, last = loss, ascent, 2 * epsilon, 0, 0
    checked, halved, halvings = loss, True, []
    w = [k for k, mark in enumerate(checkpoints(steps)) if mark]
    for k in range(1, steps + 1):
        z = project(x + step * ascent)
        a = 1.0 if k == 1 else 0.75
        x, previous = project(x + a * (z - x) + (1 - a) * (x - previous)), x
        new, ascent = loss_and_ascent(x)
        rises += new > loss
        loss = new
        if loss > best_loss:
            best, best_loss, best_ascent = x, loss, ascent
        if k in w:
            stuck = not halved and checked >= best_loss
            halved = rises <= 0.75 * (k - last) or stuck
            if halved:
                step, x, ascent = step / 2, best, best_ascent
                halvings.append(k)
            last, rises, checked = k, 0, best_loss
    return best, best_loss, halvings


@pytest.mark.parametrize("ball", [LinfBall(3), L2Ball(20)], ids=["linf", "l2"])
def test_step_halving_is_that_of_the_paper(ball, tiny_model, images):
    model = tiny_model(batch_norm=False)
    labels = np.argmax(model(images), -1)
    attack = APGD(ball, steps=25)
    ours = attack(model, images, labels, start=tf.cast(images, tf.float32)).numpy()
    robust = np.argmax(model(ours), -1) == labels  # the others stop at their first misclassified iterate
    assert robust.sum() >= 3
    halvings = 0
    for image, label, attacked in zip(images[robust], labels[robust], ours[robust]):
        best, best_loss, halved = by_the_paper(model, image.astype(float), label, ball.epsilon, 25, ball.norm)
        halvings += len(halved)
        reached = float(losses.cross_entropy([label], model(attacked[None]))[0])
        assert reached == pytest.approx(best_loss, rel=1e-3)
        assert np.mean(np.abs(attacked - best) > 0.05) < 0.02  # a sign may differ by rounding
    assert halvings > 0


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.filterwarnings("ignore:.*target classes")
def test_few_classes(classes):
    """Compared with a closed form: a step of 2 epsilon ends in the best corner for the runner-up, or the target."""
    weights = np.random.default_rng(3).normal(0, 1e-3, (12, classes)).astype(np.float32)

    def linear(images):
        return tf.reshape(images - 128, (-1, 12)) @ weights

    image = np.full((1, 2, 2, 3), 128, np.uint8)
    for attack in (APGD(LinfBall(8), loss=losses.dlr), APGD(LinfBall(8), targets=9)):
        adversarial = attack(linear, image, [0])
        corner = 128 + 8 * np.sign(weights[:, 1:] - weights[:, :1]).T.reshape(-1, 2, 2, 3)
        assert np.any(np.all(np.isclose(adversarial, corner), axis=(1, 2, 3))) or np.argmax(linear(adversarial)) != 0


def test_more_targets_than_classes_are_said(tiny_model, images, labels):
    with pytest.warns(UserWarning, match="APGD-T asks for 9 target classes, but there are only 3"):
        APGD(LinfBall(4), steps=1, targets=9)(tiny_model(), images, labels)


def test_names_and_refusals():
    names = [str(APGD(LinfBall(4), loss=loss)) for loss in (losses.cross_entropy, losses.log_cross_entropy, losses.dlr)]
    assert names == ["APGD-CE", "APGD-CE", "APGD-DLR"]
    assert str(APGD(LinfBall(4), targets=9)) == "APGD-T"
    assert APGD(LinfBall(4), targets=9).settings()["loss"] == "targeted_dlr"
    for options, message in (({"steps": 0}, "steps"), ({"targets": -1}, "targets"), ({"samples": 0}, "samples")):
        with pytest.raises(ValueError, match=message):
            APGD(LinfBall(4), **options)


def test_l1_reaches_the_best_point_of_a_linear_model():
    """In the ball and the bounds, it is: the pixel with the largest weight moves to its bound, then the next one."""
    weights = np.random.default_rng(3).normal(0, 1e-2, (192, 2)).astype(np.float32)
    images = np.random.default_rng(4).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    difference = weights[:, 1] - weights[:, 0]

    def linear(x):  # no image of the ball is misclassified
        return tf.reshape(x, (-1, 192)) @ weights + [1000.0, 0.0]

    adversarial = APGD(L1Ball(1000), steps=60)(linear, images, np.zeros(8, int)).numpy()
    for image, found in zip(images.reshape(8, -1).astype(float), adversarial.reshape(8, -1)):
        room = np.where(difference > 0, 255 - image, image)
        order, best, left = np.argsort(-np.abs(difference)), 0.0, 1000.0
        for k in order:
            best, left = best + np.abs(difference[k]) * min(room[k], left), max(left - room[k], 0)
        assert (found - image) @ difference >= 0.99 * best
        assert np.abs(found - image).sum() <= 1000.001


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 100])
def test_the_phases_of_l1(steps):
    rules = of(L1Ball(10))
    phases = rules.phases(steps)
    assert sum(number for _, number in phases) == steps
    assert phases[-1][0] == L1Ball(10)
    if steps == 100:
        assert phases == [(L1Ball(30), 30), (L1Ball(20), 30), (L1Ball(10), 40)]
        assert of(L1Ball([0, 0, 0])).phases(steps) == [(L1Ball([0, 0, 0]), 100)]
        assert [k for k, mark in enumerate(rules.checkpoints(40)) if mark] == list(range(1, 41))


def test_the_first_phase_of_l1_begins_with_a_fifth_of_the_values():
    images = tf.zeros((2, 5, 5, 1))
    points = images + np.array([60.0] * 3 + [0] * 22, np.float32).reshape(1, 5, 5, 1)  # three values changed
    for is_first, share in ((True, 0.2), (False, 3 / 25 / 1.5)):
        np.testing.assert_allclose(of(L1Ball(200)).initial(images, points, is_first)["share"], share, rtol=1e-6)


@pytest.mark.parametrize("ball", [LinfBall(4), L1Ball(40)], ids=["linf", "l1"])
def test_forward_passes_are_counted(ball, images):
    calls = []

    def robust(x):
        calls.append(x)
        return tf.stack([1e3 + tf.reduce_sum(x, (1, 2, 3)), tf.zeros(x.shape[0])], 1)

    attack = APGD(ball, steps=10, restarts=2)
    attack.perturb(robust, tf.cast(images, tf.float32), tf.zeros(len(images), tf.int32), tf.constant([1, 2]))
    assert 2 * len(calls) == attack.max_forward_passes  # a gradient counts as two
