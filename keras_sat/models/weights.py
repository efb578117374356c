"""Weights for the builders: what `weights=` means."""

import os
import warnings


def load(model, weights):
    """Loads `weights` into `model`: None leaves it as it is, a path of a `.weights.h5` file is read.

    Raises:
        ValueError: if there is no such file, or if it is damaged or of another network; the model is then not usable.
    """
    if weights is None:
        return
    path = os.fspath(weights)
    if not path.endswith(".weights.h5"):
        raise ValueError(f"weights must be None or the path of a .weights.h5 file. Received: {weights!r}")
    if not os.path.isfile(path):
        raise ValueError(f"There is no weights file at {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras only warns of layers that the file does not have
            model.load_weights(path)
    except (ValueError, OSError, KeyError, UserWarning) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} is damaged or does not fit {model.name}: was it saved with the same network, activation, classes "
            f"and channels? ({reason})"
        ) from error
