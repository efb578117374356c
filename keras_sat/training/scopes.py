"""Passes through a network whose variables have other values, or keep theirs."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf


def moved(variables: Sequence[keras.Variable], steps: Mapping[int, tf.Tensor]) -> keras.StatelessScope:
    """Returns a scope in which variables are moved by `steps`. What a pass assigns stays in the scope.

    The scope keeps the losses of layers. Inside another such scope, the variables are moved from their values there.

    Args:
        variables: the variables whose values the scope holds.
        steps: {id of a variable: what is added to its value}.
    """
    values = [(v, v.value + steps[id(v)] if id(v) in steps else v.value) for v in variables]
    return keras.StatelessScope(state_mapping=values, collect_losses=True)


def without_updates(model: keras.Model) -> keras.StatelessScope:
    """Returns a scope in which passes through the model update none of its variables, such as moving statistics.

    Gradients with respect to the weights are those of a pass outside. Each scope begins with the same state of dropout.
    """
    return moved(model.variables, {})
