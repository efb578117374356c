import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat import activations, models

X = np.linspace(-6, 6, 1001)  # with 0


def softplus(x):
    return np.logaddexp(0, x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FORMULAS = {
    "relu": np.maximum(X, 0),
    "silu": X * sigmoid(X),
    "swish": X * sigmoid(X),
    "gelu": 0.5 * X * (1 + np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3))),
    "elu": np.where(X > 0, X, np.exp(X) - 1),
    "softplus": softplus(X),
    "parametric_softplus": softplus(10 * X) / 10,
    "mish": X * np.tanh(softplus(X)),
    "smooth_relu": np.where(X > 0, X - np.log(1 + 400 * np.abs(X)) / 400, 0),
    "pssilu": X * (sigmoid(X) - 1e-8) / (1 - 1e-8),
    "leaky_relu": np.where(X > 0, X, 0.2 * X),
}


def apply(spec, x, **kwargs):
    return activations.layer(spec, dtype="float64")(tf.constant(x), **kwargs).numpy()


@pytest.mark.parametrize("name", activations.names())
def test_every_activation_is_its_formula(name):
    np.testing.assert_allclose(apply(name, X), FORMULAS[name], rtol=1e-6, atol=1e-7)


def test_options():
    from math import erf

    exact = [0.5 * x * (1 + erf(x / np.sqrt(2))) for x in X]
    np.testing.assert_allclose(apply({"name": "gelu", "approximate": False}, X), exact, atol=1e-7)
    np.testing.assert_allclose(apply({"name": "parametric_softplus", "alpha": 3}, X), softplus(3 * X) / 3, atol=1e-7)
    fixed = activations.layer({"name": "smooth_relu", "beta": 9, "trainable_beta": False}, dtype="float64")
    np.testing.assert_allclose(fixed(X), np.where(X > 0, X - np.log(1 + 9 * np.abs(X)) / 9, 0), atol=1e-7)
    assert fixed.weights == []
    shifted = activations.layer({"name": "pssilu", "alpha": 3, "beta": 0.2}, dtype="float64")
    np.testing.assert_allclose(shifted(X), X * (sigmoid(3 * X) - 0.2) / 0.8, atol=1e-7)
    np.testing.assert_allclose(apply({"name": "leaky_relu", "negative_slope": 0.5}, -1.0), -0.5)


def test_smooth_relu_learns_the_root_of_beta():
    layer = activations.layer("smooth_relu", "site")
    layer.build((None, 3))
    (root,) = layer.trainable_weights
    assert root.shape == (1,)
    assert float(root[0]) == 20
    root.assign([-3.0])  # it is squared: a negative root is as good
    np.testing.assert_allclose(layer(tf.constant([2.0])), [2 - np.log(1 + 18) / 9], rtol=1e-6)


def test_pssilu_learns_alpha_and_beta_whose_signs_do_not_matter():
    """Dai et al. 2021, compared with the form of RobustBench's network: x (sigmoid(|a| x) - |b|) / (1 - |b|)."""
    layer = activations.layer("pssilu", "site")
    layer.build((None, 3))
    alpha, beta = layer.trainable_weights
    assert (alpha.shape, beta.shape) == ((1,), (1,))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.constant([-1.0, 2.0])))
    assert all(abs(float(gradient[0])) > 0.01 for gradient in tape.gradient(loss, [alpha.value, beta.value]))
    alpha.assign([-2.0])
    beta.assign([-0.25])
    np.testing.assert_allclose(layer(tf.constant([1.5])), [1.5 * (sigmoid(3.0) - 0.25) / 0.75], rtol=1e-6)


@pytest.mark.parametrize("beta", [0.99, 1.0, -1.0, 1.5, 1e7, -1e30])
def test_pssilu_is_finite_for_every_beta_and_keeps_its_gradient(beta):
    x = np.array([-3.0, -0.5, 0, 0.5, 3], np.float32)
    layer = activations.layer("pssilu")
    layer.build((None, 5))
    layer.trained_beta.assign([beta])
    with tf.GradientTape() as tape:
        outputs = layer(x)
    np.testing.assert_allclose(outputs, x * (sigmoid(x) - 0.99) / 0.01, rtol=1e-4, atol=1e-6)
    gradient = tape.gradient(outputs, layer.trained_beta.value)
    expected = np.sign(beta) * np.sum(x * (sigmoid(x) - 1)) / 0.01**2  # training can lower it again
    np.testing.assert_allclose(gradient, [expected], rtol=1e-3)


def test_pssilu_trains_two_parameters_in_each_layer():
    model = models.ResNet8(activation="pssilu", input_shape=(28, 28, 1), classes=10)
    layers = [layer for layer in model.layers if isinstance(layer, activations.PSSiLU)]
    assert sum(weight.shape == (1,) for weight in model.trainable_weights) == 2 * len(layers) == 14


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("name", activations.names())
def test_low_precision_is_finite_and_close(name, policy):
    x = np.array([-300.0, -1, 0, 1, 300], np.float32)
    layer = activations.layer(name, dtype=policy)
    with tf.GradientTape() as tape:
        inputs = tf.cast(x, layer.compute_dtype)
        tape.watch(inputs)
        outputs = layer(inputs)
    assert outputs.dtype == layer.compute_dtype
    np.testing.assert_allclose(outputs, activations.layer(name)(tf.constant(x)), rtol=0.02, atol=0.02)
    assert np.isfinite(tf.cast(tape.gradient(outputs, inputs), tf.float32)).all()


