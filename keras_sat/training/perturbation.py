"""Adversarial weight perturbation: the training step's gradient is taken where the weights are worst."""

import dataclasses

import keras
import tensorflow as tf

from keras_sat.attacks import gradients


@dataclasses.dataclass(frozen=True)
class AWP:
    """Adversarial weight perturbation (Wu et al., arXiv:2004.05884), around any objective.

        v = gamma ||w|| g / ||g||  for each kernel w, with g the gradient of the objective by it;
        the step of the optimizer takes the gradient at w + v, and moves w

    The gradient g is that of the whole batch over all replicas; the batch norms' moving statistics do not move for it.

    Args:
        gamma: length of the perturbation relative to the kernel's, > 0; 0.005 in the paper (0.01 for plain adversarial
            training).
    """

    gamma: float = 0.005

    def __post_init__(self):
        if not self.gamma > 0:
            raise ValueError(f"gamma must be positive. Received: {self.gamma!r}")

    def perturb(self, forward, model):
        """Returns a function like `forward`, from nothing to a loss and logits, that runs at the perturbed weights."""
        kernels = [weight for weight in model.trainable_variables if len(weight.shape) > 1]
        with keras.StatelessScope():  # swallows the updates of the moving statistics
            *_, ascent = gradients.of_training(forward, kernels)
        ascent = tf.distribute.get_replica_context().all_reduce("SUM", ascent)
        steps = [self._step(tf.convert_to_tensor(kernel.value), g) for kernel, g in zip(kernels, ascent)]

        def perturbed():
            moved = [(kernel, kernel.value + step) for kernel, step in zip(kernels, steps)]
            with keras.StatelessScope(state_mapping=moved) as scope:
                outputs = forward()
            for variable in model.non_trainable_variables:
                value = scope.get_current_value(variable)
                if value is not None:
                    variable.assign(value)
            return outputs

        return perturbed

    def _step(self, kernel, gradient):
        return tf.math.divide_no_nan(self.gamma * tf.norm(kernel) * gradient, tf.norm(gradient))
