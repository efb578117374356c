"""Which images does a network classify correctly? The one definition, for evaluation and training."""

from typing import NamedTuple

import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients
from keras_sat.typing import Array, LogitsFunction


class Judgement(NamedTuple):
    """How a network classifies a batch.

    Attributes:
        is_correct: bool [batch]: the label has the largest logit, and all logits are finite.
        margin: float32 [batch]: the largest logit of a wrong class minus the label's; NaN if a logit is not finite.
        predicted: int32 [batch]: the class with the largest logit.
    """

    is_correct: tf.Tensor
    margin: tf.Tensor
    predicted: tf.Tensor


def judge(logits_fn: LogitsFunction, images: Array, labels: Array) -> Judgement:
    """Returns how a network classifies images.

    Args:
        logits_fn: maps images to logits [batch, classes], or one logit [batch, 1] for two classes.
        images: [batch, height, width, channels].
        labels: int [batch].
    """
    logits = gradients.logits(logits_fn, images)
    margin = tf.where(losses.is_finite(logits), losses.margin(labels, logits), float("nan"))
    return Judgement(losses.is_correct(labels, logits), margin, tf.argmax(logits, -1, tf.int32))
