import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sat
from keras_sat.attacks import FGSM, PGD, LinfBall, Square
from keras_sat.training import AWP, MART, TRADES, AdversarialModel, AdversarialTraining, Free, GradAlign

BALL = LinfBall(8)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(model, attack, learning_rate=0.1, **options):
    trainer = AdversarialModel(model, attack, **options)
    trainer.compile(keras.optimizers.SGD(learning_rate), CROSS_ENTROPY, metrics=["accuracy"])
    return trainer


def softmax(logits):
    powers = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def divergence(p, q):
    return np.sum(p * np.log(p / q), axis=-1)


def expected_objective(objective, labels, adversarial, clean):
    """The published formulas, in NumPy."""
    p, q, rows = softmax(clean), softmax(adversarial), np.arange(len(labels))
    if isinstance(objective, TRADES):
        return np.mean(-np.log(p[rows, labels]) + objective.beta * divergence(p, q))
    if isinstance(objective, MART):
        wrong = q.copy()
        wrong[rows, labels] = 0
        boosted = -np.log(q[rows, labels]) - np.log(1.0001 - wrong.max(-1))
        return np.mean(boosted + objective.beta * divergence(p, q) * (1 - p[rows, labels]))
    return np.mean(-np.log(q[rows, labels]))


OBJECTIVES = [AdversarialTraining(), TRADES(beta=2.0), MART(beta=3.0)]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_loss_of_a_step_is_the_published_formula(objective, tiny_model, images, labels):
    model = tiny_model(batch_norm=False)
    trainer = compiled(model, PGD(BALL, steps=2), objective=objective)
    clean = model(images).numpy()
    moved = np.clip(images + np.random.default_rng(2).uniform(-8, 8, images.shape), 0, 255).astype(np.float32)
    adversarial = model(moved).numpy()
    trainer._adversarial = lambda *_: tf.constant(moved)
    logs = trainer.train_on_batch(images, labels, return_dict=True)
    assert logs["loss"] == pytest.approx(expected_objective(objective, labels, adversarial, clean), rel=1e-4)
    assert logs["adversarial_accuracy"] == pytest.approx(np.mean(adversarial.argmax(-1) == labels))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_sample_weights_weigh_the_whole_objective(objective, tiny_model, images, labels):
    weight = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32)
    losses = []
    for rows, weights in ((slice(None), weight), (slice(4), None)):
        trainer = compiled(tiny_model(batch_norm=False), PGD(BALL, steps=2), objective=objective)
        trainer._adversarial = lambda x, *_: 0.9 * tf.cast(x, tf.float32)
        logs = trainer.train_on_batch(images[rows], labels[rows], sample_weight=weights, return_dict=True)
        losses.append(logs["loss"] * len(images[rows]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_attack_of_trades_ascends_the_divergence(tiny_model, images, labels):
    model = tiny_model()
    ours = compiled(model, PGD(BALL, steps=10), objective=TRADES())
    theirs = compiled(model, PGD(BALL, steps=10))
    clean = softmax(model(images).numpy())
    divergences = {}
    for name, trainer in (("divergence", ours), ("cross entropy", theirs)):
        adversarial = trainer._adversarial(tf.constant(images), tf.constant(labels, tf.int32), tf.constant([0, 0]))
        assert np.max(np.abs(adversarial - images)) <= 8 + 1e-4
        divergences[name] = divergence(clean, softmax(model(adversarial).numpy()))
    assert np.mean(divergences["divergence"]) > np.mean(divergences["cross entropy"])
    np.testing.assert_array_less(0, divergences["divergence"])


def test_the_attack_of_trades_on_labels_leaves_the_mixed_labels(tiny_model, images):
    """With CutMix, the attack lowers the probability of both classes, not only of the larger one."""
    model = tiny_model()
    rows = np.random.default_rng(3).dirichlet(np.full(4, 0.5), 8).astype(np.float32)

    def cross_entropy(x):
        return np.mean(-np.sum(rows * np.log(softmax(np.float64(model(x)))), axis=-1))

    found = {}
    for name, objective in (("labels", TRADES(attack_labels=True)), ("divergence", TRADES())):
        trainer = compiled(model, PGD(BALL, steps=10), objective=objective)
        adversarial = trainer._adversarial(tf.constant(images), tf.constant(rows), tf.constant([0, 0]))
        found[name] = cross_entropy(adversarial)
    hard = PGD(BALL, steps=10)(model, images, rows.argmax(-1), seed=[0, 0])
    assert found["labels"] > found["divergence"]
    assert found["labels"] > cross_entropy(hard)
    still = PGD(BALL, steps=1, random_start=False)  # the cross entropy has a gradient at the image itself
    AdversarialModel(model, still, objective=TRADES(attack_labels=True))


def test_the_clean_images_of_trades_may_leave_the_statistics_alone(tiny_model, images, labels):
    """As in DeepMind's code: both passes take the statistics of their batch, the adversarial ones alone are kept."""
    moved = (0.8 * images).astype(np.float32)
    losses, statistics = [], []
    for objective in (TRADES(), TRADES(clean_statistics=False), AdversarialTraining()):
        model = tiny_model()
        trainer = compiled(model, PGD(BALL, steps=1), learning_rate=0.0, objective=objective)
        trainer._adversarial = lambda *_: tf.constant(moved)
        losses.append(trainer.train_on_batch(images, labels, return_dict=True)["loss"])
        statistics.append(np.concatenate([np.ravel(v) for v in model.non_trainable_variables]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    np.testing.assert_allclose(statistics[1], statistics[2], rtol=1e-6)
    assert np.abs(statistics[0] - statistics[1]).max() > 1e-4


def test_trades_may_pass_the_clean_images_twice(tiny_model, images, labels):
    """As in the authors' code: clean, adversarial, clean. The second pass moves the statistics alone."""
    moved, momentum = (0.8 * images).astype(np.float32), 0.99
    loss, means = [], []
    for passes in (1, 2):
        model = tiny_model()
        trainer = compiled(model, PGD(BALL, steps=1), learning_rate=0.0, objective=TRADES(clean_passes=passes))
        trainer._adversarial = lambda *_: tf.constant(moved)
        loss.append(trainer.train_on_batch(images, labels, return_dict=True)["loss"])
        means.append(model.layers[2].moving_mean.numpy())
    of_clean, of_moved = (model.layers[1](model.layers[0](part)).numpy().mean((0, 1, 2)) for part in (images, moved))
    assert loss[0] == pytest.approx(loss[1], rel=1e-6)
    once = (1 - momentum) * (momentum * of_clean + of_moved)
    np.testing.assert_allclose(means[0], once, rtol=1e-4)
    np.testing.assert_allclose(means[1], momentum * once + (1 - momentum) * of_clean, rtol=1e-4)
    for wrong in ({"clean_passes": 3}, {"clean_passes": 2, "clean_statistics": False}):
        with pytest.raises(ValueError, match="clean_passes must be 1, or 2 with clean_statistics"):
            TRADES(**wrong)


def reference_step(model, images, labels, learning_rate=0.1):
    """Takes a step of SGD on the cross entropy. Returns also the gradient with respect to the images."""
    images = tf.constant(images, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = CROSS_ENTROPY(labels, model(images, training=True))
    *gradients, by_image = tape.gradient(loss, [*(v.value for v in model.trainable_variables), images])
    for variable, gradient in zip(model.trainable_variables, gradients):
        variable.assign_sub(learning_rate * gradient)
    return gradients, by_image


def test_awp_takes_the_gradient_where_the_weights_are_worst(tiny_model, images, labels):
    model, reference = tiny_model(), tiny_model()
    still = PGD(LinfBall(0), steps=1)
    compiled(model, still, weight_perturbation=AWP(gamma=0.1)).train_on_batch(images, labels)

    before = reference.get_weights()
    gradients, _ = reference_step(tiny_model(), images, labels)
    moved = {}
    for variable, gradient in zip(reference.trainable_variables, gradients):
        if len(variable.shape) > 1:
            kernel, g = variable.numpy(), gradient.numpy()
            moved[variable.path] = 0.1 * np.linalg.norm(kernel) * g / np.linalg.norm(g)
            variable.assign_add(moved[variable.path])
    reference_step(reference, images, labels)
    for variable in reference.trainable_variables:
        variable.assign_sub(moved.get(variable.path, 0.0))
    assert len(moved) == 2
    for ours, theirs, initial in zip(model.get_weights(), reference.get_weights(), before):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert np.any(ours != initial)  # the moving statistics too: they moved once


class Costly(keras.layers.Layer):
    """A layer that adds a loss, and has a kernel that nothing uses."""

    def build(self, input_shape):
        self.unused = self.add_weight(shape=(3, 3), name="unused")

    def call(self, inputs):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables.*unused")
def test_awp_keeps_the_losses_of_layers(images, labels):
    """With a tiny perturbation, a step equals the step without AWP, also if layers add losses."""

    def build():
        keras.utils.set_random_seed(0)
        options = {"kernel_regularizer": "l2", "activity_regularizer": keras.regularizers.L2(0.01)}
        layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3, **options)]
        layers += [keras.layers.BatchNormalization(), Costly(), keras.layers.Flatten()]
        return keras.Sequential([*layers, keras.layers.Dense(4, kernel_regularizer="l2")])

    results = {}
    for awp in (None, AWP(1e-9), AWP(0.1)):
        model = build()
        loss = compiled(model, PGD(LinfBall(0), steps=1), weight_perturbation=awp).train_on_batch(images, labels)
        results[awp] = np.concatenate([[loss if np.ndim(loss) == 0 else loss[0]], *map(np.ravel, model.get_weights())])
    np.testing.assert_allclose(results[AWP(1e-9)], results[None], atol=1e-5)
    assert np.abs(results[AWP(0.1)] - results[None]).max() > 1e-3


@pytest.mark.parametrize("objective", [*OBJECTIVES, Free(replays=2)], ids=str)
def test_awp_goes_around_any_objective(objective, tiny_model, images, labels):
    results = []
    for awp in (None, AWP(gamma=0.05)):
        model = tiny_model()
        trainer = compiled(model, PGD(BALL, steps=2), objective=objective, weight_perturbation=awp)
        trainer.fit(images, labels, batch_size=8, epochs=2, verbose=0)
        results.append(np.concatenate([np.ravel(w) for w in model.get_weights()]))
    difference = np.abs(results[0] - results[1]).max()
    assert 1e-6 < difference < 0.5


def test_free_replays_a_batch_and_moves_it_by_the_gradient_of_the_same_pass(tiny_model, images, labels):
    model, reference = tiny_model(), tiny_model()
    trainer = compiled(model, PGD(BALL, step_size=5.0), objective=Free(replays=3))
    points = BALL.sample(trainer._replica_seed(0), tf.cast(images, tf.float32))
    trainer.train_on_batch(images, labels)
    for _ in range(3):
        _, gradient = reference_step(reference, points, labels)
        points = np.clip(points + 5.0 * np.sign(gradient), images - 8.0, images + 8.0).clip(0, 255)
    assert int(trainer.optimizer.iterations) == 3
    for ours, theirs in zip(model.get_weights(), reference.get_weights()):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"attack": PGD(BALL, steps=2), "objective": TRADES()},
        {"attack": PGD(BALL, steps=2), "objective": MART()},
        {"attack": PGD(BALL, steps=2), "weight_perturbation": AWP()},
        {"attack": FGSM(BALL), "gradient_alignment": GradAlign()},
        {"attack": FGSM(BALL), "objective": Free(replays=2)},
    ],
    ids=lambda options: " ".join(str(value) for value in options.values()),
)
def test_mixed_precision_and_batch_statistics_in_the_attack(options, tiny_model, images, labels):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = tiny_model()
    finally:
        keras.config.set_dtype_policy(before)
    trainer = compiled(model, attack_batch_norm="batch", learning_rate=0.05, **options)
    losses = trainer.fit(images, labels, epochs=6, batch_size=8, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def small_network():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((14, 14, 1)), keras.layers.Rescaling(2 / 255, -1.0)]
    for width in (8, 16):
        layers += [keras.layers.Conv2D(width, 5, strides=2, padding="same", use_bias=False)]
        layers += [keras.layers.BatchNormalization(momentum=0.9), keras.layers.Activation("silu")]
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10)])


