"""Averaged weights: how they are assigned, and how they begin late in the training."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_sat.training.torch_sgd import TorchSGD


def with_ema_warmup(optimizer: keras.optimizers.Optimizer, start_step: int = 0) -> keras.optimizers.Optimizer:
    """Lets the averaged weights of an optimizer follow the weights closely at first.

        average = momentum average + (1 - momentum) weights, after each step, with
        momentum = 0                                           for iterations < start_step
        momentum = min(ema_momentum, (1 + t) / (10 + t))       from there on, t = iterations - start_step

    The iterations are those before the step. In the first step of a training, Keras takes a momentum of 0. This is the
    moving average of TensorFlow 1 with `num_updates`, as DeepMind (arXiv:2010.03593) and Wang et al. (arXiv:2302.04638)
    use it. Wang et al. count the iterations after the step: for them, `start_step` is their warm-up less 1.

    The momentum follows from `optimizer.iterations`: there is no further state, so checkpoints stay as they are.

    Args:
        optimizer: an optimizer with `use_ema=True`, not built yet; for a LossScaleOptimizer, its inner optimizer.
        start_step: >= 0, in iterations of the optimizer. Each replay of `Free` is one.

    Returns:
        The optimizer, whose class is now a subclass of its former one. Of SGD, `TorchSGD`, Adam and AdamW, its
        configuration can be saved and loaded.

    Raises:
        ValueError: for an optimizer without averaged weights, or one that was built before; or a negative `start_step`.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not inner.use_ema:
        raise ValueError(f"{inner.name} averages no weights: say use_ema=True.")
    if inner.built:
        raise ValueError(f"{inner.name} was built before: give it a warm-up before its first step.")
    if not start_step >= 0:
        raise ValueError(f"start_step must be >= 0. Received: {start_step!r}")
    inner.__class__ = _with_warmup(type(inner))  # type: ignore[arg-type]
    inner.ema_start_step = start_step
    return optimizer


def assign_averages(trainer: keras.Model) -> None:
    """Gives a trainer the averaged weights of its optimizer, if it has any.

    Before the first step of the optimizer, its averages are zeros, and the weights stay as they are.
    """
    if int(keras.ops.convert_to_numpy(trainer.optimizer.iterations)):
        trainer.optimizer.finalize_variable_values(trainer.trainable_variables)


@contextlib.contextmanager
def averages(trainer: keras.Model) -> Iterator[None]:
    """A context in which a trainer has the averaged weights of its optimizer, if it has any.

    After it, the trainer has the weights of training again, bit for bit.
    """
    weights = [keras.ops.convert_to_numpy(variable) for variable in trainer.trainable_variables]
    assign_averages(trainer)
    try:
        yield
    finally:
        for variable, value in zip(trainer.trainable_variables, weights):
            variable.assign(value)


class _Warmup:
    """Mixin of optimizers: `ema_momentum` depends on the iterations. Keras reads it in each step."""

    @property
    def ema_momentum(self) -> tf.Tensor:
        since = keras.ops.cast(self.iterations, "float32") - self.ema_start_step  # type: ignore[attr-defined]
        momentum = tf.minimum(vars(self)["ema_momentum"], (1 + since) / (10 + since))
        return tf.where(since < 0, 0.0, momentum)

    @ema_momentum.setter
    def ema_momentum(self, value: float) -> None:
        vars(self)["ema_momentum"] = value

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()  # type: ignore[misc]
        return config | {"ema_momentum": vars(self)["ema_momentum"], "ema_start_step": self.ema_start_step}  # type: ignore[attr-defined]

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        settings = dict(config)
        start_step = settings.pop("ema_start_step")
        optimizer = super().from_config(settings, custom_objects)  # type: ignore[misc]
        optimizer.ema_start_step = start_step
        return optimizer


@functools.cache
def _with_warmup(base):
    """Returns the subclass of an optimizer's class. There is one for each class, so that Keras can load it by name."""
    return keras.saving.register_keras_serializable("keras_sat")(type(f"{base.__name__}EMAWarmup", (_Warmup, base), {}))


for _base in (keras.optimizers.SGD, TorchSGD, keras.optimizers.Adam, keras.optimizers.AdamW):
    _with_warmup(_base)
