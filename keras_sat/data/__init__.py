"""Loads a TFDS dataset, the embedded dataset or a folder of images as a tf.data.Dataset of (images, labels).

Images are NHWC, uint8 pixels 0..255.
"""

from keras_sat.data._batches import batches
from keras_sat.data._check import Findings, check
from keras_sat.data._extra import Extra, extra
from keras_sat.data.folder import Folder
from keras_sat.data.pipeline import (
    Description,
    class_names,
    describe,
    evaluation_split,
    is_folder,
    load,
    number_held_out,
    overlap,
    preprocessing_of,
    shape_and_classes,
    source,
)
from keras_sat.data.prepared import Prepared, info, names

__all__ = [
    "Description",
    "Extra",
    "Findings",
    "Folder",
    "Prepared",
    "batches",
    "check",
    "class_names",
    "describe",
    "evaluation_split",
    "extra",
    "info",
    "is_folder",
    "load",
    "names",
    "number_held_out",
    "overlap",
    "preprocessing_of",
    "shape_and_classes",
    "source",
]