@pytest.fixture(scope="module")
def robust_accuracy():
    """Returns a function: robust accuracy after a short training on real images."""
    train = keras_sat.data.load("fashion_mnist_mini", "train[:1500]", 50, image_size=14, training=True, augment=False)
    test = keras_sat.data.load("fashion_mnist_mini", "test[:250]", 250, image_size=14)

    def train_and_attack(attack, epochs=2, **options):
        model = small_network()
        trainer = AdversarialModel(model, attack, **options)
        trainer.compile(keras.optimizers.AdamW(0.008), CROSS_ENTROPY)
        trainer.fit(train, epochs=epochs, shuffle=False, verbose=0)
        return keras_sat.evaluation.evaluate(model, test, PGD(LinfBall(25.5), steps=10), progress=False)[
            "PGD-10"
        ].accuracy

    return train_and_attack


@pytest.fixture(scope="module")
def undefended(robust_accuracy):
    return robust_accuracy(PGD(LinfBall(0), steps=1))


@pytest.mark.parametrize(
    "options",
    [
        {"attack": PGD(LinfBall(25.5), steps=2)},
        {"attack": PGD(LinfBall(25.5), steps=2), "objective": TRADES()},
        {"attack": PGD(LinfBall(25.5), steps=2), "objective": MART()},
        {"attack": PGD(LinfBall(25.5), steps=2), "objective": TRADES(), "weight_perturbation": AWP()},
        {"attack": FGSM(LinfBall(25.5)), "objective": Free(replays=4), "epochs": 1},
    ],
    ids=["pgd", "trades", "mart", "trades awp", "free"],
)
def test_each_beats_plain_training_by_far(options, robust_accuracy, undefended):
    assert undefended < 0.25
    assert robust_accuracy(**options) > undefended + 0.2


