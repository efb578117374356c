"""Smooth activations, and `layer`, which makes every nonlinearity of the package.

Formulas follow Xie et al. 2020, "Smooth Adversarial Training" (arXiv:2006.14536), and its authors' release.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_attacking = contextvars.ContextVar("keras_sat_training_attack", default=False)


@contextlib.contextmanager
def training_attack() -> Iterator[None]:
    """Marks the forward passes in this context as part of the training attack. See `SmoothBackwardReLU`."""
    token = _attacking.set(True)
    try:
        yield
    finally:
        _attacking.reset(token)


@keras.saving.register_keras_serializable("keras_sat")
class GELU(keras.layers.Layer):
    """Gaussian error linear unit, x Phi(x), where Phi is the normal distribution function (arXiv:1606.08415).

    Args:
        approximate: True (default), as in the release: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). False: the
            exact function, computed with erf.
        kwargs: arguments of keras.layers.Layer.
    """

    def __init__(self, approximate: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.approximate = approximate

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        # In float16, x^3 overflows at |x| = 41, and its gradient is NaN.
        x = _at_least_float32(inputs)
        return keras.ops.cast(keras.ops.gelu(x, approximate=self.approximate), inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "approximate": self.approximate}


@keras.saving.register_keras_serializable("keras_sat")
class Mish(keras.layers.Layer):
    """Mish, x tanh(softplus(x)), computed as x t / (2 - t) with t = s (2 - s), s = sigmoid(x) (arXiv:1908.08681).

    It replaces Keras' function, which fails on a CPU in a residual block whose batch norm is folded: there, the bias of
    a convolution, an addition and tanh(softplus) follow each other. TensorFlow fuses them to an operation that it does
    not implement.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        s = keras.ops.sigmoid(inputs)
        t = s * (2.0 - s)
        return inputs * (t / (2.0 - t))


@keras.saving.register_keras_serializable("keras_sat")
class ParametricSoftplus(keras.layers.Layer):
    """Parametric softplus, log(1 + exp(alpha x)) / alpha.

    Args:
        alpha: > 0, 10 by default. The larger it is, the closer the function is to ReLU.
        kwargs: arguments of keras.layers.Layer.

    Raises:
        ValueError: if alpha is not positive.
    """

    def __init__(self, alpha: float = 10.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha = _positive("alpha", alpha)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return keras.ops.softplus(self.alpha * inputs) / self.alpha

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha}


