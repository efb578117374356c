"""Checkpoints of PyTorch, read and written without PyTorch."""

from keras_sat.models.pytorch.conversion import build, load, save

__all__ = ["build", "load", "save"]
