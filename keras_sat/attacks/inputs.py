"""What every attack does before its first step: checks its fields and inputs, and compiles its loop once."""

import dataclasses
import functools
import numbers
import warnings

import numpy as np
import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients, randomness, survivors, threats

_SOME = 4  # images of a batch by which a network is judged
_SIGNS = {"softmax": "not negative, one sum", "sigmoid": "all in 0..1"}
_SLACK = 1e-5  # of the bounds' span: what float32 may do to images that were standardised


def check_fields(attack, positive=(), not_negative=()):
    """Refuses a ball, an integer or a way of running survivors that cannot be meant."""
    if not isinstance(attack.ball, threats.Ball):
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
    _check_static(images, labels, attack.ball)
    are_levels, images = images.dtype.is_integer, tf.cast(images, tf.float32)
    labels = tf.cast(labels, tf.int32)
    seed = as_seed(seed, images.shape[0])
    start = () if start is None else (tf.cast(start, tf.float32),)  # not every attack takes one
    if tf.inside_function():
        with tf.control_dependencies([_assert_in_bounds(images, attack.ball)]):
            return attack.perturb(logits_fn, tf.identity(images), labels, seed, *start)
    fault = _range_fault(images, attack.ball)
    if fault:
        raise ValueError(fault)
    if not are_levels and looks_scaled(images, attack.ball):
        warnings.warn(_scaled_text(images, attack.ball), stacklevel=3)
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


def _check_static(images, labels, ball):
    if images.shape.rank != 4:
        raise ValueError(f"images must have shape [batch, height, width, channels]. Received shape: {images.shape}")
    if ball.channels not in (None, images.shape[-1]):
        raise ValueError(
            f"epsilon and bounds of the ball are of {ball.channels} channels, the images have {images.shape[-1]}. "
            f"Received: {ball!r}"
        )
    if labels.shape.rank != 1 or not labels.dtype.is_integer:
        raise ValueError(
            f"labels must be integers of shape [batch]; {_flattened(labels)}. "
            f"Received: {labels.dtype.name} of shape {labels.shape}"
        )
    if not images.shape[:1].is_compatible_with(labels.shape):
        raise ValueError(f"images and labels differ in number. Received: {images.shape[0]} and {labels.shape[0]}")


def _flattened(labels):
    """Says how to make integers [batch] of some labels."""
    if labels.shape.rank == 2 and labels.shape[-1] == 1:
        return "of a column [batch, 1] pass tf.cast(labels[:, 0], tf.int32)"
    if labels.shape.rank == 2:
        return "for one-hot labels pass tf.argmax(labels, -1)"
    return "for whole numbers of another type pass tf.cast(labels, tf.int32)"


def _range_fault(images, ball):
    """Returns what is wrong with the values of some images, or None."""
    if not bool(tf.reduce_all(tf.math.is_finite(images))):
        return "images must be finite. Received: NaN or infinite values"
    if not bool(_in_bounds(images, ball)):
        return (
            f"images must lie within the bounds of the attack, {ball.bounds}; another range is said by the ball, "
            f"as in LinfBall(4 / 255, bounds=(0, 1)). Received values in {_reach(images)}"
        )
    return None


def check_logits(logits_fn, images, labels):
    """Refuses, by some images, what does not return logits [batch, classes], and labels outside the classes."""
    if images.shape[0] == 0:
        return
    some = tf.cast(images[:_SOME], tf.float32)
    losses.check_range(labels, gradients.logits(logits_fn, some).shape[-1])
    kind = losses.probabilities(logits_fn, some)
    if kind:
        raise ValueError(
            f"logits_fn returns probabilities ({_SIGNS[kind]}): a {kind} hides the gradient from an attack and makes "
            "any network look robust. Pass a model that ends in logits: build it with classifier_activation=None, or "
            "take keras_sat.models.without_softmax(model)."
        )


