"""The interface of all attacks: `Attack`."""

import abc
import dataclasses
import functools
import types
import typing
import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_sat import files, internals, losses
from keras_sat.attacks import gradients, randomness, threats, validation
from keras_sat.typing import Array, LogitsFunction, LossFunction


@dataclasses.dataclass(frozen=True)
class Attack(abc.ABC):
    """Base class of attacks: a frozen configuration that maps images to adversarial images.

        adversarial = PGD(LinfBall(4), steps=10)(model, images, labels, seed=0)

    An attack keeps no state. `dataclasses.replace` returns a variant of it. A call runs eagerly (as one compiled
    function), in a tf.function, under XLA, and in a replica of a tf.distribute strategy.

    A subclass is a frozen dataclass that implements `perturb`. It overrides the other members where their defaults do
    not fit.

    Attributes:
        ball: the threat model, such as a `LinfBall`; None for `evaluation.Corruption`, which has no epsilon and
            looks neither at the network nor at the labels.
    """

    ball: threats.Ball

    def __post_init__(self) -> None:
        validation.check_ball(self.ball)
        if not callable(loss := getattr(self, "loss", losses.margin)):  # some attacks have no loss to choose
            raise ValueError(f"loss must be a function, see keras_sat.losses. Received: {loss!r}")

    @typing.final
    def __call__(
        self,
        logits_fn: LogitsFunction,
        images: Array,
        labels: Array,
        seed: int | Array = 0,
        start: Array | None = None,
        *,
        static_shapes: bool = False,
        epsilon_scale: Any = None,
        step_size_scale: Any = None,
    ) -> tf.Tensor:
        """Returns adversarial images.

        Args:
            logits_fn: a Keras model or a function, from images to logits [batch, classes]. Pass the same object for
                every batch, not a new lambda or bound method: the attack is compiled once for each object. Pass a new
                object if what it computes has changed, but for weights: another network in a closure, say. AutoGraph
                does not convert it: control flow that depends on a tensor needs tf.cond or tf.while_loop.
            images: [batch, height, width, channels], uint8 or float, within the bounds of the ball.
            labels: int [batch], in 0..classes-1: the true classes, or the target classes of a targeted attack.
            seed: an int or an int tensor [2]: the same seed returns the same images. A tensor [batch, 2] gives each
                image a seed of its own. The result for an image then does not depend on the other images of the batch.
            start: float [batch, height, width, channels], the points at which the first start begins, for example the
                result for a smaller epsilon. None: the start that the attack is configured with. Only for attacks with
                `accepts_start`.
            static_shapes: False removes finished examples from the batch, which saves time. True keeps all shapes, as
                XLA and TPUs require. Both return the same images.
            epsilon_scale: factor of epsilon, >= 0: a number, or a scalar tensor in a graph. None: 1. Only for attacks
                with `accepts_scale`.
            step_size_scale: factor of the step size, >= 0: a number, or a scalar tensor in a graph. None: 1. The step
                size is not scaled by `epsilon_scale`. Only for attacks with `accepts_scale`.

        Returns:
            float32, of the shape of `images`, within the ball and the bounds (tolerance 1e-5). The docstring of each
            attack says which image it returns for an example that it cannot break.

        Raises:
            ValueError: for images outside the bounds or not finite, labels outside the classes, a `logits_fn` that
                returns probabilities, or an argument that this attack does not accept. Inside a tf.function, the labels
                and the network are not checked, and images outside the bounds raise tf.errors.InvalidArgumentError
                (under XLA they raise nothing).
        """
        scales = self._check_accepts(start, epsilon_scale=epsilon_scale, step_size_scale=step_size_scale)
        images, labels, are_levels = _as_tensors(self, images, labels)
        tensors: tuple[tf.Tensor, ...] = (images, labels, randomness.as_seed(seed, images.shape[0]))
        if start is not None:
            tensors += (tf.cast(start, tf.float32),)
        if tf.inside_function():
            with tf.control_dependencies([validation.assert_in_bounds(images, self.bounds)]):
                tensors = (tf.identity(images), *tensors[1:])
            # AutoGraph would convert all of the attack and of the network, which takes longer than to trace them.
            perturb = tf.autograph.experimental.do_not_convert(self.perturb)
            return perturb(logits_fn, *tensors, static_shapes=static_shapes, **scales)
        validation.check_values(images, self.bounds, are_levels)
        if self.ball is not None:
            self.check_network(logits_fn, images, labels)
        return _run_compiled(*self.runs_on(logits_fn), tensors, static_shapes, scales)

    def check_network(self, logits_fn: LogitsFunction, images: tf.Tensor, labels: tf.Tensor) -> None:
        """Raises ValueError if the network returns no logits, or too few for the labels. `__call__` calls it."""
        validation.check_logits(logits_fn, images, labels)

    def _check_accepts(self, start, **scales):
        """Returns the given scales as tensors. Raises ValueError if this attack does not accept an argument."""
        if start is not None and not self.accepts_start:
            raise ValueError(f"{self} does not accept start=: its start is fixed by its configuration.")
        scales = {name: tf.cast(scale, tf.float32) for name, scale in scales.items() if scale is not None}
        if scales and not self.accepts_scale:
            raise ValueError(f"{self} does not accept {' and '.join(scales)}: its epsilon and step size are fixed.")
        return scales

    @abc.abstractmethod
    def perturb(
        self,
        logits_fn: LogitsFunction,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        start: tf.Tensor | None = None,
        *,
        static_shapes: bool = False,
    ) -> tf.Tensor:
        """Runs the algorithm. `__call__` checks and converts the arguments before.

        Args:
            logits_fn: See `__call__`.
            images: float32 [batch, height, width, channels].
            labels: int32 [batch].
            seed: int32 [2], or [batch, 2].
            start: float32, of the shape of `images`, or None.
            static_shapes: See `__call__`.

        Returns:
            float32, of the shape of `images`.
        """

    def settings(self) -> dict[str, Any]:
        """Returns the configuration as plain values for a report. They suffice to run the same attack elsewhere."""
        values = {name: getattr(self, name) for name in self._fields() if name != "ball"}
        values = {name: _loss_name(value) if callable(value) else value for name, value in values.items()}
        ball = {} if self.ball is None else {**dataclasses.asdict(self.ball), "norm": self.ball.norm}
        return {**ball, **values, "attack": type(self).__name__}

    @property
    def bounds(self) -> tuple[Any, Any]:
        """The smallest and the largest valid value of a pixel; each is a number, or a tuple with one per channel."""
        return self.ball.bounds

    @property
    def stages(self) -> "list[Attack]":
        """The attacks that this one consists of, in their order; the attack itself if it is a single one."""
        return [self]

    @property
    def max_forward_passes(self) -> int:
        """Forward passes of one example at most. A gradient counts as two."""
        return 1

    @property
    def needs_gradients(self) -> bool:
        """Whether the attack uses gradients of the network."""
        return True

    @property
    def metrics_prefix(self) -> str:
        """The first part of the names of metrics on these images: `adversarial_`; empty for clean ones (epsilon 0)."""
        return "adversarial_" if self.ball is None or self.ball.radius else ""

    @property
    def accepts_start(self) -> bool:
        """Whether a call may choose the point at which the attack starts (`start=`)."""
        return False

    @property
    def random_start(self) -> bool:
        """Whether the attack starts at a random point, and not at the image itself."""
        return True

    @property
    def step_size(self) -> float | None:
        """The step size that was given, in the images' unit; None if there is none, or if a rule chooses it."""
        return None

    @property
    def accepts_scale(self) -> bool:
        """Whether a call may scale epsilon and step size (`epsilon_scale=`, `step_size_scale=`)."""
        return False

    @property
    def targeted(self) -> bool:
        """Whether the labels are the classes to reach. Otherwise they are the classes to leave."""
        return False

    def runs_on(self, logits_fn: LogitsFunction) -> "tuple[Attack, LogitsFunction]":
        """Returns the attack that makes the images, and its network: for `Transfer`, those of the surrogate."""
        return self, logits_fn

    def for_evaluation(self) -> "Attack":
        """Returns the attack without options that are for training only, such as a clean start."""
        return self

    def for_transfer(self) -> "Attack":
        """Returns the variant whose images fool other networks best: for PGD, the one that continues after success."""
        return self

    def with_radius(self, radius: float) -> "Attack":
        """Returns the attack with another epsilon. An explicit step size is scaled with it.

        Args:
            radius: epsilon in the images' unit. With an epsilon per channel: that of the channel with the largest.

        Raises:
            ValueError: for an attack without a ball, or an explicit step size at an epsilon of 0.
        """
        if self.ball is None:
            raise ValueError(f"{self} has no epsilon to change.")
        changes: dict[str, Any] = {"ball": self.ball.with_radius(radius)}
        if self.step_size is not None:
            if not self.ball.radius:
                raise ValueError(
                    f"step_size {self.step_size:g} cannot be scaled with epsilon from an epsilon of 0: give {self} "
                    "another epsilon, or step_size=None."
                )
            changes["step_size"] = self.step_size * radius / self.ball.radius or None
        return dataclasses.replace(self, **changes)

    def with_loss(self, loss: LossFunction) -> "Attack":
        """Returns the attack with another loss to ascend.

        Args:
            loss: function of labels [batch] and logits [batch, classes] that returns losses [batch]. See
                `keras_sat.losses`.

        Raises:
            ValueError: if the attack has no `loss` to choose.
        """
        if "loss" not in self._fields():
            raise ValueError(f"{self} has no loss to choose; PGD and APGD have.")
        return dataclasses.replace(self, loss=loss)  # type: ignore[call-arg]

    def _fields(self):
        return [field.name for field in dataclasses.fields(self)]


