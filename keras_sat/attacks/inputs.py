"""What every attack does before its first step: checks its fields and inputs, and compiles its loop once."""

import dataclasses
import functools
import numbers
import warnings

import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients, randomness, survivors, threats


def check_fields(attack, positive=(), not_negative=()):
    """Refuses a ball, an integer or a way of running survivors that cannot be meant."""
    if not isinstance(attack.ball, (threats.LinfBall, threats.L2Ball)):
        raise ValueError(f"ball must be a LinfBall or an L2Ball, such as LinfBall(4). Received: {attack.ball!r}")
    for least, names in ((1, positive), (0, not_negative)):
        for name in names:
            value = getattr(attack, name)
            if not (isinstance(value, numbers.Integral) and value >= least):
                raise ValueError(f"{name} must be an integer >= {least}. Received: {value!r}")
            object.__setattr__(attack, name, int(value))  # NumPy's are not written as JSON
    if attack.survivors not in survivors.MODES:
        raise ValueError(f"survivors must be one of {survivors.MODES}. Received: {attack.survivors!r}")


def settings(attack):
    """Returns the fields of an attack as plain values, what another tool needs to run it again."""
    fields = {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack) if field.name != "ball"}
    fields = {name: getattr(value, "__name__", value) for name, value in fields.items()}  # losses by their names
    return {**dataclasses.asdict(attack.ball), **fields, "attack": type(attack).__name__, "norm": attack.ball.norm}


def run(attack, logits_fn, images, labels, seed, start=None):
    """Runs attack.perturb on checked inputs; eagerly called, as one compiled function that later batches reuse."""
    images = tf.convert_to_tensor(images)
    labels = tf.convert_to_tensor(labels)
    _check_static(images, labels)
    images = tf.cast(images, tf.float32)
    labels = tf.cast(labels, tf.int32)
    seed = as_seed(seed, images.shape[0])
    start = () if start is None else (tf.cast(start, tf.float32),)  # not every attack takes one
    if tf.inside_function():
        check = _assert_in_bounds(images, attack.ball.bounds)
        with tf.control_dependencies([check]):
            return attack.perturb(logits_fn, tf.identity(images), labels, seed, *start)
    _check_values(images, attack.ball.bounds)
    check_logits(logits_fn, images, labels)
    function = _compiled(attack, seed.shape.rank)
    # Traced at once for any number of images: else the second batch, of another size, would be traced anew.
    specs = [_any_number(tensor, batch=tensor is not seed or seed.shape.rank == 2) for tensor in (images, labels, seed)]
    function.get_concrete_function(logits_fn, *specs, *map(_any_number, start))
    return function(logits_fn, images, labels, seed, *start)


@functools.lru_cache(maxsize=64)
def _compiled(attack, seed_rank):
    """Returns the attack as a compiled function; it holds a logits function no longer than others do.

    One for each kind of seed: for both, TensorFlow would generalise to a seed of unknown rank.
    """
    return tf.function(attack.perturb, autograph=False, reduce_retracing=True)


def _any_number(tensor, batch=True):
    return tf.TensorSpec([None, *tensor.shape[1:]] if batch else tensor.shape, tensor.dtype)


def initial_state(images, labels, seed, start=None, **more):
    """Returns what the loop over attempts begins with: nothing broken; see `survivors.loop`."""
    if start is not None:
        more["start"] = start
    seeds = randomness.per_example(seed, tf.shape(labels)[0])
    broken = tf.zeros_like(labels, tf.bool)
    return {"images": images, "labels": labels, "seeds": seeds, "result": images, "broken": broken, **more}


def target_classes(attack, logits_fn, images, labels):
    """Returns the classes to aim at, [batch, targets], the likeliest first; for no targets the labels, [batch, 1]."""
    if not attack.targets:
        return labels[:, None]
    logits = gradients.logits(logits_fn, images)
    classes = logits.shape[-1]
    if attack.targets > classes - 1:
        warnings.warn(
            f"{attack} asks for {attack.targets} target classes, there are {classes - 1}: these are taken.",
            stacklevel=2,
        )
    return tf.math.top_k(losses.without_label(labels, logits), min(attack.targets, classes - 1)).indices


