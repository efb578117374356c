"""Adversarial training with Keras' own compile and fit."""

from keras_sat.training.adversarial import AdversarialModel

__all__ = ["AdversarialModel"]
