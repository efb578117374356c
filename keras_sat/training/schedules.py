"""What changes during a training: the learning rate, and the attack's epsilon and step size."""

import copy

import keras
import tensorflow as tf


def scaled(attack, epsilon, step_size):
    """Returns an attack whose epsilon and step size are multiplied by a factor, and the step size by another.

    The factors may be tensors in a graph, so that what changes is not frozen when it is traced.

    Args:
        attack: `PGD`, `Free`, or another attack with a ball.
        epsilon: factor of epsilon and step size.
        step_size: further factor of the step size.
    """
    changes = {"ball": attack.ball.scaled(epsilon)}
    if hasattr(attack, "resolved_step_size"):
        changes["step_size"] = _plain(attack.resolved_step_size * epsilon * step_size)
    return replaced(attack, **changes)


def replaced(frozen, **changes):
    """Returns a copy with other fields, which are not checked: a schedule may begin at 0, and a tensor has no value."""
    changed = copy.copy(frozen)
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed


def _plain(number):
    return float(number) if tf.executing_eagerly() else number


@keras.saving.register_keras_serializable("keras_sat")
class StepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly, then falls by a factor at some steps.

        rate(t) = warmup_from + (peak - warmup_from) t / warmup_steps    for t < warmup_steps
        rate(t) = peak factor^n                                          n = number of boundaries <= t

    Args:
        peak: the rate after the warm-up.
        boundaries: steps at which it falls.
        factor: by which.
        warmup_steps: number of steps of the warm-up.
        warmup_from: rate at step 0.
    """

    def __init__(self, peak, boundaries, factor=0.1, warmup_steps=0, warmup_from=0.0):
        self.peak = peak
        self.boundaries = list(boundaries)
        self.factor = factor
        self.warmup_steps = warmup_steps
        self.warmup_from = warmup_from

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        falls = tf.reduce_sum(tf.cast(step >= tf.constant(self.boundaries, tf.float32), tf.float32))
        rise = self.warmup_from + (self.peak - self.warmup_from) * step / max(1, self.warmup_steps)
        return tf.where(step < self.warmup_steps, rise, self.peak * self.factor**falls)

    def get_config(self):
        return {name: getattr(self, name) for name in ("peak", "boundaries", "factor", "warmup_steps", "warmup_from")}
