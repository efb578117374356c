"""Adversarial weight perturbation: the gradient of the training step is computed at adversarial weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_sat.attacks import gradients
from keras_sat.training import scopes


@dataclasses.dataclass(frozen=True)
class AWP:
    """Adversarial weight perturbation (Wu et al., arXiv:2004.05884), for any objective.

        v = gamma ||w|| g / ||g||    for each kernel w; g is the gradient of the objective with respect to w

    The optimizer uses the gradient at w + v, and updates w. g is the gradient of the whole batch over all replicas,
    without that of weight regularizers: the authors' weight decay belongs to their optimizer, which decays w + v.
    Computing g does not update the moving statistics of batch norms.

    Args:
        gamma: length of the perturbation relative to the length of the kernel, > 0; 0.005 in the paper (0.01 for plain
            adversarial training).

    Raises:
        ValueError: if gamma is not positive.
    """

    gamma: float = 0.005

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma must be positive. Received: {self.gamma!r}")

    def perturb(self, forward: Callable[[], Any], model: keras.Model) -> Callable[[], Any]:
        """Returns a function that calls `forward` with the perturbed weights and returns its result.

        Args:
            forward: function without arguments that returns a scalar loss and logits.
            model: the model whose kernels are perturbed.
        """
        trainable = model.trainable_variables
        kernels = [weight for weight in trainable if len(weight.shape) > 1]
        with scopes.moved(trainable, {}):  # discards the updates of the moving statistics
            *_, ascent = gradients.training_gradient(lambda: _without_regularizers(forward, trainable), kernels)
        used = [(kernel, g) for kernel, g in zip(kernels, ascent) if g is not None]  # None: the kernel is not used
        summed = tf.distribute.get_replica_context().all_reduce("SUM", [g for _, g in used])
        steps = {id(w): self._step(tf.convert_to_tensor(w.value), g) for (w, _), g in zip(used, summed)}

        def perturbed():
            with scopes.moved(trainable, steps) as scope:
                outputs = forward()
            for variable in model.non_trainable_variables:
                value = scope.get_current_value(variable)
                if value is not None:
                    variable.assign(value)
            return outputs

        return perturbed

    def _step(self, kernel, gradient):
        return tf.math.divide_no_nan(self.gamma * tf.norm(kernel) * gradient, tf.norm(gradient))


def _without_regularizers(forward, weights):
    """Returns what `forward` returns, the loss without those of weight regularizers, and logits."""
    loss, logits = forward()
    regularization = [weight.regularizer(weight) for weight in weights if weight.regularizer is not None]
    if regularization:
        loss -= tf.add_n(regularization) / tf.distribute.get_strategy().num_replicas_in_sync
    return loss, logits
