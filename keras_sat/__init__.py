"""Smooth Adversarial Training (Xie et al. 2020, arXiv:2006.14536) for TensorFlow 2 and Keras 3."""

import keras as _keras

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"keras_sat needs Keras' TensorFlow backend: set KERAS_BACKEND=tensorflow. Received: {_keras.backend.backend()}"
    )

from keras_sat import (  # noqa: E402
    activations,
    attacks,
    data,
    deployed,
    evaluation,
    export,
    losses,
    models,
    preprocessing,
    training,
)
from keras_sat.version import __version__  # noqa: E402

__all__ = [
    "__version__",
    "activations",
    "attacks",
    "data",
    "deployed",
    "evaluation",
    "export",
    "losses",
    "models",
    "preprocessing",
    "training",
]
