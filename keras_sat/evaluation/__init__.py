"""Robust accuracy, and the report of it."""

from keras_sat.evaluation.evaluate import evaluate
from keras_sat.evaluation.report import AttackResult, RobustnessReport

__all__ = ["AttackResult", "RobustnessReport", "evaluate"]
