"""One step of the real trainer against the formulas of the authors' code, in float64 NumPy.

TRADES: https://github.com/yaodongyu/TRADES, trades.py. AWP: https://github.com/csdongxian/AWP, trades_AWP.
"""

import keras
import numpy as np
import pytest

from keras_sat.attacks import PGD, LinfBall, randomness
from keras_sat.training import AWP, TRADES, AdversarialModel, decay_weights

EPSILON, STEP, NOISE, STEPS = 0.031 * 255, 0.007 * 255, 0.001 * 255, 10
BETA, GAMMA, DECAY, RATE = 6.0, 0.005, 2e-2, 0.5  # the decay is a hundred times theirs: one step shows it


def network():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((3, 3, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    random = {"kernel_initializer": keras.initializers.RandomNormal(stddev=0.7), "bias_initializer": "normal"}
    return keras.Sequential([*layers, keras.layers.Dense(6, "tanh", **random), keras.layers.Dense(3, **random)])


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def forward(weights, x):
    """Returns the inputs of both layers, and the logits."""
    first, bias, second, other = weights
    hidden = np.tanh(x @ first + bias)
    return x, hidden, hidden @ second + other


def backward(weights, x, by_logits):
    """Returns the gradients of the weights, and of the input, from the gradient of the logits."""
    x, hidden, _ = forward(weights, x)
    by_hidden = (by_logits @ weights[2].T) * (1 - hidden**2)
    by_weights = [x.T @ by_hidden, by_hidden.sum(axis=0), hidden.T @ by_logits, by_logits.sum(axis=0)]
    return by_weights, by_hidden @ weights[0].T


def attacked(weights, x, noise):
    """The loop over KLDivLoss(size_average=False)(log_softmax(model(x_adv)), softmax(model(x_natural)))."""
    p = np.exp(log_softmax(forward(weights, x)[-1]))
    moved = x + noise
    for _ in range(STEPS):
        q = np.exp(log_softmax(forward(weights, moved)[-1]))
        _, ascent = backward(weights, moved, q - p)
        moved = moved + STEP / 255 * np.sign(ascent)
        moved = np.minimum(np.maximum(moved, x - EPSILON / 255), x + EPSILON / 255).clip(0, 1)
    return moved


def trades(weights, x, moved, labels):
    """Returns cross_entropy(f(x), y) + beta / batch KLDivLoss, and the gradients of the weights."""
    log_p, log_q = (log_softmax(forward(weights, images)[-1]) for images in (x, moved))
    p, q, target = np.exp(log_p), np.exp(log_q), np.eye(3)[labels]
    divergence = np.sum(p * (log_p - log_q), axis=-1)
    loss = np.mean(-np.sum(target * log_p, axis=-1)) + BETA * np.mean(divergence)
    by_clean = (p - target + BETA * p * (log_p - log_q - divergence[:, None])) / len(x)
    by_moved = BETA * (q - p) / len(x)
    gradients = zip(backward(weights, x, by_clean)[0], backward(weights, moved, by_moved)[0])
    return loss, [one + other for one, other in gradients]


def awp(weights, gradients):
    """Returns the weights with diff_in_weights added: biases are left out."""
    return [
        w + GAMMA * np.linalg.norm(w) / (np.linalg.norm(g) + 1e-20) * g if w.ndim > 1 else w
        for w, g in zip(weights, gradients)
    ]


@pytest.mark.parametrize("weight_perturbation", [None, AWP(GAMMA)], ids=["trades", "trades awp"])
def test_a_step_is_that_of_the_authors(weight_perturbation):
    model = network()
    images = np.random.default_rng(4).integers(0, 256, (7, 3, 3, 1)).astype(np.uint8)
    labels = np.random.default_rng(5).integers(0, 3, 7)
    optimizer = keras.optimizers.SGD(RATE, momentum=0.9)
    decay_weights(model, optimizer, DECAY, on="all")
    attack = PGD(LinfBall(EPSILON), steps=STEPS, step_size=STEP, start_std=NOISE)
    trainer = AdversarialModel(model, attack, objective=TRADES(BETA), weight_perturbation=weight_perturbation, seed=3)
    trainer.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    weights = [np.float64(weight) for weight in model.get_weights()]
    start = randomness.fold(randomness.fold(trainer._replica_seed(0), 0), 0)
    noise = np.float64(NOISE * randomness.normal(start, images.shape))
    logged = trainer.train_on_batch(images, labels, return_dict=True)["loss"]

    x, noise = (np.float64(part).reshape(7, 9) / 255 for part in (images, noise))
    moved = attacked(weights, x, noise)
    loss, gradients = trades(weights, x, moved, labels)
    at = weights
    if weight_perturbation is not None:
        at = awp(weights, gradients)
        loss, gradients = trades(at, x, moved, labels)
    assert logged == pytest.approx(loss + DECAY / 2 * sum(np.sum(w**2) for w in at), rel=1e-5)
    for after, w, place, g in zip(model.get_weights(), weights, at, gradients):
        step = -RATE * (g + DECAY * place)  # torch's SGD, which decays the perturbed weights
        np.testing.assert_allclose(after, w + step, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(after - w, step, rtol=1e-3, atol=1e-5 * np.abs(step).max())