def test_refusals(tiny_model):
    for objective in (TRADES, MART):
        with pytest.raises(ValueError, match="beta must be positive"):
            objective(beta=0)
    with pytest.raises(ValueError, match="gamma must be positive"):
        AWP(gamma=-1)
    with pytest.raises(ValueError, match="replays must be an integer >= 1"):
        Free(replays=0)
    model = tiny_model()
    with pytest.raises(ValueError, match="needs random_start=True"):
        AdversarialModel(model, PGD(BALL, random_start=False), objective=TRADES())
    with pytest.raises(ValueError, match="whose loss it can choose"):
        AdversarialModel(model, Square(BALL), objective=TRADES())
    with pytest.raises(ValueError, match="takes ball and step size from the attack, which must be PGD"):
        AdversarialModel(model, Square(BALL), objective=Free())
    with pytest.raises(ValueError, match="objective must be an objective"):
        AdversarialModel(model, PGD(BALL), objective="trades")
    for options in ({"attack_precision": "mixed_bfloat16"}, {"attack_batch_norm": "frozen"}):
        with pytest.raises(ValueError, match="from the training step itself"):
            AdversarialModel(model, FGSM(BALL), objective=Free(), **options)


def test_free_attacks_in_training_mode_and_validates_with_pgd_10(tiny_model):
    trainer = AdversarialModel(tiny_model(), FGSM(BALL), objective=Free(replays=2))
    assert trainer.attack_batch_norm == "batch"
    assert trainer.evaluation_attack == PGD(BALL)
    assert Free(replays=2).settings() == {"objective": "Free", "replays": 2}
