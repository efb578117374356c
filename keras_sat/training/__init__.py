"""Adversarial training with Keras' own compile and fit."""

from keras_sat.training import distribution
from keras_sat.training._cost import Cost, cost
from keras_sat.training.adversarial import AdversarialModel
from keras_sat.training.averaging import with_ema_warmup
from keras_sat.training.best_weights import BestWeights
from keras_sat.training.callbacks import (
    AveragedWeights,
    CatastrophicOverfittingGuard,
    PerturbationImages,
    RobustAccuracy,
)
from keras_sat.training.checkpoint import Checkpoint
from keras_sat.training.gradient_alignment import GradAlign
from keras_sat.training.objectives import MART, TRADES, AdversarialTraining, Free, Objective
from keras_sat.training.perturbation import AWP
from keras_sat.training.progress import HistoryFile, Progress
from keras_sat.training.schedules import CycledMomentum, OneCycle, StepDecay, Triangle
from keras_sat.training.torch_sgd import TorchSGD
from keras_sat.training.weight_decay import decay_weights

__all__ = [
    "AWP",
    "AdversarialModel",
    "AdversarialTraining",
    "AveragedWeights",
    "BestWeights",
    "CatastrophicOverfittingGuard",
    "Checkpoint",
    "Cost",
    "CycledMomentum",
    "Free",
    "GradAlign",
    "HistoryFile",
    "MART",
    "Objective",
    "OneCycle",
    "PerturbationImages",
    "Progress",
    "RobustAccuracy",
    "StepDecay",
    "TRADES",
    "TorchSGD",
    "Triangle",
    "cost",
    "decay_weights",
    "distribution",
    "with_ema_warmup",
]
