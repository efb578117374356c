import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sat
from keras_sat.attacks import FGSM, PGD, L2Ball, LinfBall
from keras_sat.training import AWP, MART, TRADES, AdversarialModel, Free, GradAlign, distribution

BALL = LinfBall(8)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def softmax(z):
    powers = np.exp(z - z.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def regularizer(weight, kernel, rows, images, near):
    """weight (1 - mean cosine) in closed form, for the logits x^2 kernel: their gradient is 2 x kernel."""
    ascents = [2 * x * ((softmax(x**2 @ kernel) - rows) @ kernel.T) for x in (images, near)]
    lengths = [np.linalg.norm(ascent, axis=1) for ascent in ascents]
    used = (lengths[0] > 0) & (lengths[1] > 0)
    cosines = np.sum(ascents[0] * ascents[1], axis=1)[used] / (lengths[0] * lengths[1])[used]
    return weight * (1 - np.mean(cosines))


@pytest.mark.parametrize("mixed", [False, True], ids=["hard labels", "mixed labels"])
def test_the_closed_form_and_its_derivative(mixed):
    """The gradient of the second image is 0, and so is that of the point near the third: both are left out."""
    random = np.random.default_rng(0)
    kernel = random.normal(size=(12, 3))
    images, near = random.uniform(-1, 1, (2, 6, 12))
    images[1], near[2] = 0, 0
    rows = random.dirichlet(np.ones(3), 6) if mixed else np.eye(3)[random.integers(0, 3, 6)]
    variable = tf.Variable(kernel, dtype=tf.float32)

    def logits(x):
        return tf.matmul(tf.reshape(x, (-1, 12)) ** 2, variable)

    with tf.GradientTape() as tape:
        points = (tf.constant(x.reshape(6, 2, 2, 3), tf.float32) for x in (images, near))
        penalty = GradAlign(0.5).penalty(logits, tf.constant(rows, tf.float32), *points)
        loss = tf.reduce_mean(penalty)
    assert loss.numpy() == pytest.approx(regularizer(0.5, kernel, rows, images, near), rel=1e-5)
    np.testing.assert_array_equal(penalty.numpy()[[1, 2]], 0)
    differences = np.zeros_like(kernel)
    for place in np.ndindex(*kernel.shape):
        moved = np.zeros_like(kernel)
        moved[place] = 1e-6
        up, down = (regularizer(0.5, kernel + sign * moved, rows, images, near) for sign in (1, -1))
        differences[place] = (up - down) / 2e-6
    np.testing.assert_allclose(tape.gradient(loss, variable), differences, atol=1e-5 * np.abs(differences).max() + 1e-7)


def test_no_gradient_at_all_is_no_penalty():
    images = tf.zeros([2, 2, 2, 3])
    weights = tf.Variable(tf.ones([12, 3]))
    with tf.GradientTape() as tape:
        rows = tf.one_hot([0, 1], 3)
        penalty = GradAlign().penalty(lambda x: tf.reshape(x, (2, 12)) ** 2 @ weights, rows, images, images)
    np.testing.assert_array_equal(penalty, 0)
    np.testing.assert_array_equal(tape.gradient(penalty, weights), 0)


def step(model, images, labels, weight, attack=FGSM(BALL), one_hot=False, **options):  # noqa: B008 - frozen
    """Takes a step, and returns its loss."""
    alignment = GradAlign(weight) if weight else None
    trainer = AdversarialModel(model, attack, gradient_alignment=alignment, **options)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True) if one_hot else CROSS_ENTROPY
    trainer.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    labels = np.eye(4, dtype=np.float32)[labels] if one_hot else labels
    return trainer.train_on_batch(images, labels, return_dict=True)["loss"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"one_hot": True},
        {"objective": TRADES(clean_statistics=False), "attack": PGD(L2Ball(60), steps=1)},
        {"objective": MART()},
    ],
    ids=["adversarial training", "one-hot labels", "trades", "mart"],
)
def test_it_is_added_to_the_objective_and_moves_no_statistics(options, tiny_model, images, labels):
    """The loss is linear in the weight of the regularizer."""
    models = [tiny_model() for _ in range(3)]
    losses = [step(model, images, labels, weight, **options) for model, weight in zip(models, (0, 100, 200))]
    assert losses[2] - losses[0] == pytest.approx(2 * (losses[1] - losses[0]), rel=1e-3)
    assert 0.05 < losses[2] - losses[0] < 10
    for plain, aligned in zip(models[0].non_trainable_variables, models[2].non_trainable_variables):
        np.testing.assert_allclose(plain, aligned, rtol=1e-6)
    assert np.abs(models[0].get_weights()[0] - models[2].get_weights()[0]).max() > 1e-6


