"""A training run: its configuration, its training and its folder, and what is done with a trained network by path.

`keras-sat train` writes a folder by `train`; `load` reads it, and `export` makes a SavedModel of it.
"""

from keras_sat.run.configuration import BALLS, OBJECTIVES, Run, fields
from keras_sat.run.folder import changes, check_export, checkpoints, export, is_export, load, with_data
from keras_sat.run.predictor import Predictor, image_files, open_predictor
from keras_sat.run.recipes import RECIPES, Recipe
from keras_sat.run.subject import Subject, open_export, open_run, open_weights
from keras_sat.run.training import train

__all__ = [
    "BALLS",
    "OBJECTIVES",
    "Predictor",
    "RECIPES",
    "Recipe",
    "Run",
    "Subject",
    "changes",
    "check_export",
    "checkpoints",
    "export",
    "fields",
    "image_files",
    "is_export",
    "load",
    "open_export",
    "open_predictor",
    "open_run",
    "open_weights",
    "train",
    "with_data",
]
