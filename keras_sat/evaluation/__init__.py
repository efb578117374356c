"""Clean and robust accuracy, certificates, an audit for masked gradients, comparisons of exports, and reports."""

from keras_sat.evaluation import corruptions, robustbench
from keras_sat.evaluation._audit import AuditReport, audit
from keras_sat.evaluation._certify import certify
from keras_sat.evaluation._compare import Comparison, compare
from keras_sat.evaluation._evaluate import evaluate, sweep
from keras_sat.evaluation.certification import CertificationReport
from keras_sat.evaluation.corrupted_files import corrupted_datasets, evaluate_corrupted
from keras_sat.evaluation.corruptions import Corruption
from keras_sat.evaluation.report import AttackResult, RobustnessReport, from_json, merge

__all__ = [
    "AttackResult",
    "AuditReport",
    "CertificationReport",
    "Comparison",
    "Corruption",
    "RobustnessReport",
    "audit",
    "certify",
    "compare",
    "corrupted_datasets",
    "corruptions",
    "evaluate",
    "evaluate_corrupted",
    "from_json",
    "merge",
    "robustbench",
    "sweep",
]
