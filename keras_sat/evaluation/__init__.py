"""Robust accuracy, the audit of it, and the reports."""

from keras_sat.evaluation import corruptions, deployed
from keras_sat.evaluation.audit import AuditReport, audit
from keras_sat.evaluation.compare import Comparison, compare
from keras_sat.evaluation.corruptions import Corruption
from keras_sat.evaluation.evaluate import evaluate, sweep
from keras_sat.evaluation.report import AttackResult, RobustnessReport, from_json, merge

__all__ = [
    "AttackResult",
    "AuditReport",
    "Comparison",
    "Corruption",
    "RobustnessReport",
    "audit",
    "compare",
    "corruptions",
    "deployed",
    "evaluate",
    "from_json",
    "merge",
    "sweep",
]