def _loss_name(loss):
    """Returns the name of a loss; of one that is not this package's, also a digest of its code."""
    name, code = getattr(loss, "__name__", repr(loss)), getattr(loss, "__code__", None)
    if code is None or getattr(losses, name, None) is loss:
        return name
    return f"{name}, code {files.fingerprint(_described(code))}"


def _described(code):
    """Returns what a function's code does, as values that are the same in each process and in each folder."""
    constants = [_described(one) if isinstance(one, types.CodeType) else repr(one) for one in code.co_consts]
    return [code.co_code.hex(), code.co_names, constants]


def _as_tensors(attack, images, labels):
    """Returns images as float32, labels as int32, and whether the images came as integers."""
    images = tf.convert_to_tensor(images)
    if attack.ball is None:  # the labels do not matter
        labels = tf.zeros([tf.shape(images)[0]], tf.int32)
    labels = tf.convert_to_tensor(labels)
    validation.check_shapes(images, labels, attack.ball)
    return tf.cast(images, tf.float32), tf.cast(labels, tf.int32), images.dtype.is_integer


def _run_compiled(attack, logits_fn, tensors, static_shapes, scales):
    seed = tensors[2]
    function = _compiled(attack, tensors[0].shape[-1], seed.shape.rank, static_shapes, _constants(logits_fn))
    # Traces for any number of images at once. Otherwise a last batch of another size would be traced again.
    specs = [_any_number(tensor) if tensor is not seed or seed.shape.rank == 2 else tensor for tensor in tensors]
    function.get_concrete_function(logits_fn, *specs, **scales)
    return function(logits_fn, *tensors, **scales)


