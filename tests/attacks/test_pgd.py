import dataclasses
import functools
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat import data, losses, models
from keras_sat.attacks import APGD, FAB, FGSM, PGD, AutoAttack, L1Ball, L2Ball, LinfBall, Square
from keras_sat.models import classifier

LOSSES = (losses.log_cross_entropy, losses.cross_entropy)
WEIGHTS = np.random.default_rng(3).normal(0, 1e-3, size=(12, 2)).astype(np.float32)


def linear(images):
    return tf.reshape(images, (-1, 12)) @ WEIGHTS


def grey(n=5):
    return np.full((n, 2, 2, 3), 128, np.uint8), np.zeros(n, int)


@pytest.fixture(scope="module", autouse=True)
def graph_optimization():
    """Switches TensorFlow's graph optimization off: these tests compile many small graphs, and run each once."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


CONTRACT = {
    "pgd": PGD(LinfBall(8), steps=3),
    "pgd-l2": PGD(L2Ball(60), steps=3),
    "pgd-worst": PGD(LinfBall(8), steps=3, keep="worst"),
    "pgd-l2-worst": PGD(L2Ball(60), steps=3, keep="worst", restarts=2),
    "pgd-restarts": PGD(LinfBall(8), steps=2, restarts=3),
    "pgd-targeted": PGD(LinfBall(8), steps=3, targeted=True),
    "pgd-margin": PGD(LinfBall(8), steps=3, loss=losses.margin),
    "pgd-clean-start": PGD(LinfBall(8), steps=2, clean_start=0.5),
    "pgd-normal-start": PGD(LinfBall(8), steps=2, start_std=0.255),
    "pgd-normal-start-worst": PGD(L2Ball(60), steps=2, start_std=20.0, keep="worst"),  # starts outside of the ball
    "fgsm": FGSM(LinfBall(8)),
    "fgsm-l2": FGSM(L2Ball(60)),
    "epsilon-0": PGD(LinfBall(0), steps=2),
    "pgd-first": PGD(LinfBall(8), steps=3, keep="first", restarts=2),
    "pgd-first-targeted": PGD(L2Ball(60), steps=3, keep="first", targeted=True),
    "apgd-ce": APGD(LinfBall(8), steps=6),
    "apgd-dlr-l2": APGD(L2Ball(60), steps=6, loss=losses.dlr, restarts=2),
    "apgd-t": APGD(LinfBall(8), steps=4, targets=3),
    "apgd-samples": APGD(LinfBall(8), steps=3, samples=3),
    "pgd-samples": PGD(LinfBall(8), steps=3, samples=3, keep="first"),
    "fab-samples": FAB(LinfBall(8), steps=3, targets=2, samples=2),
    "fab-t": FAB(LinfBall(8), steps=4, targets=3),
    "fab-l2": FAB(L2Ball(60), steps=4, targets=0, restarts=2),
    "fab-closest": FAB(LinfBall(8), steps=4, targets=2, keep="closest"),
    "square": Square(LinfBall(8), queries=20),
    "square-l2": Square(L2Ball(60), queries=20, restarts=2),
    "autoattack": AutoAttack(LinfBall(8), steps=3, queries=10),
    "pgd-l1": PGD(L1Ball(300), steps=3),
    "apgd-l1": APGD(L1Ball(300), steps=8),
    "fab-l1": FAB(L1Ball(300), steps=4, targets=3),
    "square-l1": Square(L1Ball(300), queries=20),
    "autoattack-rand": AutoAttack(L2Ball(60), "rand", steps=2),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*asks for 9 target classes")  # AutoAttack, of four classes
every_attack = pytest.mark.parametrize("attack", CONTRACT.values(), ids=CONTRACT)


@every_attack
def test_in_the_ball_and_in_the_bounds(attack, shared_model, images, labels):
    images[0], images[1] = 0, 255  # at the bounds
    adversarial = attack(shared_model, images, labels, seed=1).numpy()
    assert adversarial.dtype == np.float32
    delta = (adversarial.astype(float) - images).reshape(len(images), -1)
    size = np.linalg.norm(delta, {"linf": np.inf, "l2": 2, "l1": 1}[attack.ball.norm], axis=1)
    assert size.max() <= attack.ball.epsilon * (1 + 1e-6) + 1e-5
    assert adversarial.min() >= 0
    assert adversarial.max() <= 255


@every_attack
def test_same_seed_same_bytes_and_graph_equals_eager(attack, shared_model, images, labels):
    model = shared_model
    first, second = (attack(model, images, labels, seed=5).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    graph = tf.function(lambda x, y, seed: attack(model, x, y, seed=seed))
    np.testing.assert_allclose(graph(tf.constant(images), tf.constant(labels), 5), first, atol=1e-3)
    if getattr(attack, "random_start", True) and attack.ball.epsilon and not isinstance(attack, FAB):
        assert any(np.any(attack(model, images, labels, seed=seed).numpy() != first) for seed in range(6, 16))


@every_attack
def test_weights_and_batch_norm_statistics_are_untouched(attack, shared_model, images, labels):
    model = shared_model
    before = model.get_weights()
    attack(model, images, labels)
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("attack", [CONTRACT["pgd"], CONTRACT["pgd-l2-worst"]], ids=["linf", "l2"])
def test_runs_under_xla(attack, tiny_model, images, labels):
    model = tiny_model()
    compiled = tf.function(lambda x, y: attack(model, x, y, seed=5), jit_compile=True)
    eager = attack(model, images, labels, seed=5).numpy()
    differs = np.abs(compiled(tf.constant(images), tf.constant(labels)) - eager) > 1e-2
    assert np.mean(differs) < 0.01  # a sign may differ where a gradient is at rounding level


def test_closed_form_on_a_linear_model():
    images, labels = grey()
    ascent = (WEIGHTS[:, 1] - WEIGHTS[:, 0]).reshape(2, 2, 3)
    linf = PGD(LinfBall(8), steps=40)(linear, images, labels, seed=1)
    np.testing.assert_allclose(linf, images + 8 * np.sign(ascent), atol=1e-5)
    l2 = PGD(L2Ball(8), steps=4, random_start=False)(linear, images, labels)
    np.testing.assert_allclose(l2, images + 8 * ascent / np.linalg.norm(ascent) + 0 * images, atol=1e-3)
    target = PGD(LinfBall(8), steps=40, targeted=True)(linear, images, labels, seed=1)
    np.testing.assert_allclose(target, images - 8 * np.sign(ascent), atol=1e-5)


def test_fgsm_is_one_step_of_epsilon_from_the_image():
    images, labels = grey()
    sign = np.sign(WEIGHTS[:, 1] - WEIGHTS[:, 0]).reshape(2, 2, 3)
    np.testing.assert_allclose(FGSM(LinfBall(3))(linear, images, labels), images + 3 * sign)
    assert FGSM(LinfBall(3)) == PGD(LinfBall(3), steps=1, step_size=3, random_start=False)
    assert FGSM(LinfBall(3), random_start=True).random_start


@pytest.mark.filterwarnings("ignore:1 x step_size")
def test_clean_start_is_one_coin_for_the_batch():
    """With a step size near 0, the result is the start: either all images of the batch are clean, or none is."""
    attack = PGD(LinfBall(8), steps=1, step_size=1e-30, clean_start=0.2)
    images, labels = grey()
    clean = [np.mean(attack(linear, images, labels, seed).numpy() == images) for seed in range(300)]
    assert set(clean) == {0.0, 1.0}
    assert 0.1 < np.mean(clean) < 0.3  # 300 coins: 0.2 within four standard deviations


def test_the_random_start_is_clipped_only_after_the_first_gradient():
    """As in the release: at the first gradient, half of the pixels of a noisy black image are negative."""
    seen = []

    def watch(images):
        if not tf.inside_function() or images.shape[0] == 1:
            return linear(images)
        tf.py_function(lambda x: seen.append(float(tf.reduce_min(x))), [images], [])
        return linear(images)

    PGD(LinfBall(8), steps=2)(watch, np.zeros((5, 2, 2, 3)), np.zeros(5, int), seed=0)
    assert seen[0] < -1
    assert seen[1] == 0


def test_the_normal_start_is_projected_only_after_the_first_gradient():
    """As in TRADES' code. The noise is larger than the ball here, which shows where it is projected."""
    images, labels = grey(200)
    seen = []

    def watch(x):
        if x.shape[0] != 1 and tf.inside_function():
            tf.py_function(lambda x: seen.append(x.numpy() - images), [x], [])
        return linear(x)

    attack = PGD(LinfBall([8, 4, 8]), steps=2, start_std=10.0)
    adversarial = attack(watch, images, labels, seed=3).numpy()
    first, second = seen[:2]
    assert np.std(first[..., 0]) == pytest.approx(10, rel=0.1)
    assert np.std(first[..., 1]) == pytest.approx(5, rel=0.1)  # in the unit of the channel
    assert np.mean(np.abs(first[..., 0]) > 10) == pytest.approx(0.317, abs=0.06)
    for delta in (second, adversarial - images):
        assert np.all(np.abs(delta) <= np.array([8, 4, 8]) + 1e-5)
    assert attack.for_evaluation() == PGD(LinfBall([8, 4, 8]), steps=2)


