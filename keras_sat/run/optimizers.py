"""The optimizer, the learning rate and the loss of a run."""

from typing import TypeAlias

import keras

from keras_sat.run.configuration import Run
from keras_sat.training import (
    CycledMomentum,
    OneCycle,
    StepDecay,
    TorchSGD,
    Triangle,
    decay_weights,
    with_ema_warmup,
)

LearningRate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule


def loss(run: Run) -> keras.losses.Loss:
    """Returns the loss of a run, with its label smoothing."""
    if run.has_soft_labels:
        return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=run.label_smoothing)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def optimizer(run: Run, model: keras.Model, steps: int, rate: LearningRate) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a run, and sets what of the model decays.

    Args:
        run: the configuration.
        model: the network.
        steps: number of steps in an epoch.
        rate: the learning rate, see `learning_rate`.
    """
    options = {"global_clipnorm": run.clip_norm}
    if run.ema:
        options |= {"use_ema": True, "ema_momentum": run.ema, "ema_overwrite_frequency": None}
    if run.optimizer == "adamw":
        made = keras.optimizers.AdamW(rate, beta_2=run.beta_2, **options)
    elif run.optimizer == "torch_sgd":
        made = TorchSGD(rate, momentum=0.9, nesterov=run.nesterov, cycle=_cycle(run, rate), **options)
    else:
        made = keras.optimizers.SGD(rate, momentum=0.9, nesterov=run.nesterov, **options)
    decay_weights(model, made, run.weight_decay, run.weight_decay_on)
    if run.ema and run.ema_warmup is not None:
        made = with_ema_warmup(made, int(run.ema_warmup * _iterations(run, steps)))
    return made


def learning_rate(run: Run, steps: int, epochs: int) -> LearningRate:
    """Returns the schedule of the learning rate.

    Args:
        run: the configuration.
        steps: number of steps in an epoch.
        epochs: number of epochs of the schedule.
    """
    steps = _iterations(run, steps)
    total = epochs * steps
    rise = epochs / 5 if run.warmup_epochs is None else run.warmup_epochs
    rise = min(int(rise * steps), total - 1)
    if run.schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            run.warmup_from,
            total - rise,
            alpha=run.final_learning_rate / run.learning_rate,
            warmup_target=run.learning_rate,
            warmup_steps=rise,
        )
    if run.schedule == "triangle":
        return Triangle(run.learning_rate, total, rise)
    if run.schedule == "onecycle":
        return OneCycle(run.learning_rate, total, rise)
    if run.schedule == "onecycle_by_epoch":
        return OneCycle(run.learning_rate, total, rise, steps_per_change=steps)
    boundaries = [int(epoch) * steps for epoch in run.decay_epochs.split(",")]
    return StepDecay(run.learning_rate, boundaries, warmup_steps=rise, warmup_from=run.warmup_from)


def _cycle(run, rate):
    """Returns the momentum as a function of the iterations; None if it is constant, as for the head alone."""
    if run.cycle_momentum is None or not isinstance(rate, (OneCycle, Triangle)):
        return None
    return CycledMomentum(rate, *map(float, run.cycle_momentum.split(",")))


def _iterations(run, steps):
    """Returns the iterations of the optimizer in an epoch: each replay of a batch is one."""
    return steps * max(1, run.replays)
