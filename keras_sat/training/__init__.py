"""Adversarial training with Keras' own compile and fit."""

from keras_sat.training import distribution
from keras_sat.training._cost import Cost, cost
from keras_sat.training.adversarial import AdversarialModel
from keras_sat.training.best_weights import BestWeights
from keras_sat.training.callbacks import (
    AveragedWeights,
    CatastrophicOverfittingGuard,
    PerturbationImages,
    RobustAccuracy,
)
from keras_sat.training.checkpoint import Checkpoint
from keras_sat.training.objectives import MART, TRADES, AdversarialTraining, Free, Objective
from keras_sat.training.perturbation import AWP
from keras_sat.training.progress import HistoryFile, Progress
from keras_sat.training.schedules import StepDecay

__all__ = [
    "AWP",
    "AdversarialModel",
    "AdversarialTraining",
    "AveragedWeights",
    "BestWeights",
    "CatastrophicOverfittingGuard",
    "Checkpoint",
    "Cost",
    "Free",
    "HistoryFile",
    "MART",
    "Objective",
    "PerturbationImages",
    "Progress",
    "RobustAccuracy",
    "StepDecay",
    "TRADES",
    "cost",
    "distribution",
]
