import json
import re

import numpy as np
import pytest
import tensorflow as tf

from keras_sat.attacks import PGD, L2Ball, LinfBall
from keras_sat.evaluation import audit
from keras_sat.evaluation._audit import FAIL, PASS, SKIP

BALL = LinfBall(6)


@pytest.fixture(scope="module")
def data(tiny_model):
    """A healthy model, and images with the labels it gives them."""
    model = tiny_model()
    images = np.random.default_rng(7).integers(0, 256, (50, 8, 8, 3)).astype(np.uint8)
    return model, (images, np.argmax(model(images), -1))


def outcomes(report):
    return {check.name: check.outcome for check in report.checks}


def failed(defence, data, **options):
    return audit(defence, data, BALL, steps=10, queries=60, **options).failed


@pytest.mark.parametrize("ball", [BALL, L2Ball(60)], ids=["linf", "l2"])
def test_a_healthy_network_passes(ball, data, tiny_model, tmp_path, capsys):
    model, examples = data
    report = audit(model, examples, ball, steps=10, queries=60, surrogate=tiny_model(seed=1))
    assert set(outcomes(report).values()) == {PASS}, report.table()
    assert report.passed
    verdict = "Audit passed: none of 9 checks found gradient masking. This does not prove that there is none."
    assert report.table().endswith(verdict)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Auditing for gradient masking, on up to 128 images ...", "audit: 50 images, 9 checks"]
    report.to_json(tmp_path / "audit.json")
    assert json.loads((tmp_path / "audit.json").read_text())["passed"] is True


@pytest.fixture(scope="module")
def without_surrogate(data):
    model, examples = data
    return audit(model, examples, LinfBall([6, 3, 6]), steps=8, queries=10)


def test_without_a_surrogate_transfer_is_not_run(without_surrogate):
    assert without_surrogate["transfer"].outcome == SKIP


def test_a_softmax_is_caught(data):
    model, examples = data
    report = audit(lambda x: tf.nn.softmax(model(x)), examples, BALL, steps=10, queries=60)
    assert report["softmax in the output"].outcome == FAIL
    assert "attack the logits" in report.table()
    assert report["randomness"].outcome == PASS


def test_randomness_is_caught(data):
    model, examples = data

    def noisy(images):
        return model(tf.cast(images, tf.float32) + tf.random.normal(tf.shape(images), 0, 20))

    assert "randomness" in failed(noisy, examples)


def test_rounded_inputs_are_caught_for_they_have_no_gradient(data):
    model, examples = data
    report = audit(lambda x: model(tf.round(tf.cast(x, tf.float32) / 16) * 16), examples, BALL, steps=10, queries=60)
    assert report["gradients"].outcome == FAIL
    assert "no gradient at all" in report["gradients"].measured
    assert report["black box"].outcome == FAIL  # the search finds what gradients do not
    assert report["loss over steps"].outcome == SKIP


def test_saturated_logits_hide_nothing_from_these_attacks_and_are_named(data):
    model, examples = data
    report = audit(lambda x: 1e6 * model(x), examples, BALL, steps=10, queries=60)
    assert report.passed, report.table()
    assert re.search(
        "plain cross entropy, which other libraries ascend, is zero for [1-9]", report["gradients"].measured
    )


def test_a_gradient_of_zero_is_caught(data):
    model, examples = data
    report = audit(lambda x: 1e6 * tf.clip_by_value(model(x), -1e-3, 1e-3), examples, BALL, steps=10, queries=60)
    assert report["gradients"].outcome == FAIL


def test_gradients_that_are_not_finite_are_caught(data):
    model, examples = data

    def defence(images):
        images = tf.cast(images, tf.float32)
        return model(images) + 1e-9 * tf.norm(images - images, axis=(1, 2))[:, :1]

    report = audit(defence, examples, BALL, steps=10, queries=60)
    assert report["gradients"].outcome == FAIL
    assert re.search("not finite for [1-9]", report["gradients"].measured)


