"""Attacks: frozen configurations that are called with a logits function, images, labels and a seed."""

from keras_sat.attacks.gradients import value_and_gradient
from keras_sat.attacks.pgd import FGSM, PGD
from keras_sat.attacks.threats import L2Ball, LinfBall

__all__ = ["FGSM", "L2Ball", "LinfBall", "PGD", "value_and_gradient"]
