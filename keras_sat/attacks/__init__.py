"""Attacks: frozen configurations that map a network, images and labels to adversarial images."""

from keras_sat.attacks._names import from_name, names
from keras_sat.attacks.apgd import APGD
from keras_sat.attacks.attack import Attack
from keras_sat.attacks.autoattack import AutoAttack
from keras_sat.attacks.bpda import bpda
from keras_sat.attacks.fab import FAB
from keras_sat.attacks.gradients import value_and_gradient
from keras_sat.attacks.noise import GaussianNoise
from keras_sat.attacks.pgd import FGSM, PGD
from keras_sat.attacks.square import Square
from keras_sat.attacks.threats import Ball, L1Ball, L2Ball, LinfBall
from keras_sat.attacks.transfer import Transfer

__all__ = [
    "APGD",
    "Attack",
    "AutoAttack",
    "Ball",
    "FAB",
    "FGSM",
    "GaussianNoise",
    "L1Ball",
    "L2Ball",
    "LinfBall",
    "PGD",
    "Square",
    "Transfer",
    "bpda",
    "from_name",
    "names",
    "value_and_gradient",
]
