"""Stays until evaluation uses `validation` and `Attack`."""

from keras_sat.attacks.randomness import as_seed  # noqa: F401
from keras_sat.attacks.validation import check_logits, check_untargeted  # noqa: F401


def with_radius(attack, radius):
    return attack.with_radius(radius)