def bumpy(images):
    """Correct at first; wrong in a narrow band around 132, correct again beyond it."""
    x = tf.reduce_mean(images, axis=(1, 2, 3))
    band = tf.abs(x - 132) < 0.5
    return tf.stack([tf.zeros_like(x), 0.01 * x + tf.where(band, 1.0, -3.0)], axis=1)


def test_keep_worst_keeps_a_misclassified_iterate():
    images, labels = grey()
    last = PGD(LinfBall(8), steps=8, step_size=1.0, random_start=False)
    worst = dataclasses.replace(last, keep="worst")
    assert np.all(tf.argmax(bumpy(last(bumpy, images, labels)), -1) == 0)
    assert np.all(tf.argmax(bumpy(worst(bumpy, images, labels)), -1) == 1)


def test_restarts_keep_the_worst_of_each_example(tiny_model, images, labels):
    model = tiny_model()
    one, many = (PGD(LinfBall(30), steps=2, restarts=restarts) for restarts in (1, 8))
    margins = [losses.margin(labels, model(attack(model, images, labels, seed=0))) for attack in (one, many)]
    assert np.all(margins[1] >= margins[0] - 1e-5)
    assert np.any(margins[1] > margins[0] + 1e-5)


def test_more_steps_are_stronger(tiny_model, images):
    model = tiny_model()
    labels = np.argmax(model(images), -1)
    loss = [
        float(tf.reduce_mean(losses.cross_entropy(labels, model(PGD(LinfBall(20), steps=k)(model, images, labels)))))
        for k in (1, 10)
    ]
    assert loss[1] > loss[0] > float(tf.reduce_mean(losses.cross_entropy(labels, model(images))))


