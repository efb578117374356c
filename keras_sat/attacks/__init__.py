"""Attacks: frozen configurations that are called with a logits function, images, labels and a seed."""

from keras_sat.attacks._names import from_name, names
from keras_sat.attacks.apgd import APGD
from keras_sat.attacks.autoattack import AutoAttack
from keras_sat.attacks.fab import FAB
from keras_sat.attacks.gradients import value_and_gradient
from keras_sat.attacks.pgd import FGSM, PGD
from keras_sat.attacks.square import Square
from keras_sat.attacks.threats import L2Ball, LinfBall

__all__ = [
    "APGD",
    "AutoAttack",
    "FAB",
    "FGSM",
    "L2Ball",
    "LinfBall",
    "PGD",
    "Square",
    "from_name",
    "names",
    "value_and_gradient",
]
