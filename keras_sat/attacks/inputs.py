"""What every attack does before its first step: converts and checks its inputs, and compiles its loop once."""

import warnings

import tensorflow as tf


def run(attack, logits_fn, images, labels, seed):
    """Runs attack.perturb on checked inputs; eagerly called, as one compiled function that later batches reuse."""
    images = tf.convert_to_tensor(images)
    labels = tf.convert_to_tensor(labels)
    _check_static(images, labels)
    images = tf.cast(images, tf.float32)
    labels = tf.cast(labels, tf.int32)
    seed = _seed(seed)
    if tf.inside_function():
        check = _assert_in_bounds(images, attack.ball.bounds)
        with tf.control_dependencies([check]):
            return attack.perturb(logits_fn, tf.identity(images), labels, seed)
    _check_values(images, attack.ball.bounds)
    _check_logits(logits_fn, images, labels)
    return _compiled(attack, logits_fn, images, labels, seed)


@tf.function(autograph=False, reduce_retracing=True)
def _compiled(attack, logits_fn, images, labels, seed):
    return attack.perturb(logits_fn, images, labels, seed)


def _seed(seed):
    """Returns an int32 seed of shape [2], as TensorFlow's stateless random functions take it."""
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int32)
    if seed.shape.rank == 0:
        return tf.stack([seed, 0])
    if seed.shape != (2,):
        raise ValueError(f"seed must be an integer or have shape [2]. Received shape: {seed.shape}")
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


def _check_logits(logits_fn, images, labels):
    """Refuses, by the first image, probabilities in place of logits, and labels outside the classes."""
    if images.shape[0] == 0:
        return
    outputs = logits_fn(images[:1])
    if not tf.is_tensor(outputs) or outputs.shape.rank != 2:
        return  # said when it is traced
    classes = outputs.shape[-1]
    low, high = int(tf.reduce_min(labels)), int(tf.reduce_max(labels))
    if low < 0 or high >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}. Received values in [{low}, {high}]")
    total = float(tf.reduce_sum(tf.cast(outputs, tf.float32)))
    if classes > 1 and float(tf.reduce_min(outputs)) >= 0 and abs(total - 1) < 1e-3:
        raise ValueError(
            "logits_fn returns probabilities (not negative, sum 1): a softmax hides the gradient from an attack and "
            "makes any network look robust. Pass a model that ends in logits (classifier_activation=None)."
        )


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
