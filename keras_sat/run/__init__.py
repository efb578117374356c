"""Training runs: configuration, training and folder, and functions that open trained networks by their paths.

`train` writes the folder of a run (`keras-sat train` calls it), `load` reads it, and `export` writes a SavedModel.
"""

from keras_sat.run.configuration import BALLS, OBJECTIVES, Run, fields
from keras_sat.run.folder import changes, check_export, checkpoints, export, is_export, load, read_settings, with_data
from keras_sat.run.predictor import Predictor, image_files, open_predictor
from keras_sat.run.pretrained import Phase, Pretrained, find, phases, pretrained_network
from keras_sat.run.recipes import RECIPES, Recipe
from keras_sat.run.subject import Subject, open_export, open_run, open_weights
from keras_sat.run.training import cost, train

__all__ = [
    "BALLS",
    "OBJECTIVES",
    "Phase",
    "Predictor",
    "Pretrained",
    "RECIPES",
    "Recipe",
    "Run",
    "Subject",
    "changes",
    "check_export",
    "checkpoints",
    "cost",
    "export",
    "fields",
    "find",
    "image_files",
    "is_export",
    "load",
    "open_export",
    "open_predictor",
    "open_run",
    "open_weights",
    "phases",
    "pretrained_network",
    "read_settings",
    "train",
    "with_data",
]
