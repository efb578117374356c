"""Schedules of the learning rate that Keras does not have."""

import math
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


@keras.saving.register_keras_serializable("keras_sat")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises along a cosine, then falls along a cosine, as torch.optim.lr_scheduler.OneCycleLR.

        rate rises from start = peak start_factor, at step 0, to peak, at step warmup_steps - 1
        rate falls from peak to start end_factor, at step total_steps - 1, and stays there

    torch's pct_start is warmup_steps / total_steps. Source: Smith and Topin, arXiv:1708.07120.

    Args:
        peak: the largest rate, > 0.
        total_steps: number of steps, a multiple of `steps_per_change`.
        warmup_steps: number of steps of the rise, in 0..total_steps; it need not be whole.
        start_factor: the first rate as a share of `peak`. Default: 1 / 25.
        end_factor: the last rate as a share of the first one. Default: 1e-4.
        steps_per_change: number of steps for which the rate stays the same. The steps of an epoch give a rate that
            changes once in each epoch, as in Wang et al., arXiv:2302.04638. The formula then counts epochs, not steps.
            Default: 1.

    Raises:
        ValueError: for a value out of its range.
    """

    def __init__(
        self,
        peak: float,
        total_steps: int,
        warmup_steps: float,
        start_factor: float = 1 / 25,
        end_factor: float = 1e-4,
        steps_per_change: int = 1,
    ) -> None:
        _check_steps(peak, total_steps, "warmup_steps", warmup_steps)
        if not (steps_per_change >= 1 and total_steps % steps_per_change == 0):
            raise ValueError(f"steps_per_change must divide total_steps, {total_steps}. Received: {steps_per_change!r}")
        self.peak = peak
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.steps_per_change = steps_per_change

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the learning rate at a step, a float32 scalar."""
        start = self.peak * self.start_factor
        return self.between(step, start, self.peak, start * self.end_factor)

    def between(self, step: Any, start: float, top: float, end: float) -> tf.Tensor:
        """Returns a value that goes from `start` to `top` while the rate rises, and to `end` while it falls."""
        peak_place = self.warmup_steps / self.steps_per_change - 1
        last_place = self.total_steps / self.steps_per_change - 1
        place = tf.cast(tf.cast(step, tf.int64) // self.steps_per_change, tf.float32)
        rise = _cosine(start, top, place / max(peak_place, _TINY))
        fall = _cosine(top, end, (place - peak_place) / max(last_place - peak_place, _TINY))
        return tf.where(place < peak_place, rise, fall)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        names = ("peak", "total_steps", "warmup_steps", "start_factor", "end_factor", "steps_per_change")
        return {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable("keras_sat")
class Triangle(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly from 0, then falls linearly to 0, as in arXiv:2001.03994.

        rate(t) = peak t / top_step                                    for t < top_step
        rate(t) = peak (total_steps - t) / (total_steps - top_step)    from there on; 0 after total_steps

    It is the first cycle of torch.optim.lr_scheduler.CyclicLR with a base_lr of 0.

    Args:
        peak: the largest rate, > 0.
        total_steps: the step at which the rate is 0 again.
        top_step: the step with the largest rate, in 0..total_steps; it need not be whole.

    Raises:
        ValueError: for a value out of its range.
    """

    def __init__(self, peak: float, total_steps: int, top_step: float) -> None:
        _check_steps(peak, total_steps, "top_step", top_step)
        self.peak = peak
        self.total_steps = total_steps
        self.top_step = top_step

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the learning rate at a step, a float32 scalar."""
        return self.between(step, 0.0, self.peak, 0.0)

    def between(self, step: Any, start: float, top: float, end: float) -> tf.Tensor:
        """Returns a value that goes from `start` to `top` while the rate rises, and to `end` while it falls."""
        step = tf.cast(step, tf.float32)
        rise = step / max(self.top_step, _TINY)
        fall = tf.maximum(self.total_steps - step, 0.0) / max(self.total_steps - self.top_step, _TINY)
        return tf.where(step < self.top_step, start + (top - start) * rise, end + (top - end) * fall)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {name: getattr(self, name) for name in ("peak", "total_steps", "top_step")}


@keras.saving.register_keras_serializable("keras_sat")
class CycledMomentum(keras.optimizers.schedules.LearningRateSchedule):
    """A momentum that falls as the learning rate rises, and rises as it falls. For `TorchSGD(cycle=)`.

    It is `cycle_momentum=True` of torch.optim.lr_scheduler.OneCycleLR (low 0.85, high 0.95 by default) and CyclicLR
    (0.8 and 0.9), where it is the default: these schedulers replace the momentum that the optimizer was given.

    Args:
        schedule: the learning rate, a `OneCycle` or `Triangle`.
        low: the momentum where the rate is largest, in 0..1.
        high: the momentum at the beginning and at the end, in low..1.

    Raises:
        ValueError: for another schedule, or a momentum out of its range.
    """

    def __init__(self, schedule: OneCycle | Triangle, low: float, high: float) -> None:
        if not isinstance(schedule, (OneCycle, Triangle)):
            raise ValueError(f"The momentum cycles with a OneCycle or Triangle. Received: {schedule!r}")
        if not 0 < low <= high < 1:
            raise ValueError(f"low and high must satisfy 0 < low <= high < 1. Received: {low!r} and {high!r}")
        self.schedule = schedule
        self.low = low
        self.high = high

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the momentum at a step, a float32 scalar."""
        return self.schedule.between(step, self.high, self.low, self.high)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "low": self.low, "high": self.high}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CycledMomentum":
        """Returns the schedule of a configuration."""
        return cls(**config | {"schedule": keras.saving.deserialize_keras_object(config["schedule"])})


_TINY = 1e-6  # avoids a division by 0 where a phase has no step


def _cosine(start, end, share):
    """Returns the value between start and end along half a wave of a cosine, at a share of the way, cut to 0..1."""
    return end + (start - end) / 2 * (1 + tf.cos(math.pi * tf.clip_by_value(share, 0.0, 1.0)))


def _check_steps(peak, total_steps, name, steps):
    if not peak > 0:
        raise ValueError(f"peak must be positive. Received: {peak!r}")
    if not (isinstance(total_steps, int) and total_steps >= 1):
        raise ValueError(f"total_steps must be an integer >= 1. Received: {total_steps!r}")
    if not 0 <= steps <= total_steps:
        raise ValueError(f"{name} must lie in 0..{total_steps}, the total steps. Received: {steps!r}")
