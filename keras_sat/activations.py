"""Smooth activations, and the one factory through which every nonlinearity of the package is made.

Formulas follow Xie et al. 2020, "Smooth Adversarial Training" (arXiv:2006.14536), and its authors' release.
"""

import contextlib
import contextvars
import math

import keras
import numpy as np
import tensorflow as tf

_attacking = contextvars.ContextVar("keras_sat_training_attack", default=False)


@contextlib.contextmanager
def training_attack():
    """Within this context a model's forward pass is the attacker's, in training: see `SmoothBackwardReLU`."""
    token = _attacking.set(True)
    try:
        yield
    finally:
        _attacking.reset(token)


@keras.saving.register_keras_serializable("keras_sat")
class GELU(keras.layers.Layer):
    """Gaussian error linear unit, x * Phi(x).

    Args:
        approximate: True (the release's): 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); False: Phi by erf.
    """

    def __init__(self, approximate=True, **kwargs):
        super().__init__(**kwargs)
        self.approximate = approximate

    def call(self, inputs):
        # x^3 leaves the range of float16 at |x| = 41, where its gradient would be NaN.
        x = _at_least_float32(inputs)
        return keras.ops.cast(keras.ops.gelu(x, approximate=self.approximate), inputs.dtype)

    def get_config(self):
        return {**super().get_config(), "approximate": self.approximate}


@keras.saving.register_keras_serializable("keras_sat")
class Mish(keras.layers.Layer):
    """x tanh(softplus(x)), computed as x t / (2 - t) with t = s (2 - s), s = sigmoid(x).

    Not Keras' own: where a convolution's bias, an addition and then tanh(softplus) follow each other, as in a residual
    block whose batch norm is folded, TensorFlow on a CPU fuses them into an operation that it does not implement.
    """

    def call(self, inputs):
        s = keras.ops.sigmoid(inputs)
        t = s * (2.0 - s)
        return inputs * (t / (2.0 - t))


@keras.saving.register_keras_serializable("keras_sat")
class ParametricSoftplus(keras.layers.Layer):
    """log(1 + exp(alpha x)) / alpha: the larger `alpha` (> 0), the closer to ReLU."""

    def __init__(self, alpha=10.0, **kwargs):
        super().__init__(**kwargs)
        self.alpha = _positive("alpha", alpha)

    def call(self, inputs):
        return keras.ops.softplus(self.alpha * inputs) / self.alpha

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha}


@keras.saving.register_keras_serializable("keras_sat")
class SmoothReLU(keras.layers.Layer):
    """x - log(1 + beta x) / beta for x >= 0, else 0.

    As in the release, what is trained is the root of beta, a weight of shape [1] for each site; it starts at 20 there,
    that is, beta = 400.

    Args:
        beta: initial value, > 0.
        trainable_beta: whether beta is learnt; if not, the layer has no weight.
    """

    def __init__(self, beta=400.0, trainable_beta=True, **kwargs):
        super().__init__(**kwargs)
        self.beta = _positive("beta", beta)
        self.trainable_beta = trainable_beta
        self.root_beta = None

    def build(self, input_shape):
        if self.trainable_beta:
            root = keras.initializers.Constant(math.sqrt(self.beta))
            self.root_beta = self.add_weight(name="root_beta", shape=(1,), initializer=root, autocast=False)

    def call(self, inputs):
        # beta |x| leaves the range of float16 at |x| = 164, and the logarithm needs more digits than bfloat16 has.
        x = _at_least_float32(inputs)
        beta = self.beta if self.root_beta is None else keras.ops.square(self.root_beta)
        return keras.ops.cast(keras.ops.relu(x - keras.ops.log1p(keras.ops.abs(x) * beta) / beta), inputs.dtype)

    def get_config(self):
        return {**super().get_config(), "beta": self.beta, "trainable_beta": self.trainable_beta}


@keras.saving.register_keras_serializable("keras_sat")
class SmoothBackwardReLU(keras.layers.Layer):
    """ReLU forward, exactly; its derivative in training is that of parametric softplus, sigmoid(alpha x).

    The gradient-quality ablation of the paper (section 3): which of the two gradients of adversarial training gains
    by being smooth? The network itself, and so its robustness, is a ReLU network's; an evaluation attack sees ReLU's
    own gradient.

    Args:
        smooth_backward: "attacker" (the gradient that makes the training examples, see `training_attack`),
            "optimizer" (the gradient of the weights: calls with training=True) or "both".
        alpha: > 0; the paper's is 10.
    """

    PLACES = ("attacker", "optimizer", "both")

    def __init__(self, smooth_backward="both", alpha=10.0, **kwargs):
        super().__init__(**kwargs)
        if smooth_backward not in self.PLACES:
            raise ValueError(f"smooth_backward must be one of {self.PLACES}. Received: {smooth_backward!r}")
        self.smooth_backward = smooth_backward
        self.alpha = _positive("alpha", alpha)

    def call(self, inputs, training=False):
        place = "attacker" if _attacking.get() else "optimizer" if training else None
        if place and self.smooth_backward in (place, "both"):
            return _relu_with_softplus_gradient(inputs, self.alpha)
        return keras.ops.relu(inputs)

    def get_config(self):
        return {**super().get_config(), "smooth_backward": self.smooth_backward, "alpha": self.alpha}


