"""Calls the signatures of a SavedModel in a process of its own: python reload.py SAVED_MODEL INPUTS.npz OUTPUTS.npz.

The arrays are named signature/input and signature/output. It is run as a script, by its path, so that nothing but
TensorFlow and NumPy is imported.
"""

import sys


def main(path, asked, answered):
    sys.modules["keras"] = None  # TensorFlow would import it where it can
    import numpy as np
    import tensorflow as tf

    signatures, inputs, outputs = tf.saved_model.load(path).signatures, {}, {}
    with np.load(asked, allow_pickle=True) as arrays:  # bytes are objects; the file is the caller's own
        for key in arrays.files:
            name, parameter = key.split("/")
            inputs.setdefault(name, {})[parameter] = tf.constant(arrays[key])
    for name, given in inputs.items():
        outputs |= {f"{name}/{output}": value.numpy() for output, value in signatures[name](**given).items()}
    np.savez(answered, **outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