def as_seed(seed, batch):
    """Returns an int32 seed of shape [2], as TensorFlow's stateless random functions take it, or [batch, 2]."""
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int32)
    if seed.shape.rank == 0:
        return tf.stack([seed, 0])
    if not (seed.shape.is_compatible_with((2,)) or seed.shape.is_compatible_with((batch, 2))):
        raise ValueError(f"seed must be an integer, or have shape [2] or [batch, 2]. Received shape: {seed.shape}")
    return seed


def _check_static(images, labels):
    if images.shape.rank != 4:
        raise ValueError(f"images must have shape [batch, height, width, channels]. Received shape: {images.shape}")
    if labels.shape.rank != 1 or not labels.dtype.is_integer:
        raise ValueError(
            "labels must be integers of shape [batch]; for one-hot labels pass tf.argmax(labels, -1). "
            f"Received: {labels.dtype.name} of shape {labels.shape}"
        )
    if not images.shape[:1].is_compatible_with(labels.shape):
        raise ValueError(f"images and labels differ in number. Received: {images.shape[0]} and {labels.shape[0]}")


def _check_values(images, bounds):
    low, high = float(tf.reduce_min(images)), float(tf.reduce_max(images))
    if not tf.reduce_all(tf.math.is_finite(images)):
        raise ValueError("images must be finite. Received: NaN or infinite values")
    if low < bounds[0] or high > bounds[1]:
        raise ValueError(
            f"images must lie within the bounds of the attack, {bounds}; another range is said by the ball, "
            f"as in LinfBall(4 / 255, bounds=(0, 1)). Received values in [{low:g}, {high:g}]"
        )
    if _looks_scaled(high, bounds):
        warnings.warn(f"{_SCALED.format(bounds=bounds)} Received values in [{low:g}, {high:g}]", stacklevel=4)


def check_logits(logits_fn, images, labels):
    """Refuses, by the first of some images, probabilities in place of logits, and labels outside the classes."""
    if images.shape[0] == 0:
        return
    outputs = logits_fn(images[:1])
    if not tf.is_tensor(outputs) or outputs.shape.rank != 2:
        return  # said when it is traced
    classes = outputs.shape[-1]
    low, high = int(tf.reduce_min(labels)), int(tf.reduce_max(labels))
    if low < 0 or high >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}. Received values in [{low}, {high}]")
    if are_probabilities(outputs):
        raise ValueError(
            "logits_fn returns probabilities (not negative, sum 1): a softmax hides the gradient from an attack and "
            "makes any network look robust. Pass a model that ends in logits (classifier_activation=None)."
        )


def are_probabilities(outputs):
    """Says whether outputs [batch, classes] are not negative and add up to 1 for each example."""
    outputs = tf.cast(outputs, tf.float32)
    sums_to_one = tf.reduce_all(tf.abs(tf.reduce_sum(outputs, axis=1) - 1) < 1e-3)
    return outputs.shape[1] > 1 and bool(tf.reduce_min(outputs) >= 0) and bool(sums_to_one)


_SCALED = (
    "The images reach from 0 to 1, the bounds of the attack are {bounds}. For such images give the ball their range: "
    "LinfBall(4 / 255, bounds=(0, 1))."
)


def _looks_scaled(high, bounds):
    """Says whether the largest value of some images is that of images in 0..1; black images say nothing."""
    return (high > 0) & (high <= 1) & (bounds[1] > 2)


def assert_not_scaled(images, bounds):
    """Returns the op that fails for a batch in 0..1 where the attack's bounds are 0..255. XLA leaves it out."""
    high = tf.cast(tf.reduce_max(images), tf.float32)
    return tf.debugging.Assert(~_looks_scaled(high, bounds), [f"keras_sat: {_SCALED.format(bounds=bounds)}", high])


def _assert_in_bounds(images, bounds):
    """Returns the op that fails unless all images are within the bounds (a NaN is not). XLA leaves it out."""
    inside = tf.reduce_all((images >= bounds[0]) & (images <= bounds[1]))
    message = f"keras_sat: images must lie within the bounds of the attack, {bounds}. Received values from, to:"
    return tf.debugging.Assert(inside, [message, tf.reduce_min(images), tf.reduce_max(images)])
