"""SavedModels out, SavedModels in again, and int8 for small devices."""

from keras_sat.export.fine_tuning import load_for_fine_tuning
from keras_sat.export.litert import export_litert
from keras_sat.export.saved_model import SIGNATURES, export_saved_model
from keras_sat.export.verify import verify

__all__ = ["SIGNATURES", "export_litert", "export_saved_model", "load_for_fine_tuning", "verify"]
