"""How a result was computed: model, weights and software versions, for reports, robustness cards and runs."""

import hashlib
import pathlib
import platform
from typing import Any

import keras
import tensorflow as tf

from keras_sat import deployed, files
from keras_sat.version import __version__


def facts(model: Any) -> dict[str, Any]:
    """Returns the model's name, the sha256 of its weights, and the versions of the software, as plain values.

    Args:
        model: a Keras model, a model that `deployed.load` returned, or a function.
    """
    return {"model": name(model), "weights_sha256": weights_sha256(model), "versions": versions()}


def name(model: Any) -> str:
    """Returns the name of a model or of a function."""
    return getattr(model, "name", getattr(model, "__name__", type(model).__name__))


def weights_sha256(model: Any) -> str | None:
    """Returns the sha256 of a Keras model's weights, or of the files of an export; None for anything else."""
    digest = hashlib.sha256()
    if isinstance(model, keras.Model):
        for weight in model.weights:
            digest.update(keras.ops.convert_to_numpy(weight).tobytes())
    elif isinstance(model, deployed.LiteRT):
        return files.sha256(model.path)
    elif isinstance(model, deployed.Deployed):
        for path in sorted(str(path) for path in pathlib.Path(model.path).rglob("*") if path.is_file()):
            with open(path, "rb") as file:
                digest.update(file.read())
    else:
        return None
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Returns the versions of this package, TensorFlow, Keras and Python."""
    return {
        "keras_sat": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
    }