def test_a_step_with_awp_and_a_small_weight_is_that_without(tiny_model, images, labels):
    models = [tiny_model() for _ in range(2)]
    for model, weight in zip(models, (0, 1e-7)):
        step(model, images, labels, weight, weight_perturbation=AWP(0.1))
    for one, other in zip(*(model.get_weights() for model in models)):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_two_replicas_and_xla_equal_one_device(tiny_model, images, labels):
    """With points near the images that depend on the images alone, not on the replica."""

    def trained(strategy="none", jit_compile=False):
        with distribution.strategy(strategy).scope():
            trainer = AdversarialModel(tiny_model(), FGSM(BALL), gradient_alignment=GradAlign(100))
            trainer._near = lambda x, seed: tf.cast(x, tf.float32) + 8 * tf.sin(0.37 * tf.cast(x, tf.float32))
            trainer.compile(keras.optimizers.SGD(0.05), CROSS_ENTROPY, jit_compile=jit_compile)
        history = trainer.fit(images, labels, batch_size=8, epochs=2, shuffle=False, verbose=0).history
        return history["loss"], np.concatenate([np.ravel(weight) for weight in trainer.classifier.get_weights()])

    expected, reference = trained()
    for options in ({"strategy": "mirrored"}, {"jit_compile": True}):
        losses, weights = trained(**options)
        assert losses == pytest.approx(expected, rel=1e-4)
        np.testing.assert_allclose(weights, reference, atol=1e-4)


def test_the_points_are_random_in_the_ball_and_not_those_of_the_attack(tiny_model, images):
    trainer = AdversarialModel(
        tiny_model(), PGD(BALL, steps=1), gradient_alignment=GradAlign(), epsilon_schedule=lambda step: 0.5
    )
    trainer.compile("sgd", CROSS_ENTROPY)
    seeds = [trainer._replica_seed(step) for step in range(2)]
    near = [trainer._near(images, seed) - tf.cast(images, tf.float32) for seed in seeds]
    assert np.all(np.abs(near) <= 4 + 1e-5)
    assert np.std(near[0]) == pytest.approx(4 / np.sqrt(3), rel=0.1)
    assert abs(np.corrcoef(np.ravel(near[0]), np.ravel(near[1]))[0, 1]) < 0.1


@pytest.mark.slow
def test_it_prevents_catastrophic_overfitting():
    """One step of 128 at an epsilon of 64: without it, training becomes robust to this attack alone."""
    train = keras_sat.data.load(
        "fashion_mnist_mini", "train[:6000]", 50, image_size=14, training=True, augment=False, epochs=3
    )
    test = keras_sat.data.load("fashion_mnist_mini", "test[:500]", 500, image_size=14)
    trained, robust = {}, {}
    for alignment in (None, GradAlign(1.0)):
        keras.utils.set_random_seed(0)
        layers = [keras.Input((14, 14, 1)), keras.layers.Rescaling(2 / 255, -1.0)]
        layers += [keras.layers.Conv2D(width, 3, 2, "same", activation="relu") for width in (32, 64)]
        layers += [keras.layers.Flatten(), keras.layers.Dense(128, "relu"), keras.layers.Dense(10)]
        model = keras.Sequential(layers)
        attack = PGD(LinfBall(64), steps=1, step_size=128.0)
        trainer = AdversarialModel(model, attack, PGD(LinfBall(64)), gradient_alignment=alignment)
        trainer.compile(keras.optimizers.Adam(0.003), CROSS_ENTROPY, metrics=["accuracy"])
        history = trainer.fit(train, steps_per_epoch=120, epochs=3, shuffle=False, verbose=0).history
        trained[alignment] = history["adversarial_accuracy"][-1]
        robust[alignment] = trainer.evaluate(test, verbose=0, return_dict=True)["robust_accuracy"]
    assert trained[None] > 0.45
    assert robust[None] < 0.2
    assert robust[GradAlign(1.0)] > robust[None] + 0.1
    assert robust[GradAlign(1.0)] > 0.25


def test_refusals(tiny_model):
    with pytest.raises(ValueError, match="weight must be positive. Received: 0"):
        GradAlign(0)
    with pytest.raises(ValueError, match=r"must be GradAlign\(weight\), or None. Received: 0.2"):
        AdversarialModel(tiny_model(), FGSM(BALL), gradient_alignment=0.2)
    with pytest.raises(ValueError, match="by one gradient: it takes no gradient_alignment"):
        AdversarialModel(tiny_model(), FGSM(BALL), objective=Free(2), gradient_alignment=GradAlign())