@functools.lru_cache(maxsize=64)
def _compiled(
    attack: Attack, channels: int, seed_rank: int, static_shapes: bool, constants: tuple[int, ...]
) -> Callable:
    """Returns the attack as a compiled function. The function does not keep a `logits_fn` alive.

    There is one function for each number of channels and each rank of seeds: a common one would be traced for images
    and seeds where these are unknown. There is one for each state of a network's `_constants`, too.
    """
    perturb = functools.partial(attack.perturb, static_shapes=static_shapes)
    return tf.function(perturb, autograph=False, reduce_retracing=True)


def _constants(logits_fn):
    """Returns the ids of the tensors that layers of a Keras model computed from their weights in `finalize_state`.

    A compiled function keeps such a tensor. Normalization makes new ones when it is adapted again. Other layers are
    left out: one that stores its last output has a new tensor after each call.
    """
    layers = internals.all_layers(logits_fn) if isinstance(logits_fn, keras.layers.Layer) else ()
    layers = [layer for layer in layers if hasattr(layer, "finalize_state")]
    return tuple(id(value) for layer in layers for value in vars(layer).values() if isinstance(value, tf.Tensor))


def _any_number(tensor):
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)


def target_classes(
    logits_fn: LogitsFunction, images: tf.Tensor, labels: tf.Tensor, number: int, name: str
) -> tf.Tensor:
    """Returns the target classes of each example, the most likely first, int32 [batch, targets].

    Args:
        logits_fn: See `Attack.__call__`.
        images: float32 [batch, height, width, channels].
        labels: int32 [batch].
        number: number of target classes, >= 0. If there are fewer classes besides the label, all of these are
            returned, with a warning. 0 returns the labels, [batch, 1].
        name: name of the attack, for the warning.
    """
    if not number:
        return labels[:, None]
    logits = gradients.logits(logits_fn, images)
    others = logits.shape[-1] - 1
    if number > others:
        warnings.warn(
            f"{name} asks for {number} target classes, but there are only {others} other classes: all are used.",
            stacklevel=2,
        )
    return tf.math.top_k(losses.without_label(labels, logits), min(number, others)).indices
