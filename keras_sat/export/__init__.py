"""Exports networks as SavedModels and int8 LiteRT files, and loads exported SavedModels for fine-tuning."""

from keras_sat.export._verify import verify
from keras_sat.export.fine_tuning import load_for_fine_tuning
from keras_sat.export.litert import export_litert
from keras_sat.export.saved_model import SIGNATURES, export_saved_model

__all__ = ["SIGNATURES", "export_litert", "export_saved_model", "load_for_fine_tuning", "verify"]
