import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import APGD, FAB, FGSM, PGD, Attack, AutoAttack, L2Ball, LinfBall, Square

BALL = LinfBall(8)
ALL = [PGD(BALL), FGSM(BALL), APGD(BALL), FAB(BALL), Square(BALL), AutoAttack(BALL)]


class Darken(Attack):
    """An attack that a user defines: it subtracts epsilon."""

    def perturb(self, logits_fn, images, labels, seed, start=None, *, static_shapes=False):
        return self.ball.project(images - 255, images)


def test_an_attack_of_ones_own_is_one_method(tiny_model, images, labels):
    attack = Darken(BALL)
    np.testing.assert_array_equal(attack(tiny_model(), images, labels), np.maximum(images.astype(np.float32) - 8, 0))
    assert attack.settings() == {"attack": "Darken", "norm": "linf", "epsilon": 8, "bounds": (0.0, 255.0)}
    assert attack.stages == [attack]
    assert (attack.max_forward_passes, attack.needs_gradients, attack.accepts_start, attack.targeted) == (
        1,
        True,
        False,
        False,
    )
    with pytest.raises(ValueError, match="ball must be a LinfBall, an L2Ball or an L1Ball"):
        Darken(8)


def test_perturb_is_all_that_a_subclass_must_write():
    with pytest.raises(TypeError, match="perturb"):
        Attack(BALL)


@pytest.mark.parametrize("attack", ALL, ids=str)
def test_every_attack_is_one_and_says_what_it_is(attack):
    assert isinstance(attack, Attack)
    assert hash(attack) == hash(dataclasses.replace(attack))
    assert attack.max_forward_passes >= 1
    assert sum(stage.max_forward_passes for stage in attack.stages) == attack.max_forward_passes
    assert attack.needs_gradients == (not isinstance(attack, Square))
    assert attack.accepts_start == isinstance(attack, (PGD, APGD))
    assert attack.random_start == (attack != FGSM(BALL))
    assert attack.step_size == (8 if attack == FGSM(BALL) else None)
    assert {"attack", "norm", "epsilon", "bounds"} <= attack.settings().keys()
    assert attack.with_radius(4).ball == LinfBall(4)
    assert attack.bounds == BALL.bounds


def test_the_step_size_follows_epsilon():
    assert PGD(BALL, step_size=2).with_radius(4).step_size == 1
    assert FGSM(BALL).with_radius(4) == FGSM(LinfBall(4))
    assert PGD(BALL).with_radius(4).step_size is None
    with pytest.raises(ValueError, match="cannot be scaled with epsilon"):
        PGD(LinfBall(0), step_size=2).with_radius(4)


def test_variants():
    assert PGD(BALL, clean_start=0.2).for_evaluation() == PGD(BALL)
    assert PGD(BALL, keep="first").for_transfer() == PGD(BALL, keep="worst")
    assert APGD(BALL).for_evaluation() == APGD(BALL).for_transfer() == APGD(BALL)
    assert PGD(BALL).with_loss(losses.margin) == PGD(BALL, loss=losses.margin)
    assert APGD(BALL).with_loss(losses.dlr) == APGD(BALL, loss=losses.dlr)
    with pytest.raises(ValueError, match="Square has no loss to choose"):
        Square(BALL).with_loss(losses.margin)


@pytest.mark.parametrize("attack", [FAB(BALL), Square(BALL), AutoAttack(BALL)], ids=str)
def test_a_start_that_would_be_ignored_is_refused(attack, tiny_model, images, labels):
    with pytest.raises(ValueError, match="does not accept start="):
        attack(tiny_model(), images, labels, start=images)


@pytest.mark.parametrize("keep", ["last", "worst", "first"])
def test_what_comes_from_a_start_outside_the_ball_is_in_the_ball(keep, tiny_model, images, labels):
    adversarial = PGD(BALL, steps=2, keep=keep)(tiny_model(), images, labels, start=255 - images)
    assert float(tf.reduce_max(tf.abs(adversarial - tf.cast(images, tf.float32)))) <= 8 + 1e-4


def test_scales_reach_the_images_and_cost_no_new_trace(tiny_model, images, labels):
    model, traces = tiny_model(), []
    images = np.clip(images, 20, 235)

    def logits_fn(x):
        traces.append(1)
        return model(x)

    attack = PGD(BALL, steps=1, step_size=8, random_start=False)
    moved = []
    for epsilon, step_size in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.25)):
        adversarial = attack(logits_fn, images, labels, epsilon_scale=epsilon, step_size_scale=step_size)
        moved.append(float(tf.reduce_max(tf.abs(adversarial - tf.cast(images, tf.float32)))))
    np.testing.assert_allclose(moved, [8, 4, 2], atol=1e-4)
    eager = 3 * 2  # check_logits asks twice a call
    assert len(traces) <= eager + 2
    with pytest.raises(ValueError, match="APGD-CE does not accept epsilon_scale"):
        APGD(BALL)(model, images, labels, epsilon_scale=0.5)


def test_static_shapes_are_no_part_of_an_attack(tiny_model, images, labels):
    attack = PGD(L2Ball(200), steps=3, keep="first")
    assert "static_shapes" not in attack.settings()
    plain, static = (attack(tiny_model(), images, labels, seed=1, static_shapes=shapes) for shapes in (False, True))
    np.testing.assert_allclose(plain, static, atol=1e-3)


def test_it_sees_what_layers_of_the_network_computed_since_the_last_call(images, labels):
    """A Normalization layer computes constants from its weights, which a traced function keeps."""
    normalization = keras.layers.Normalization()
    inner = keras.Sequential([keras.Input((8, 8, 3)), normalization, keras.layers.Conv2D(4, 3, activation="silu")])
    model = keras.Sequential([inner, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    attack, results = PGD(BALL, steps=2, random_start=False), []
    for power in (1, 1.5):
        normalization.adapt(images.astype(np.float32) ** power)
        results.append(attack(model, images, labels % 3))
        np.testing.assert_allclose(results[-1], attack(lambda x: model(x), images, labels % 3), atol=1e-3)
    assert np.abs(results[0] - results[1]).max() > 1


def test_a_layer_that_stores_its_output_is_compiled_once(images, labels):
    class Storing(keras.layers.Layer):
        traces = 0

        def call(self, x):
            Storing.traces += not tf.executing_eagerly()
            self.last = x
            return x

    model = keras.Sequential([keras.Input((8, 8, 3)), Storing(), keras.layers.Flatten(), keras.layers.Dense(3)])
    PGD(BALL, steps=2)(model, images, labels % 3)
    before = Storing.traces
    PGD(BALL, steps=2)(model, images, labels % 3)
    assert Storing.traces == before


def test_a_loss_of_ones_own_is_named_by_its_code_and_not_by_its_file():
    def named(source, file):
        loss = eval(compile(source, file, "eval"), {"losses": losses})
        return PGD(LinfBall(4), loss=loss).settings()["loss"]

    source = "lambda y, z: 2 * losses.cross_entropy(y, z)"
    assert named(source, "here.py") == named("\n" + source, "there.py") != named(source.replace("2", "3"), "here.py")
    assert PGD(LinfBall(4), loss=losses.cross_entropy).settings()["loss"] == "cross_entropy"