def _relu_with_softplus_gradient(inputs, alpha):
    @tf.custom_gradient
    def relu(x):
        return tf.nn.relu(x), lambda upstream: upstream * tf.sigmoid(alpha * x)

    return relu(inputs)


def _at_least_float32(x):
    return keras.ops.cast(x, "float32") if x.dtype in ("float16", "bfloat16") else x


def _positive(name, value):
    if not value > 0:
        raise ValueError(f"{name} must be positive. Received: {value!r}")
    return float(value)


def _keras_activation(function):
    return lambda **kwargs: keras.layers.Activation(function, **kwargs)


def _relu(smooth_backward=None, alpha=10.0, **kwargs):
    if smooth_backward is None:
        return keras.layers.Activation("relu", **kwargs)
    return SmoothBackwardReLU(smooth_backward, alpha, **kwargs)


ACTIVATIONS = {
    "relu": _relu,
    "silu": _keras_activation("silu"),
    "swish": _keras_activation("silu"),
    "gelu": GELU,
    "elu": _keras_activation("elu"),
    "softplus": _keras_activation("softplus"),
    "parametric_softplus": ParametricSoftplus,
    "mish": Mish,
    "smooth_relu": SmoothReLU,
}


def names():
    """Returns the names that `layer` knows, sorted."""
    return sorted(ACTIVATIONS)


def layer(spec, name=None, dtype=None):
    """Returns a new Keras layer that applies the activation `spec`.

    | spec | activation |
    |---|---|
    | "relu" | max(x, 0) |
    | "silu", "swish" | x sigmoid(x) |
    | "gelu" | `GELU`, tanh form; {"name": "gelu", "approximate": False} is the exact one |
    | "elu" | x for x >= 0, else exp(x) - 1 |
    | "softplus" | log(1 + exp(x)) |
    | "parametric_softplus" | `ParametricSoftplus`, alpha 10; {"name": "parametric_softplus", "alpha": 5} |
    | "mish" | `Mish`, x tanh(softplus(x)) |
    | "smooth_relu" | `SmoothReLU`, beta learnt; {"name": "smooth_relu", "beta": 400, "trainable_beta": False} |
    | {"name": "relu", "smooth_backward": "attacker"} | `SmoothBackwardReLU` (or "optimizer", "both") |

    Args:
        spec: a name; a dict of "name" and that activation's options, or a layer serialised by Keras; a function of a
            tensor (registered with `keras.saving.register_keras_serializable` if the model is to be saved); or a
            subclass of keras.layers.Layer, which is called with `name` and `dtype`.
        name: the layer's name.
        dtype: the layer's dtype or dtype policy.

    Raises:
        ValueError: for an unknown name or option, or for a layer instance, whose weights all sites would share.
    """
    kwargs = {"name": name} if dtype is None else {"name": name, "dtype": dtype}
    if isinstance(spec, dict) and "class_name" in spec:
        config = {**spec["config"], **kwargs}
        return keras.saving.deserialize_keras_object({**spec, "config": config})
    if isinstance(spec, (str, dict)):
        return _named_layer(spec, kwargs)
    if isinstance(spec, type) and issubclass(spec, keras.layers.Layer):
        return spec(**kwargs)
    if callable(spec) and not isinstance(spec, keras.layers.Layer):
        return keras.layers.Activation(spec, **kwargs)
    raise ValueError(
        "activation must be a name, a dict, a function or a layer class (a layer instance would be shared by every "
        f"site of the network: pass its class). Received: {spec!r}"
    )


def _named_layer(spec, kwargs):
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    activation = options.pop("name", None)
    if activation not in ACTIVATIONS:
        raise ValueError(f"Unknown activation. Known are {', '.join(names())}. Received: {spec!r}")
    try:
        return ACTIVATIONS[activation](**options, **kwargs)
    except TypeError as error:
        raise ValueError(f"Activation {activation!r} has no such option: {error}. Received: {spec!r}") from error


def smoothness(spec, low=-8.0, high=8.0):
    """Says numerically how smooth an activation is on [low, high].

    The k-th derivative jumps where the (k+1)-th difference over h^k keeps its size as the step h shrinks; where it is
    continuous, that quotient falls with h. Both are computed in float64 on a fine and a coarse grid.

    Args:
        spec: whatever `layer` takes, or a layer class.
        low, high: the interval, in the activation's input unit. Features narrower than about 1e-4 are not seen.

    Returns:
        "C2" (twice continuously differentiable, or better), "C1", "C0", or "discontinuous".

    Raises:
        ValueError: when the function does not compute in float64, or is not finite.
    """
    activation = layer(spec, dtype="float64")
    coarse, fine = (_jumps(activation, low, high, step) for step in (1.6e-3, 1e-4))
    for order, (before, after) in enumerate(zip(coarse, fine)):
        if after > 1e-3 and after > before / 4:  # smooth: after is about before / 16
            return ("discontinuous", "C0", "C1")[order]
    return "C2"


def _jumps(activation, low, high, step):
    """Returns how far f, f' and f'' jump between neighbouring points of a grid of `step`."""
    x = np.arange(round(low / step), round(high / step) + 1) * step
    y = keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(x, "float64")))
    if y.dtype != np.float64:
        raise ValueError(f"smoothness needs a function that maps float64 to float64. Received: {y.dtype} output")
    if not np.isfinite(y).all():
        raise ValueError(f"The function is not finite on [{low}, {high}].")
    return [np.abs(np.diff(y, n=order + 1)).max() / step**order for order in range(3)]
