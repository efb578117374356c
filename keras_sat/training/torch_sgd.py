"""SGD by the rule of torch.optim.SGD, whose momentum may change in the course of the training."""

from typing import Any

import keras

from keras_sat.training.schedules import CycledMomentum


@keras.saving.register_keras_serializable("keras_sat")
class TorchSGD(keras.optimizers.SGD):
    """SGD with momentum as in PyTorch, TensorFlow 1 and optax: the rate multiplies the whole sum of gradients.

        velocity = momentum velocity + gradient
        w -= rate velocity                            with nesterov: w -= rate (gradient + momentum velocity)

    Keras puts each step's own rate into the velocity. Both are the same as long as the rate stays the same. After a
    fall of the rate, Keras goes on for some steps with gradients at the former, larger rate.

    Args:
        args, kwargs: the arguments of `keras.optimizers.SGD`; `momentum` is 0.9 by default.
        cycle: the momentum as a function of the iterations, in place of `momentum`. Default: none.

    Raises:
        ValueError: if momentum is not in 0..1, or is 0: then take `keras.optimizers.SGD`.
    """

    def __init__(self, *args: Any, momentum: float = 0.9, cycle: CycledMomentum | None = None, **kwargs: Any) -> None:
        if not (isinstance(momentum, float) and 0 < momentum <= 1):
            raise ValueError(
                f"momentum must be a float in 0..1, not 0: then take keras.optimizers.SGD. Received: {momentum!r}"
            )
        super().__init__(*args, momentum=momentum, **kwargs)
        self.cycle = cycle

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates a weight and its velocity. Keras calls it for each weight in each step."""
        rate, gradient = (keras.ops.cast(value, variable.dtype) for value in (learning_rate, gradient))
        momentum = self.momentum if self.cycle is None else self.cycle(self.iterations)
        momentum = keras.ops.cast(momentum, variable.dtype)
        stored = self.momentums[self._get_variable_index(variable)]
        velocity = keras.ops.add(keras.ops.multiply(stored, momentum), gradient)
        self.assign(stored, velocity)
        step = keras.ops.add(gradient, keras.ops.multiply(velocity, momentum)) if self.nesterov else velocity
        self.assign_sub(variable, keras.ops.multiply(rate, step))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        cycle = self.cycle and keras.saving.serialize_keras_object(self.cycle)
        return super().get_config() | {"cycle": cycle}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "TorchSGD":
        """Returns the optimizer of a configuration."""
        cycle = config.get("cycle") and keras.saving.deserialize_keras_object(config["cycle"])
        return super().from_config(config | {"cycle": cycle}, custom_objects)