BEYOND = LinfBall(38.25)  # 1.5 times the epsilon of the training: there many images fall


@functools.cache
def embedded():
    """Returns an embedded network that was trained adversarially, and 100 images with their labels."""
    ((images, labels),) = data.load("fashion_mnist_mini", "test[:100]", 100).as_numpy_iterator()
    return models.ResNet8(activation="silu", weights="sat-fashion-mnist"), images, labels


@functools.cache  # two tests ask for the same
def robust(attack, scale=1, precision=None):
    """Returns the robust accuracy in % of the network if an attack sees its logits multiplied by a number."""
    model, images, labels = embedded()
    attacked = classifier.in_precision(model, precision) if precision else model
    adversarial = attack(lambda x: scale * tf.cast(attacked(x), tf.float32), images, labels, seed=0)
    return 100 * np.mean(losses.is_correct(labels, model(adversarial)))


def test_large_logits_do_not_blind_the_attack():
    attack, plain = (PGD(BEYOND, 20, keep="first", loss=loss) for loss in LOSSES)
    small, large = (robust(attack, scale) for scale in (1, 1000))
    assert large <= small + 1  # measured: 66 % both
    assert robust(plain, 1000) >= large + 15  # 88 %, the clean accuracy: the cross entropy rounds to 0
    assert abs(robust(plain) - small) <= 1