def check_batch(images, labels, ball):
    """Refuses a batch of training or evaluation that is not what the attack is for.

    It is for the host: XLA leaves the checks out that a graph has.

    Args:
        images, labels: eager tensors; integer images are those of pixels, and never taken for images in 0..1.
        ball: of the attack.

    Raises:
        BadBatch: for images outside the bounds or not finite, or that are in 0..1 where the bounds are 0..255.
        ValueError: for another shape.
    """
    pixels = tf.cast(images, tf.float32)
    _check_static(pixels, labels, ball)
    fault = _range_fault(pixels, ball)
    if fault is None and images.dtype.is_floating and looks_scaled(pixels, ball):
        if bool(tf.reduce_any(pixels != tf.round(pixels))):
            fault = _scaled_text(pixels, ball)
        else:  # images of two values, 0 and 1; or some that are nearly black
            warnings.warn(f"Unless these images are nearly black: {_scaled_text(pixels, ball)}", stacklevel=2)
    if fault:
        raise BadBatch(None, None, f"keras_sat: {fault}")


def assert_labels(labels, logits):
    """Returns the op that fails for labels outside of the classes. XLA leaves it out."""
    classes = logits.shape[-1]
    message = f"keras_sat: labels must lie in 0..{classes - 1}. Received values from, to:"
    return tf.debugging.Assert(
        tf.reduce_all((labels >= 0) & (labels < classes)), [message, tf.reduce_min(labels), tf.reduce_max(labels)]
    )


def check_untargeted(attack):
    """Refuses an attack that leads images to the labels it is given, where those are the images' own."""
    if getattr(attack, "targeted", False):
        raise ValueError(
            f"{attack} is targeted: it leads images to the labels it is given. Here they are the images' own, and "
            "every network would look robust. Take targeted=False; or name other classes: evaluate(..., targets=...)."
        )


def with_radius(attack, radius):
    """Returns an attack with another epsilon, an explicit step size being scaled with it."""
    changes = {"ball": attack.ball.with_radius(radius)}
    if getattr(attack, "step_size", None) is not None:
        if not attack.ball.radius:
            raise ValueError(
                f"step_size {attack.step_size:g} cannot be scaled with epsilon from an epsilon of 0: give {attack} "
                "another epsilon, or step_size=None."
            )
        changes["step_size"] = attack.step_size * radius / attack.ball.radius or None
    return dataclasses.replace(attack, **changes)


class BadBatch(tf.errors.InvalidArgumentError, ValueError):
    """Images that are not what the attack is for: a ValueError, and what a graph raises for a later batch."""


def _scaled_text(images, ball):
    return (
        f"The images reach from 0 to 1, the bounds of the attack are {ball.bounds}. For such images give the ball "
        f"their range: LinfBall(4 / 255, bounds=(0, 1)). Received values in {_reach(images)}"
    )


def _reach(images):
    return f"[{float(tf.reduce_min(images)):g}, {float(tf.reduce_max(images)):g}]"


def looks_scaled(images, ball):
    """Says whether some images are as those in 0..1, where the bounds begin at 0 too and reach to more than 2.

    Black images say nothing. (Bounds that begin below 0 are those of standardised images, and were said on purpose.)
    """
    low, high = (np.broadcast_to(bound, np.shape(bound) or (1,)) for bound in ball.bounds)
    if np.min(low) != 0 or np.max(low) != 0 or np.min(high) <= 2:
        return False
    return 0 < float(tf.reduce_max(images)) <= 1


def _in_bounds(images, ball):
    low, high = map(np.asarray, ball.bounds)
    slack = _SLACK * (high - low)
    return tf.reduce_all((images >= low - slack) & (images <= high + slack))


def _assert_in_bounds(images, ball):
    """Returns the op that fails unless all images are within the bounds (a NaN is not). XLA leaves it out."""
    message = f"keras_sat: images must lie within the bounds of the attack, {ball.bounds}. Received values from, to:"
    return tf.debugging.Assert(_in_bounds(images, ball), [message, tf.reduce_min(images), tf.reduce_max(images)])