def test_gradients_that_mislead_are_caught(data, tiny_model):
    model, examples = data

    @tf.custom_gradient
    def misleading(images):
        return images, lambda upstream: -upstream

    report = audit(
        lambda x: model(misleading(tf.cast(x, tf.float32))), examples, BALL, steps=10, queries=200, surrogate=model
    )
    expected = {"unbounded epsilon", "black box", "transfer", "loss over steps"}
    assert expected <= set(report.failed), report.table()
    assert report["gradients"].outcome == PASS  # at the images, the gradients look normal


def test_a_surrogate_is_attacked_beyond_its_boundary(data, tiny_model):
    """Images at the surrogate's boundary, where an attack may stop, fool other networks less often."""
    model, _ = data
    random, surrogate = np.random.default_rng(0), tiny_model()
    surrogate.set_weights([w + 0.3 * w.std() * random.normal(size=w.shape) for w in model.get_weights()])
    images = random.integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
    labels = np.argmax(model(images), -1)
    check = audit(model, (images, labels), BALL, steps=10, queries=10, surrogate=surrogate)["transfer"]
    correct = {
        keep: np.mean(np.argmax(model(PGD(BALL, 10, 1.5, keep=keep)(surrogate, images, labels)), -1) == labels)
        for keep in ("first", "worst")
    }
    assert correct["worst"] < correct["first"] - 0.05
    assert check.measured.startswith(f"{100 * correct['worst']:.0f} % correct on the surrogate's")


def test_gradients_that_lead_astray_after_the_first_step_are_caught(data):
    """The gradient is right at the images and reversed elsewhere: one step is stronger than many or a larger ball."""
    model, (images, labels) = data
    known = tf.constant(images, tf.float32)[None]

    @tf.custom_gradient
    def astray(x):
        is_known = tf.reduce_any(tf.reduce_all(x[:, None] == known, axis=(2, 3, 4)), axis=1)
        return x, lambda upstream: tf.where(is_known[:, None, None, None], upstream, -upstream)

    report = audit(lambda x: model(astray(tf.cast(x, tf.float32))), (images, labels), BALL, steps=10, queries=60)
    assert report["one step or many"].outcome == FAIL, report.table()
    assert report["gradients"].outcome == PASS


def test_gradients_that_vanish_between_the_images_are_caught(data):
    """The gradient is 0 except at the images: a larger ball does not break more of them."""
    model, (images, labels) = data
    known = tf.constant(images, tf.float32)[None]

    @tf.custom_gradient
    def vanishing(x):
        is_known = tf.reduce_any(tf.reduce_all(x[:, None] == known, axis=(2, 3, 4)), axis=1)
        return x, lambda upstream: tf.where(is_known[:, None, None, None], upstream, 0.0)

    ball = LinfBall(1.5)
    report = audit(lambda x: model(vanishing(tf.cast(x, tf.float32))), (images, labels), ball, steps=10, queries=60)
    assert {"larger epsilon", "unbounded epsilon"} <= set(report.failed), report.table()


def test_nothing_to_audit(data):
    model, (images, labels) = data
    with pytest.raises(ValueError, match="nothing to audit"):
        audit(model, (images, (labels + 1) % 4), BALL)


def test_what_is_not_finite_is_not_correct(data):
    model, (images, labels) = data

    def in_half(x):
        return tf.where(x[:, :1, 0, 0] % 2 == 0, model(x), float("nan"))

    report = audit(in_half, (images, labels), BALL, steps=2, queries=10)
    assert report["randomness"].outcome == PASS
    with pytest.raises(ValueError, match=r"nothing to audit. .* \(For 50 a logit is NaN or infinite.\)"):
        audit(lambda x: model(x) * float("nan"), (images, 0 * labels), BALL)


def test_a_sigmoid_and_a_network_with_one_logit(data):
    model, (images, labels) = data
    report = audit(lambda x: tf.sigmoid(model(x)), (images, labels), BALL, steps=2, queries=2)
    assert report["softmax in the output"].outcome == FAIL
    assert report["softmax in the output"].measured == "probabilities (sigmoid)"

    def one(x):
        return model(x)[:, :1]

    labels = (one(images).numpy()[:, 0] > 0).astype(int)
    assert audit(one, (images, labels), BALL, steps=2, queries=2)["softmax in the output"].outcome == PASS


def test_a_ball_with_an_epsilon_for_each_channel(without_surrogate):
    assert without_surrogate["unbounded epsilon"].outcome == PASS