def test_apgd_too_finds_as_much_with_large_logits():
    small, large = (robust(APGD(BEYOND, 20), scale) for scale in (1, 1000))
    assert abs(large - small) <= 2  # measured: 20 % both
    assert robust(APGD(BEYOND, 20, loss=losses.cross_entropy), 1000) >= large + 50  # 87 %


@pytest.mark.parametrize("scale", [1, 1000])
def test_an_attack_in_float16_is_as_strong(scale):
    """(The gradient of the cross entropy underflows in float16 where it does not in float32.)"""
    attack = PGD(BEYOND, 20, keep="first")
    assert abs(robust(attack, scale, "mixed_float16") - robust(attack, scale)) <= 1


def test_a_step_is_that_of_the_cross_entropy():
    model, images, labels = embedded()
    attack, plain = (PGD(LinfBall(8), 1, random_start=False, loss=loss)(model, images, labels) for loss in LOSSES)
    assert np.mean(attack.numpy() != plain.numpy()) < 1e-4


def test_no_retracing_over_batches_seeds_and_partial_batches():
    traces = []

    def counted(images):
        if tf.inside_function():
            traces.append(images.shape)
        return linear(images)

    attack = PGD(LinfBall(8), steps=2)
    attack(counted, *grey(5), seed=0)
    once = len(traces)
    attack(counted, *grey(3), seed=1)  # the first other size is traced once more, for any size
    twice = len(traces)
    for seed, n in enumerate((5, 4, 2, 1, 7)):
        attack(counted, *grey(n), seed=seed)
    assert len(traces) == twice <= 2 * once


def test_one_seed_or_one_for_each_example_in_any_order(tiny_model, images, labels):
    model, each = tiny_model(), tf.stack([tf.range(len(labels)), tf.ones(len(labels), tf.int32)], axis=1)
    for first, second in ((each, 0), (0, each)):
        attack = PGD(LinfBall(3.5), steps=2, step_size=1.25 if first is each else 1.5)  # each with a fresh function
        before = attack(model, images, labels, first)
        after = attack(model, images, labels, second)
        assert np.any(before != after)
        np.testing.assert_array_equal(attack(model, images, labels, first), before)


