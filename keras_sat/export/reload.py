"""Calls the signatures of a SavedModel: python reload.py SAVED_MODEL INPUTS.npz OUTPUTS.npz.

The names of the arrays are signature/input and signature/output. `verify` runs this file as a script, in a process of
its own, so that only TensorFlow and NumPy are imported.
"""

import sys
from typing import Any


def main(path: str, inputs_file: str, outputs_file: str) -> None:
    """Calls each signature with its inputs, and writes its outputs."""
    sys.modules["keras"] = None  # type: ignore[assignment]  # otherwise TensorFlow imports it if it is installed
    import numpy as np
    import tensorflow as tf

    signatures = tf.saved_model.load(path).signatures
    inputs: dict[str, dict] = {}
    outputs: dict[str, Any] = {}
    with np.load(inputs_file, allow_pickle=True) as arrays:  # pickle is for arrays of bytes; the caller wrote the file
        for key in arrays.files:
            name, parameter = key.split("/")
            inputs.setdefault(name, {})[parameter] = tf.constant(arrays[key])
    for name, given in inputs.items():
        outputs |= {f"{name}/{output}": value.numpy() for output, value in signatures[name](**given).items()}
    np.savez(outputs_file, **outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
