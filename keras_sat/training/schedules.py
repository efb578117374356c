"""A schedule of the learning rate."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("keras_sat")
class StepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly, then falls by a factor at some steps.

        rate(t) = warmup_from + (peak - warmup_from) t / warmup_steps    for t < warmup_steps
        rate(t) = peak factor^n                                          n = number of boundaries <= t

    Args:
        peak: the rate after the warm-up.
        boundaries: the steps at which the rate falls, integers.
        factor: factor by which the rate is multiplied at each boundary. Default: 0.1.
        warmup_steps: number of steps of the warm-up. Default: 0.
        warmup_from: rate at step 0, if there is a warm-up. Default: 0.
    """

    def __init__(
        self,
        peak: float,
        boundaries: Sequence[int],
        factor: float = 0.1,
        warmup_steps: int = 0,
        warmup_from: float = 0.0,
    ) -> None:
        self.peak = peak
        self.boundaries = list(boundaries)
        self.factor = factor
        self.warmup_steps = warmup_steps
        self.warmup_from = warmup_from

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the learning rate at a step, a float32 scalar."""
        step = tf.cast(step, tf.float32)
        falls = tf.reduce_sum(tf.cast(step >= tf.constant(self.boundaries, tf.float32), tf.float32))
        rise = self.warmup_from + (self.peak - self.warmup_from) * step / max(1, self.warmup_steps)
        return tf.where(step < self.warmup_steps, rise, self.peak * self.factor**falls)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {name: getattr(self, name) for name in ("peak", "boundaries", "factor", "warmup_steps", "warmup_from")}
