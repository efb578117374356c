"""Runs a loop on the examples that still stand: one that broke is done, and costs nothing more."""

import tensorflow as tf

MODES = ("compact", "mask")

# The share of standing examples below which a batch is compacted. Each new size costs the convolutions a set-up, so
# that a batch is not cut at the loss of every single example.
_CROWDED = 0.9


def loop(step, state, iterations, mode):
    """Repeats a step until it was done `iterations` times or no example stands.

    Args:
        step: maps the iteration's number, a scalar, and the state to the next state. What it does to an example must
            depend on that example's part of the state alone.
        state: dict of tensors, their first axis the example. It holds "result", the images to return, and "broken"
            [batch]; both of an example stay as they are from the step on that sets its "broken".
        iterations: how many times at most, >= 1.
        mode: "compact" takes the broken ones out of the batch, and needs shapes that may change; "mask" keeps all
            shapes, for XLA and TPU. Both return the same.

    Returns:
        "result" and "broken" of all examples.
    """
    if mode == "mask":
        return _masked(step, state, iterations)
    return _compacted(step, state, iterations)


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
        standing = tf.reduce_sum(tf.cast(~state["broken"], tf.float32))
        crowded = standing > _CROWDED * tf.cast(tf.size(rows), tf.float32)
        rows, state, done = tf.cond(
            crowded, lambda: (rows, state, done), lambda: _shrink(rows, state, _scatter(rows, state, done))
        )
        return number + 1, rows, state, done

    done = {name: state[name] for name in ("result", "broken")}
    carried = (tf.constant(0), tf.range(tf.size(state["broken"])), state, done)
    # What is there per example changes its number; what was there of all, `done`, does not.
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
    standing = tf.where(~state["broken"])[:, 0]
    return *tf.nest.map_structure(lambda values: tf.gather(values, standing), (rows, state)), done


def _scatter(rows, state, done):
    return {name: tf.tensor_scatter_nd_update(done[name], rows[:, None], state[name]) for name in done}


def _any_number(tensor):
    return tf.TensorShape([None, *tensor.shape[1:]])
