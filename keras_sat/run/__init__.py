"""Training runs: configuration, training and folder, and functions that open trained networks by their paths.

`train` writes the folder of a run (`keras-sat train` calls it), `load` reads it, and `export` writes a SavedModel.
"""

from keras_sat.run.configuration import BALLS, OBJECTIVES, Run, fields
from keras_sat.run.folder import changes, check_export, checkpoints, export, is_export, load, read_settings, with_data
from keras_sat.run.predictor import Attacked, Predictor, image_files, open_predictor, write_png, written_files
from keras_sat.run.pretrained import Pretrained, find, pretrained_network, says_network
from keras_sat.run.recipes import RECIPES, Recipe
from keras_sat.run.subject import Subject, check_attacks, open_export, open_run, open_weights
from keras_sat.run.training import cost, train

__all__ = [
    "Attacked",
    "BALLS",
    "OBJECTIVES",
    "Predictor",
    "Pretrained",
    "RECIPES",
    "Recipe",
    "Run",
    "Subject",
    "changes",
    "check_attacks",
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
    "pretrained_network",
    "read_settings",
    "says_network",
    "train",
    "with_data",
    "write_png",
    "written_files",
]
