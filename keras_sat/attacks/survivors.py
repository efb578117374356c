"""A loop that drops an example from the batch as soon as the example is misclassified."""

from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

from keras_sat.attacks import randomness

State: TypeAlias = dict[str, tf.Tensor]

# The batch is compacted when fewer than this share of its examples is still robust. Convolutions need a set-up for each
# new batch size, so the batch does not shrink with every single example.
_CROWDED = 0.9


def initial_state(
    images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, start: tf.Tensor | None = None, **more: tf.Tensor
) -> State:
    """Returns the state with which a loop over starts begins: no example is broken. See `loop`."""
    if start is not None:
        more["start"] = start
    seeds = randomness.per_example(seed, tf.shape(labels)[0])
    broken = tf.zeros_like(labels, tf.bool)
    return {"images": images, "labels": labels, "seeds": seeds, "result": images, "broken": broken, **more}


def loop(
    step: Callable[[Any, State], State], state: State, iterations: int, static_shapes: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """Repeats a step until all examples are broken, or until it was done `iterations` times.

    Args:
        step: maps the number of the iteration, a scalar, and the state to the next state. The result for an example
            must depend only on the part of the state that belongs to this example.
        state: dict of tensors whose first axis is the example. It holds "result", the images to return, and "broken",
            bool [batch]. Both are final for an example once its "broken" is True.
        iterations: largest number of iterations, >= 1.
        static_shapes: False drops broken examples from the batch. True keeps all shapes, as XLA and TPUs require. Both
            return the same.

    Returns:
        "result" and "broken" of all examples.
    """
    return _masked(step, state, iterations) if static_shapes else _compacted(step, state, iterations)


def _advance(step, number, state):
    new = step(number, state)
    was_broken = state["broken"]
    new["result"] = tf.where(was_broken[:, None, None, None], state["result"], new["result"])
    new["broken"] = was_broken | new["broken"]
    return new


def _masked(step, state, iterations):
    _, state = tf.while_loop(
        lambda number, state: ~tf.reduce_all(state["broken"]),
        lambda number, state: (number + 1, _advance(step, number, state)),
        (tf.constant(0), state),
        maximum_iterations=iterations,
        parallel_iterations=1,
    )
    return state["result"], state["broken"]


def _compacted(step, state, iterations):
    def body(number, rows, state, done):
        state = _advance(step, number, state)
        robust = tf.reduce_sum(tf.cast(~state["broken"], tf.float32))
        crowded = robust > _CROWDED * tf.cast(tf.size(rows), tf.float32)
        rows, state, done = tf.cond(
            crowded, lambda: (rows, state, done), lambda: _shrink(rows, state, _scatter(rows, state, done))
        )
        return number + 1, rows, state, done

    done = {name: state[name] for name in ("result", "broken")}
    carried = (tf.constant(0), tf.range(tf.size(state["broken"])), state, done)
    # The tensors of the remaining examples change their first dimension; `done` has all examples and keeps its own.
    invariants = (tf.TensorShape([]), *tf.nest.map_structure(_any_number, carried[1:]))
    _, rows, state, done = tf.while_loop(
        lambda number, rows, state, done: tf.size(rows) > 0,
        body,
        carried,
        invariants,
        maximum_iterations=iterations,
        parallel_iterations=1,
    )
    done = _scatter(rows, state, done)
    return done["result"], done["broken"]


def _shrink(rows, state, done):
    robust = tf.where(~state["broken"])[:, 0]
    return *tf.nest.map_structure(lambda values: tf.gather(values, robust), (rows, state)), done


def _scatter(rows, state, done):
    return {name: tf.tensor_scatter_nd_update(done[name], rows[:, None], state[name]) for name in done}


def _any_number(tensor):
    return tf.TensorShape([None, *tensor.shape[1:]])
