import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import PGD, AutoAttack, L2Ball, LinfBall, Square, Transfer
from keras_sat.evaluation import evaluate, merge, report
from keras_sat.evaluation.signs import Signs, sentences

PGD_3 = PGD(LinfBall(40), steps=3)
NOT_FOUND = (
    "No sign of gradient masking was found. Checked: outputs that change from pass to pass, outputs that depend on the "
    "other images of a batch"
)


ZERO = "gradients that are zero."
UNCHECKED = " Not checked: whether an attack without gradients breaks more (add square, or take autoattack)."


@pytest.fixture(scope="module")
def data(tiny_model):
    model = tiny_model()
    images = np.random.default_rng(7).integers(0, 256, (24, 8, 8, 3)).astype(np.uint8)
    return model, (images, np.argmax(model(images), -1))


def last(report):
    return report.table().splitlines()[-1]


def test_a_healthy_network_has_none(data, tmp_path):
    model, examples = data
    one = evaluate(model, examples, {"PGD": PGD_3, "Square": Square(LinfBall(40), queries=1)})
    assert last(one) == f"{NOT_FOUND}, gradients that are zero, images that only a gradient-free attack breaks."
    one.to_json(tmp_path / "report.json")
    assert report.from_json(tmp_path / "report.json").remarks() == one.remarks()
    assert last(evaluate(model, examples, Square(LinfBall(4), queries=1))) == f"{NOT_FOUND}."
    assert last(evaluate(model, examples, PGD_3)) == f"{NOT_FOUND}, {ZERO}{UNCHECKED}"


def test_random_outputs(data):
    model, examples = data
    noisy = evaluate(lambda x: model(tf.cast(x, tf.float32) + tf.random.normal(tf.shape(x))), examples, PGD_3)
    assert "Warning: the outputs change from pass to pass" in noisy.table()


@pytest.mark.filterwarnings("ignore:.*asks for 9 target classes")
def test_gradients_of_zero_and_what_only_square_breaks(data):
    model, examples = data

    @tf.custom_gradient
    def hidden(x):
        return tf.identity(x), tf.zeros_like

    def masked(x):
        return model(hidden(tf.cast(x, tf.float32)))

    table = evaluate(masked, examples, AutoAttack(LinfBall(60), steps=1, queries=60)).table()
    assert "Warning: for 24 of 24 images the gradient is zero" in table
    assert "Warning: AutoAttack: a gradient-free attack broke" in table
    attacks = {"PGD": PGD(LinfBall(60), steps=1, random_start=False)}
    attacks |= {"moved": Transfer(model, PGD(LinfBall(60), steps=10)), "another ball": Square(L2Ball(900), queries=60)}
    table = evaluate(masked, examples, attacks).table()
    assert "Warning: moved: a gradient-free attack broke" in table
    assert "Warning: another ball" not in table


def test_shards_are_merged(data):
    model, examples = data
    parts = [evaluate(model, examples, PGD_3, shard=(k, 2), batch_size=6) for k in range(2)]
    assert merge(parts).signs.images == sum(part.signs.images for part in parts)
    assert ZERO in last(merge(parts))


def test_gradients_are_those_of_the_loss_that_the_attack_ascends(data):
    """Of large logits, the plain cross entropy is 0, and its logarithm is not."""
    model, examples = data

    def large(x):
        return 1e6 * model(x)

    plain = PGD(LinfBall(40), steps=3, loss=losses.cross_entropy)
    assert "of 24 images the gradient is zero" in evaluate(large, examples, plain).table()
    assert ZERO in last(evaluate(large, examples, PGD_3))
    assert "gradient" not in last(evaluate(large, examples, Square(LinfBall(4), queries=1))).partition(":")[2]


@pytest.mark.filterwarnings("ignore:.*asks for 9 target classes")
def test_what_square_breaks_in_low_precision_counts(data):
    model, examples = data
    attack = AutoAttack(LinfBall(2), steps=1, queries=1)
    one = evaluate(model, examples, attack, attack_precision="mixed_bfloat16")["AutoAttack"]
    assert [name for name in one.broken_by if name.startswith("Square")] == ["Square, low precision", "Square"]
    row = dataclasses.replace(one, broken_by=dict.fromkeys(one.broken_by, 0) | {"Square, low precision": 3})
    (line,) = sentences(Signs(24, False, 0), [row], {"attacks": {}})
    assert "AutoAttack: a gradient-free attack broke 3 of 24 images" in line


def test_outputs_that_depend_on_the_other_images(data):
    model, examples = data

    def by_place(x):
        return model(x) + tf.random.stateless_normal((tf.shape(x)[0], 4), (0, 0))

    def by_the_batch(x):
        return model(tf.cast(x, tf.float32) - tf.reduce_mean(tf.cast(x, tf.float32), 0))

    for network in (by_place, by_the_batch):
        assert "Warning: the outputs for an image depend on the other images" in evaluate(network, examples, []).table()
    assert "depend on the other images" not in evaluate(model, examples, PGD_3).table().replace(NOT_FOUND, "")
