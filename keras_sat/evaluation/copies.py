"""Copies of a Keras model that attacks run on because they are faster. Each is first compared with the model."""

import weakref
from typing import Any

import keras
import tensorflow as tf

from keras_sat.attacks import agreement
from keras_sat.evaluation import identity
from keras_sat.models import classifier, folding

_FOLDED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # {model: (key, copy or None)}


def folded(model: Any, facts: dict[str, Any], images: tf.Tensor) -> keras.Model | None:
    """Returns the model with its batch norms folded into the convolutions, see `models.folding.fold`.

    The copy is cached: a second evaluation of the same network gets the same copy, and does not compile again.

    Args:
        model: a Keras model, or a function.
        facts: the context of a report, which says whether the model is the same as before: its "weights_sha256" and
            its `identity.logits_of_noise`.
        images: some images of the dataset, on which copy and model are compared.

    Returns:
        The copy; None if the model is a function, has nothing to fold, or differs from its copy (with a warning).
    """
    if not isinstance(model, keras.Model):
        return None
    key = (facts["weights_sha256"], str(facts[identity.LOGITS]["model"]), tf.distribute.get_strategy())
    if model not in _FOLDED or _FOLDED[model][0] != key:
        copy = folding.fold(model)
        tolerance = agreement.LOW if classifier.computes_low(model) else agreement.EXACT
        is_used = copy is not model and agreement.holds(
            model, copy, images, tolerance, model.name, "with folded batch norms"
        )
        _FOLDED[model] = (key, copy if is_used else None)  # never the model itself, which could not be freed then
    return _FOLDED[model][1]


def low_precision(model: keras.Model, precision: str, images: tf.Tensor) -> keras.Model | None:
    """Returns a folded copy of the model in another precision; None, with a warning, if it differs from the model.

    Args:
        model: a Keras model.
        precision: "mixed_bfloat16" or "mixed_float16".
        images: some images of the dataset, on which copy and model are compared.
    """
    copy = folding.fold(classifier.in_precision(model, precision))
    is_used = agreement.holds(model, copy, images, agreement.LOW, model.name, f"in {precision}")
    return copy if is_used else None
