"""Reads and changes the graph of a functional Keras model, with public functions of Keras only.

A layer may be called several times, also in other models. `layer.input` and `layer.output` are the tensors of its first
call only. `keras.models.clone_model` repeats each call of one model, and its arguments let us record the calls.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras


class Call(NamedTuple):
    """One call in a model's graph.

    Attributes:
        operation: the layer, inner model or operation of keras.ops that is called.
        inputs: the Keras tensors that it takes.
        outputs: the Keras tensors that it returns. All these tensors represent tensors of the model, but are not the
            same objects.
    """

    operation: keras.Operation
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]


def calls(model: Any) -> list[Call]:
    """Returns the calls that lead to a model's first output, in order; the last call makes the output.

    The layers of an inner model are not listed: the inner model is one operation. The model is not changed.

    Args:
        model: a functional or sequential keras.Model. For anything else, the list is empty.
    """
    if not is_functional(model):
        return []
    recorded = []

    def call(mark: _Mark, *args: Any, **kwargs: Any) -> Any:
        outputs = mark(*args, **kwargs)
        recorded.append(Call(mark.operation, _tensors([args, kwargs]), _tensors(outputs)))
        return outputs

    keras.models.clone_model(_functional(model), clone_function=_Mark, call_function=call)
    return recorded


def rebuild(model: keras.Model, changes: Mapping[int, Callable[..., Any]], name: str | None = None) -> keras.Model:
    """Returns a model that shares the layers of another one, with some calls replaced.

    Args:
        model: a functional or sequential keras.Model. The new model has its first output.
        changes: {index of a call in `calls(model)`: the layer or function to call instead, with the same arguments}.
        name: name of the new model. Default: the name of `model`.
    """
    index = itertools.count()

    def call(operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        return changes.get(next(index), operation)(*args, **kwargs)

    def share(operation: keras.Operation) -> keras.Operation:
        return operation

    return keras.models.clone_model(_functional(model, name), clone_function=share, call_function=call)


def skip(inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns its first argument. In the `changes` of `rebuild`, it removes a call."""
    return inputs


def is_functional(model: Any) -> bool:
    """Returns whether a model has a graph: whether it is a functional or a built sequential keras.Model."""
    return isinstance(model, keras.Model) and bool(getattr(model, "inputs", None))


class _Mark(keras.Operation):
    """A placeholder for an operation of a model. It computes nothing."""

    def __init__(self, operation: keras.Operation) -> None:
        super().__init__(name=operation.name)
        self.operation = operation

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), self.operation.output)


def _functional(model, name=None):
    """Returns an uncompiled functional model of the same graph. (Keras compiles the clone of a compiled model.)"""
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs  # of a list of one, Keras warns later
    return keras.Model(inputs, model.outputs[0], name=name or model.name)


def _tensors(structure):
    return [leaf for leaf in keras.tree.flatten(structure) if keras.utils.is_keras_tensor(leaf)]