@keras.saving.register_keras_serializable("keras_sat")
class SmoothReLU(keras.layers.Layer):
    """SmoothReLU: x - log(1 + beta x) / beta for x >= 0, and 0 for x < 0.

    As in the release, each layer trains the square root of beta, a weight of shape [1].

    Args:
        beta: initial value of beta, > 0, 400 by default.
        trainable_beta: whether beta is trained, True by default. If not, the layer has no weight.
        kwargs: arguments of keras.layers.Layer.

    Raises:
        ValueError: if beta is not positive.
    """

    def __init__(self, beta: float = 400.0, trainable_beta: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.beta = _positive("beta", beta)
        self.trainable_beta = trainable_beta
        self.root_beta = None

    def build(self, input_shape: Any) -> None:
        if self.trainable_beta:
            root = keras.initializers.Constant(math.sqrt(self.beta))
            self.root_beta = self.add_weight(name="root_beta", shape=(1,), initializer=root, autocast=False)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        # In float16, beta |x| overflows at |x| = 164. In bfloat16, the logarithm has too few digits.
        x = _at_least_float32(inputs)
        # In the policy "bfloat16", in which a copy may be, the weight is bfloat16.
        beta = self.beta if self.root_beta is None else keras.ops.square(keras.ops.cast(self.root_beta, x.dtype))
        return keras.ops.cast(keras.ops.relu(x - keras.ops.log1p(keras.ops.abs(x) * beta) / beta), inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta, "trainable_beta": self.trainable_beta}


@keras.saving.register_keras_serializable("keras_sat")
class SmoothBackwardReLU(keras.layers.Layer):
    """ReLU whose derivative in training is smooth: sigmoid(alpha x), the derivative of parametric softplus.

    It reproduces the ablation of the paper (section 3), which makes only one of the two gradients of adversarial
    training smooth. The forward pass is exactly ReLU. In evaluation, the derivative is ReLU's too.

    Args:
        smooth_backward: which gradient is smooth. "attacker": the gradient of the attack that makes the training
            examples (see `training_attack`). "optimizer": the gradient of the weights, in calls with training=True.
            "both" (default).
        alpha: > 0, 10 by default and in the paper.
        kwargs: arguments of keras.layers.Layer.

    Raises:
        ValueError: for another `smooth_backward`, or if alpha is not positive.
    """

    PLACES: tuple[str, ...] = ("attacker", "optimizer", "both")

    def __init__(self, smooth_backward: str = "both", alpha: float = 10.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if smooth_backward not in self.PLACES:
            raise ValueError(f"smooth_backward must be one of {self.PLACES}. Received: {smooth_backward!r}")
        self.smooth_backward = smooth_backward
        self.alpha = _positive("alpha", alpha)

    def call(self, inputs: tf.Tensor, training: bool | None = False) -> tf.Tensor:
        place = "attacker" if _attacking.get() else "optimizer" if training else None
        if place and self.smooth_backward in (place, "both"):
            return _relu_with_softplus_gradient(inputs, self.alpha)
        return keras.ops.relu(inputs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "smooth_backward": self.smooth_backward, "alpha": self.alpha}


@keras.saving.register_keras_serializable("keras_sat")
class PSSiLU(keras.layers.Layer):
    """Parametric shifted SiLU, x (sigmoid(alpha x) - beta) / (1 - beta) (Dai et al. 2021, arXiv:2110.05626).

    Each layer trains its own alpha and beta, weights of shape [1], of which the function takes the absolute values. So
    a network has two of these parameters for each activation layer: ResNet8 has 14. The paper's networks share one pair
    among all their layers, so each has two in all.

    At beta = 1 the function divides by 0, and the authors' code has no guard against it. Here a beta above 0.99 acts as
    0.99. It keeps its gradient, so that training can lower it again.

    Args:
        alpha: initial value of alpha, > 0, 1 by default, as in the paper.
        beta: initial value of beta, 0 < beta <= 0.99, 1e-8 by default, as in the paper: at 0 the absolute value has no
            gradient, so that beta would never move.
        kwargs: arguments of keras.layers.Layer.

    Raises:
        ValueError: if alpha or beta is out of its range.
    """

    LARGEST_BETA: float = 0.99

    def __init__(self, alpha: float = 1.0, beta: float = 1e-8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha = _positive("alpha", alpha)
        self.beta = _positive("beta", beta)
        if self.beta > self.LARGEST_BETA:
            raise ValueError(f"beta must be at most {self.LARGEST_BETA}. Received: {beta!r}")
        self.trained_alpha = self.trained_beta = None

    def build(self, input_shape: Any) -> None:
        self.trained_alpha = self._weight("alpha", self.alpha)
        self.trained_beta = self._weight("beta", self.beta)

    def _weight(self, name, value):
        initializer = keras.initializers.Constant(value)
        return self.add_weight(name=name, shape=(1,), initializer=initializer, autocast=False)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        x = _at_least_float32(inputs)
        trained = (keras.ops.abs(self.trained_alpha), self._limited_beta())
        alpha, beta = (keras.ops.cast(parameter, x.dtype) for parameter in trained)
        return keras.ops.cast(x * (keras.ops.sigmoid(alpha * x) - beta) / (1.0 - beta), inputs.dtype)

    def _limited_beta(self):
        beta, constant = keras.ops.abs(self.trained_beta), keras.ops.stop_gradient
        return constant(keras.ops.minimum(beta, self.LARGEST_BETA)) + (beta - constant(beta))  # + 0, with a gradient

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta}


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


def _leaky_relu(negative_slope=0.2, **kwargs):
    if not 0 <= negative_slope < 1:
        raise ValueError(f"negative_slope must be at least 0 and less than 1. Received: {negative_slope!r}")
    return keras.layers.LeakyReLU(negative_slope, **kwargs)


ACTIVATIONS: dict[str, Callable[..., keras.layers.Layer]] = {
    "relu": _relu,
    "silu": _keras_activation("silu"),
    "swish": _keras_activation("silu"),
    "gelu": GELU,
    "elu": _keras_activation("elu"),
    "softplus": _keras_activation("softplus"),
    "parametric_softplus": ParametricSoftplus,
    "mish": Mish,
    "smooth_relu": SmoothReLU,
    "pssilu": PSSiLU,
    "leaky_relu": _leaky_relu,
}


def names() -> list[str]:
    """Returns the sorted names of the activations that `layer` can make."""
    return sorted(ACTIVATIONS)


def layer(spec: Any, name: str | None = None, dtype: Any = None) -> keras.layers.Layer:
    """Returns a new Keras layer that applies an activation.

    | spec | activation |
    |---|---|
    | "relu" | max(x, 0) |
    | "silu", "swish" | x sigmoid(x) |
    | "gelu" | `GELU`, tanh form; {"name": "gelu", "approximate": False} is the exact one |
    | "elu" | x for x >= 0, else exp(x) - 1 |
    | "softplus" | log(1 + exp(x)) |
    | "parametric_softplus" | `ParametricSoftplus`, alpha 10; {"name": "parametric_softplus", "alpha": 5} |
    | "mish" | `Mish`: x tanh(softplus(x)) |
    | "smooth_relu" | `SmoothReLU`, beta trained; {"name": "smooth_relu", "beta": 400, "trainable_beta": False} |
    | "pssilu" | `PSSiLU`: x (sigmoid(alpha x) - beta) / (1 - beta), alpha and beta trained |
    | "leaky_relu" | x for x >= 0, else 0.2 x, as in Singla et al. 2021; "negative_slope" is an option |
    | {"name": "relu", "smooth_backward": "attacker"} | `SmoothBackwardReLU` (or "optimizer", "both") |

    Args:
        spec: the activation: a name; a dict of "name" and the options of that activation; a dict of a layer, as Keras
            serialises it; a function of a tensor (to save the model, register it with
            `keras.saving.register_keras_serializable`); or a subclass of keras.layers.Layer, which is called with
            `name` and `dtype`.
        name: name of the layer. Default: a name that Keras chooses.
        dtype: dtype or dtype policy of the layer. Default: Keras' global policy.

    Raises:
        ValueError: for an unknown name or option; or for a layer instance, because the whole network would share it.
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


def smoothness(spec: Any, low: float = -8.0, high: float = 8.0) -> str:
    """Returns how many times an activation is continuously differentiable on [low, high], measured numerically.

    Let D be the (k+1)-th difference on a grid of step h, divided by h^k. Where the k-th derivative jumps, D does not
    depend on h. Where it is continuous, D falls with h. D is computed in float64, on a coarse and on a fine grid.

    Args:
        spec: an activation, see `layer`.
        low, high: the interval, -8 and 8 by default. Details narrower than about 1e-4 are not detected.

    Returns:
        "C2" (twice continuously differentiable, or more often), "C1", "C0", or "discontinuous".

    Raises:
        ValueError: if the function does not compute in float64, or is not finite on the interval.
    """
    activation = layer(spec, dtype="float64")
    coarse, fine = (_jumps(activation, low, high, step) for step in (1.6e-3, 1e-4))
    for order, (before, after) in enumerate(zip(coarse, fine)):
        if after > 1e-3 and after > before / 4:  # where the derivative is continuous, after is about before / 16
            return ("discontinuous", "C0", "C1")[order]
    return "C2"


def curvature(spec: Any, low: float = -8.0, high: float = 8.0) -> float:
    """Returns the largest absolute value of an activation's second derivative on [low, high], measured numerically.

    Activations of low curvature overfit less in adversarial training (Singla et al. 2021, arXiv:2102.07861). The
    second derivative is computed by TensorFlow in float64, on a grid, and then on ever finer grids around its largest
    value. Second differences of the function itself check it. Parameters that a network trains have their initial
    values here.

    At a kink, as in relu and leaky_relu, the curvature is infinite. Singla et al. nevertheless count leaky_relu among
    the activations of low curvature: for those without a second derivative they mean an approximate curvature, which
    this function does not compute.

    The closed forms, to compare the numerical values with:

    | activation | curvature |
    |---|---|
    | "relu", "leaky_relu" | infinite: the derivative jumps |
    | "silu" | 1 / 2 |
    | "gelu" | sqrt(2 / pi) = 0.80 |
    | "elu" | 1 |
    | "softplus" | 1 / 4 |
    | "parametric_softplus" | alpha / 4 = 2.5 |
    | "mish" | 0.64 (found numerically; we know no closed form) |
    | "smooth_relu" | beta = 400, the initial value |
    | "pssilu" | alpha / (2 (1 - beta)) = 1 / 2, with the initial values |

    Args:
        spec: an activation, see `layer`.
        low, high: the interval, -8 and 8 by default.

    Returns:
        The largest absolute value of f''; infinity if f or its derivative is not continuous.

    Raises:
        ValueError: if the function does not compute in float64, or is not finite on the interval.
    """
    if smoothness(spec, low, high) in ("discontinuous", "C0"):
        return math.inf
    activation = layer(spec, dtype="float64")
    # What TensorFlow differentiates may be another function than what it computes, as with tf.stop_gradient.
    largest = float(_differences(activation, low, high, 1e-3)[1])
    for _ in range(4):
        x = np.linspace(low, high, 2 * 10**4 + 1)
        second = _second_derivative(activation, x)
        peak = int(np.argmax(second))
        largest = max(largest, float(second[peak]))
        low, high = x[max(peak - 1, 0)], x[min(peak + 1, len(x) - 1)]
    return largest


def _second_derivative(activation, x):
    """Returns |f''| at each point of an array; 0 where TensorFlow finds none, as for a linear function."""
    points = tf.constant(x, tf.float64)
    ones, zero = tf.ones_like(points), tf.UnconnectedGradients.ZERO
    with tf.autodiff.ForwardAccumulator(points, ones) as outer:
        with tf.autodiff.ForwardAccumulator(points, ones) as inner:
            outputs = activation(points)
        first = inner.jvp(outputs, zero)
    return np.abs(outer.jvp(first, zero).numpy())


def _jumps(activation, low, high, step):
    """Returns the largest jumps of f, f' and f'' between neighbouring points of a grid."""
    return [jump * step for jump in _differences(activation, low, high, step)]


def _differences(activation, low, high, step):
    """Returns the largest absolute first, second and third difference quotients of f on a grid."""
    x = np.arange(round(low / step), round(high / step) + 1) * step
    y = keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(x, "float64")))
    if y.dtype != np.float64:
        raise ValueError(f"smoothness needs a function that maps float64 to float64. Received: {y.dtype} output")
    if not np.isfinite(y).all():
        raise ValueError(f"The function is not finite on [{low}, {high}].")
    return [np.abs(np.diff(y, n=order)).max() / step**order for order in (1, 2, 3)]