@pytest.mark.parametrize("name", activations.names())
@pytest.mark.filterwarnings("ignore:.*HDF5.*")
def test_serialises_with_the_model(name, tmp_path):
    inputs = keras.Input((5,))
    model = keras.Model(inputs, activations.layer(name, "site")(inputs))
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))


def test_a_serialised_layer_is_a_spec():
    spec = keras.saving.serialize_keras_object(activations.layer({"name": "parametric_softplus", "alpha": 5}, "first"))
    layer = activations.layer(spec, "second")
    assert (layer.alpha, layer.name) == (5, "second")


def test_functions_and_layer_classes_are_specs():
    np.testing.assert_array_equal(activations.layer(tf.nn.relu6, "six")(tf.constant([7.0])), [6])
    assert isinstance(activations.layer(keras.layers.PReLU, "p"), keras.layers.PReLU)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rleu", "Known are elu, gelu"),
        ({"alpha": 3}, "Known are elu"),
        ({"name": "gelu", "alfa": 3}, "alfa"),
        ({"name": "relu", "smooth_backward": "defender"}, "attacker.*defender"),
        ({"name": "parametric_softplus", "alpha": 0}, "alpha must be positive"),
        ({"name": "pssilu", "beta": 0}, "beta must be positive"),
        ({"name": "pssilu", "beta": 1}, "beta must be at most 0.99"),
        ({"name": "leaky_relu", "negative_slope": 1}, "negative_slope must be"),
        (keras.layers.ReLU(), "pass its class"),
        (None, "must be a name"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        activations.layer(spec)


SMOOTHNESS = {
    "C0": ["relu", "leaky_relu", tf.nn.relu6, tf.nn.leaky_relu, keras.activations.hard_silu],
    "C1": ["elu", "smooth_relu", {"name": "smooth_relu", "beta": 9}, lambda x: tf.nn.relu(x - 0.123456) ** 2],
    "C2": ["silu", "gelu", "softplus", "parametric_softplus", "mish", "pssilu", tf.sin, tf.square],
    "discontinuous": [tf.sign, tf.round],
}


@pytest.mark.parametrize(("order", "spec"), [(order, spec) for order, specs in SMOOTHNESS.items() for spec in specs])
def test_smoothness(order, spec):
    assert activations.smoothness(spec) == order


CURVATURE = {  # closed forms of max |f''|
    "relu": (["relu", "leaky_relu", tf.nn.relu6, tf.round], np.inf),
    "silu": (["silu", "swish", "pssilu"], 0.5),
    "pssilu": ([{"name": "pssilu", "alpha": 3, "beta": 0.2}], 3 / (2 * 0.8)),
    "softplus": (["softplus"], 0.25),
    "parametric_softplus": (["parametric_softplus"], 2.5),
    "gelu": (["gelu", {"name": "gelu", "approximate": False}], np.sqrt(2 / np.pi)),
    "elu": (["elu"], 1.0),
    "smooth_relu": (["smooth_relu"], 400.0),
    "linear": ([lambda x: 2.0 * x], 0.0),
    "square": ([tf.square, lambda x: tf.stop_gradient(x * x)], 2.0),  # whatever TensorFlow differentiates
}


@pytest.mark.parametrize(("spec", "expected"), [(spec, value) for specs, value in CURVATURE.values() for spec in specs])
def test_curvature(spec, expected):
    assert activations.curvature(spec) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_curvature_of_a_detail_and_of_another_interval():
    assert activations.curvature("mish") == pytest.approx(0.6442046)  # of 10 million points, in NumPy
    assert activations.curvature(tf.exp, -1, 2) == pytest.approx(np.exp(2))
    with pytest.raises(ValueError, match="float64"):
        activations.curvature(lambda x: tf.cast(x, tf.float32))


def test_smoothness_refuses_what_it_cannot_judge():
    with pytest.raises(ValueError, match="float64"):
        activations.smoothness(lambda x: tf.cast(x, tf.float32))
    with pytest.raises(ValueError, match="not finite"):
        activations.smoothness(tf.math.log)


@pytest.mark.parametrize("place", ["attacker", "optimizer", "both"])
def test_ablation_replaces_the_gradient_only_where_it_is_asked_to(place):
    layer = activations.layer({"name": "relu", "smooth_backward": place, "alpha": 10}, dtype="float64")

    def gradient(training, attacking):
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            if attacking:
                with activations.training_attack():
                    y = layer(x, training=training)
            else:
                y = layer(x, training=training)
        np.testing.assert_array_equal(y, np.maximum(X, 0))  # forward: ReLU, exactly
        return tape.gradient(y, x).numpy()

    smooth, relu = sigmoid(10 * X), (X > 0).astype(float)
    np.testing.assert_allclose(gradient(False, attacking=True), smooth if place != "optimizer" else relu)
    np.testing.assert_allclose(gradient(True, attacking=False), smooth if place != "attacker" else relu)
    np.testing.assert_allclose(gradient(False, attacking=False), relu)  # an evaluation attack
