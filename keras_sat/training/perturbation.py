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
        trainable = model.trainable_variables
        kernels = [weight for weight in trainable if len(weight.shape) > 1]
        with _moved(trainable, {}):  # swallows the updates of the moving statistics
            *_, ascent = gradients.of_training(forward, kernels)
        found = [(kernel, g) for kernel, g in zip(kernels, ascent) if g is not None]  # of a branch that is not used
        summed = tf.distribute.get_replica_context().all_reduce("SUM", [g for _, g in found])
        steps = {id(w): self._step(tf.convert_to_tensor(w.value), g) for (w, _), g in zip(found, summed)}

        def perturbed():
            with _moved(trainable, steps) as scope:
                outputs = forward()
            for variable in model.non_trainable_variables:
                value = scope.get_current_value(variable)
                if value is not None:
                    variable.assign(value)
            return outputs

        return perturbed

    def _step(self, kernel, gradient):
        return tf.math.divide_no_nan(self.gamma * tf.norm(kernel) * gradient, tf.norm(gradient))


def _moved(variables, steps):
    """Returns a scope in which variables have moved, {id: step}, and in which losses of layers are not lost."""
    values = [(v, v.value + steps[id(v)] if id(v) in steps else v.value) for v in variables]
    return keras.StatelessScope(state_mapping=values, collect_losses=True)
