"""Measures clean and robust accuracy."""

import keras
import tensorflow as tf

from keras_sat import losses
from keras_sat.evaluation import report


def evaluate(model, dataset, attacks, *, seed=0, batch_size=128, progress=True):
    """Measures the accuracy of a classifier, clean and under each attack.

    An image counts as robust under an attack when it is classified correctly both as it is and as attacked; those
    misclassified as they are need not be attacked. The model runs in inference mode throughout.

    Args:
        model: a Keras classifier, or a function, from images to logits [batch, classes].
        dataset: a finite tf.data.Dataset of (images [batch, height, width, channels], labels), or a pair of arrays of
            them; the images in the range of the attacks' bounds, the labels integers [batch] or one-hot.
        attacks: an attack, a list of attacks, or a dict from names to attacks.
        seed: the same seed on the same batches gives the same figures.
        batch_size: images in a batch, for a pair of arrays.
        progress: whether to print a progress bar with the figures so far.

    Returns:
        A `RobustnessReport`.

    Raises:
        ValueError: for a dataset without images, or what the attacks refuse.
    """
    attacks = _named(attacks)
    if isinstance(dataset, (tuple, list)):
        dataset = tf.data.Dataset.from_tensor_slices(tuple(dataset)).batch(batch_size)
    predict = tf.function(lambda images: tf.argmax(model(images), -1, tf.int32), autograph=False, reduce_retracing=True)
    tallies = {name: report.Tally() for name in ("clean", *attacks)}
    bar = _progress_bar(dataset, list(tallies)) if progress else None
    for index, batch in enumerate(dataset):
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
        labels = losses.hard_labels(labels)
        with tallies["clean"].timed(len(labels)) as tally:
            standing = predict(images) == labels
            tally.correct += int(tf.reduce_sum(tf.cast(standing, tf.int32)))
        images, standing_labels = tf.boolean_mask(images, standing), tf.boolean_mask(labels, standing)
        for name, attack in attacks.items():
            with tallies[name].timed(len(labels)) as tally:
                tally.correct += _robust(predict, attack, model, images, standing_labels, seed=[seed, index])
        if bar:
            bar.update(index + 1, [(name, tally.correct / tally.n) for name, tally in tallies.items()])
    if tallies["clean"].n == 0:
        raise ValueError("The dataset has no images to evaluate on.")
    results = [
        report.AttackResult.of(name, tally, attacks[name].settings() if name in attacks else {})
        for name, tally in tallies.items()
    ]
    return report.RobustnessReport(results, report.context(model, seed))


def _robust(predict, attack, model, images, labels, seed):
    """Returns how many of the images, all classified correctly, still are when attacked."""
    if len(labels) == 0:
        return 0
    adversarial = attack(model, images, labels, seed)
    return int(tf.reduce_sum(tf.cast(predict(adversarial) == labels, tf.int32)))


def _named(attacks):
    if isinstance(attacks, dict):
        named = attacks
    else:
        attacks = list(attacks) if isinstance(attacks, (list, tuple)) else [attacks]
        named = {str(attack): attack for attack in attacks}
        if len(named) < len(attacks):
            raise ValueError(f"Several attacks have one name: pass a dict from names to attacks. Received: {attacks}")
    if "clean" in named:
        raise ValueError('"clean" is the row of the images as they are: name the attack otherwise.')
    return named


def _progress_bar(dataset, names):
    batches = int(dataset.cardinality())
    # "Stateful": shown as they are, for they are means already.
    return keras.utils.Progbar(batches if batches > 0 else None, unit_name="batch", stateful_metrics=names)