def test_a_model_is_released_after_an_attack(tiny_model, images, labels):
    model = tiny_model()
    PGD(LinfBall(8), steps=1)(model, images, labels)
    reference = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"steps": 2.5}, "steps must be an integer >= 1"),
        ({"restarts": 0}, "restarts"),
        ({"step_size": 0}, "step_size"),
        ({"step_size": float("nan")}, "step_size"),
        ({"step_size": "2"}, "step_size"),
        ({"clean_start": 1.5}, "probability"),
        ({"start_std": -1}, "start_std must be positive"),
        ({"start_std": 0.255, "random_start": False}, "start_std is for a random start"),
        ({"keep": "best"}, "last.*worst.*best"),
        ({"ball": 4}, "LinfBall"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        PGD(**{"ball": LinfBall(4), **options})


BAD_INPUTS = {
    "scaled otherwise": (lambda x, y: (x / 127.5 - 1, y), r"\(0.0, 255.0\).*Received values in \[-1, 1\]"),
    "not finite": (lambda x, y: (np.where(x > 200, np.nan, x), y), "finite"),
    "labels outside": (lambda x, y: (x, y + 4), r"labels must lie in 0..3. Received values in \[4, 7\]"),
    "a column of labels": (lambda x, y: (x, y[:, None]), r"labels\[:, 0\]"),
    "labels of halves": (lambda x, y: (x, y / 2), r"tf.cast\(labels, tf.int32\)"),
    "one-hot labels": (lambda x, y: (x, np.eye(4)[y]), "tf.argmax"),
    "no batch axis": (lambda x, y: (x[0], y[:1]), r"\[batch, height, width, channels\]"),
    "other numbers": (lambda x, y: (x, y[:3]), "8 and 3"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs(spoil, message, tiny_model, images):
    labels = np.arange(8) % 4
    with pytest.raises(ValueError, match=message):
        PGD(LinfBall(4))(tiny_model(), *spoil(images, labels))


# Each algorithm once: AutoAttack is made of them.
AWAY = {
    name: CONTRACT[name]
    for name in ("pgd", "pgd-l2-worst", "pgd-first", "apgd-ce", "apgd-t", "fab-t", "fab-l2", "square")
}


@pytest.mark.parametrize("attack", AWAY.values(), ids=AWAY)
def test_a_network_that_answers_nan_off_the_image_is_broken(attack, tiny_model, images):
    """NaN counts as misclassified: the attack keeps such an image, and stays in its ball."""
    model = tiny_model()
    labels = np.argmax(model(images), -1)

    def cracked(x):
        levels = tf.reduce_all(x == tf.round(x), axis=(1, 2, 3))
        return tf.where(levels[:, None], model(x), float("nan"))

    adversarial = attack(cracked, images, labels, seed=1)
    assert np.all(attack.ball.distance(adversarial, tf.cast(images, tf.float32)) <= attack.ball.radius + 1e-4)
    if np.any(adversarial != tf.round(adversarial)):  # FGSM and Square may step by whole levels
        assert not np.any(losses.is_correct(tf.constant(labels), cracked(adversarial)))


MEAN, DEVIATION = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.25])
STANDARDISED = (-MEAN / DEVIATION, (1 - MEAN) / DEVIATION)


@pytest.mark.parametrize("kind", [LinfBall, L2Ball])
@pytest.mark.parametrize("name", ["pgd", "pgd-targeted", "fgsm", "apgd-ce", "fab-t", "square"])
def test_images_standardised_by_channel_are_attacked_as_their_pixels(name, kind, tiny_model, images):
    model, unit = tiny_model(), 255 * DEVIATION
    labels = np.argmax(model(images), -1)
    balls = [kind(30.0), kind(30.0 / unit, bounds=STANDARDISED)]
    has_step = getattr(CONTRACT[name], "step_size", None)  # FGSM's, which is epsilon
    changes = [{"ball": ball, "step_size": ball.radius} if has_step else {"ball": ball} for ball in balls]
    attack, same = (dataclasses.replace(CONTRACT[name], **change) for change in changes)
    standardised = ((images / 255 - MEAN) / DEVIATION).astype(np.float32)
    adversarial = same(lambda x: model(x * unit + 255 * MEAN), standardised, labels, seed=1)
    differs = np.abs(adversarial * unit + 255 * MEAN - attack(model, images, labels, seed=1)) > 0.05
    assert np.mean(differs) < 0.01


def test_rounding_at_the_bounds_is_no_fault():
    """A white pixel that is standardised in float32 may be above the bounds by a rounding error."""
    ball = LinfBall(8 / 255 / DEVIATION, bounds=STANDARDISED)
    above = np.nextafter(np.float32(STANDARDISED[1]), np.float32(9))
    images = np.ones((2, 2, 2, 1), np.float32) * above
    adversarial = PGD(ball, steps=2)(linear, images, [0, 0])
    assert np.all(ball.distance(adversarial, images) <= ball.radius + 1e-5)
    with pytest.raises(ValueError, match="within the bounds"):
        PGD(ball, steps=2)(linear, images + 1e-3, [0, 0])


def test_a_ball_of_other_channels_is_refused(tiny_model, images, labels):
    with pytest.raises(ValueError, match="of 2 channels, the images have 3"):
        PGD(LinfBall([8, 8]))(tiny_model(), images, labels)


def test_one_logit_is_a_network_for_two_classes(images):
    """One logit z means the logits [-z, z]: class 1 if z > 0. With positive weights, bright images are class 1."""
    weights = np.full((192, 1), 1e-3, np.float32)

    def one(x):
        return tf.reshape(x, (-1, 192)) @ weights - 24.5

    def two(x):
        return tf.concat([-one(x), one(x)], axis=-1)

    labels = (one(tf.cast(images, tf.float32)).numpy()[:, 0] > 0).astype(int)
    for attack in (PGD(LinfBall(8), steps=3), APGD(L2Ball(60), steps=5), Square(LinfBall(8), queries=10)):
        np.testing.assert_allclose(attack(one, images, labels), attack(two, images, labels), atol=1e-4)
    with pytest.raises(ValueError, match=r"labels must lie in 0..1. Received values in \[1, 2\]"):
        PGD(LinfBall(8))(one, images, labels + 1)


def test_a_sigmoid_is_refused(tiny_model, images, labels):
    model = tiny_model()
    with pytest.raises(ValueError, match="a sigmoid hides the gradient"):
        PGD(LinfBall(4))(lambda x: tf.sigmoid(model(x)), images, labels)


def test_dark_images_of_whole_levels_are_no_images_in_0_to_1(tiny_model, images, labels):
    PGD(LinfBall(4), steps=1)(tiny_model(), images // 128, labels)  # a warning is an error
    standardised = (images / 255 * 2 - 1.1).astype(np.float32)
    PGD(LinfBall(0.1, bounds=(-2.2, 2.7)), steps=1)(tiny_model(), standardised, labels)


def test_images_in_0_to_1_are_warned_about(tiny_model, images, labels):
    with pytest.warns(UserWarning, match=r"bounds=\(0, 1\)"):
        PGD(LinfBall(4), steps=1)(tiny_model(), images / 255, labels)


def test_out_of_bounds_is_an_error_in_a_graph_too(tiny_model, images, labels):
    model = tiny_model()
    attack = tf.function(lambda x: PGD(LinfBall(4), steps=1)(model, x, labels))
    with pytest.raises(tf.errors.InvalidArgumentError, match="within the bounds of the attack"):
        attack(tf.cast(images, tf.float32) + 300)


def test_probabilities_are_refused(tiny_model, images, labels):
    model = keras.Sequential([tiny_model(), keras.layers.Softmax()])
    with pytest.raises(ValueError, match="softmax hides the gradient"):
        PGD(LinfBall(4))(model, images, labels)


def test_settings_say_all_that_is_needed_to_repeat_it():
    attack = PGD(LinfBall(4), steps=3, loss=losses.margin)
    assert attack.settings() == {
        "attack": "PGD",
        "norm": "linf",
        "epsilon": 4,
        "bounds": (0.0, 255.0),
        "steps": 3,
        "step_size": 4 / 3,
        "random_start": True,
        "clean_start": 0.0,
        "restarts": 1,
        "targeted": False,
        "keep": "last",
        "loss": "margin",
        "start_std": None,
        "samples": 1,
    }
    assert str(attack) == "PGD-3"


def test_steps_that_do_not_reach_the_ball_are_warned_of():
    with pytest.warns(UserWarning, match="10 x step_size 0.00784.* is less than epsilon 8: .*in the images' unit"):
        PGD(LinfBall(8), steps=10, step_size=2 / 255)
    PGD(LinfBall(8), steps=1, step_size=1)  # as in a training that goes on from step to step


@pytest.mark.parametrize("kind", [PGD, APGD])
def test_a_loss_is_a_function(kind):
    with pytest.raises(ValueError, match="loss must be a function, see keras_sat.losses. Received: 'cee'"):
        kind(LinfBall(8), loss="cee")


def test_no_images_is_an_error(tiny_model, images, labels):
    with pytest.raises(ValueError, match=r"images must have shape .* Received shape: \(0, 8, 8, 3\)"):
        PGD(LinfBall(8))(tiny_model(), images[:0], labels[:0])
