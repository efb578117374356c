"""Attacks what is deployed: a SavedModel or a LiteRT file, through its gradients or through its outputs alone."""

import json
import os
import threading
import zipfile

import numpy as np
import tensorflow as tf

from keras_sat import extras, files
from keras_sat.preprocessing import Preprocessing

LABELS = os.path.join("assets", "labels.txt")
PREPROCESSING = os.path.join("assets", "preprocessing.json")

_SMALLEST = 1e-30  # a probability that float32 rounded to 0 has a logarithm all the same


class Deployed:
    """A signature of a SavedModel as a function from images to logits.

    Gradient-based attacks go through the SavedModel's own gradients; where it has none (an integer input, a lookup, a
    quantized graph), they say so, and `Square` attacks it through its outputs alone.
    """

    has_gradients = True

    def __init__(self, path, signature, output):
        self.path, self._loaded = path, read(path)
        signatures = self._loaded.signatures
        if signature not in signatures:
            raise ValueError(f"{path} has no signature {signature!r}; it has {sorted(signatures)}.")
        self._function = signatures[signature]
        names = list(self._function.structured_input_signature[1])
        if len(names) != 1:
            raise ValueError(f"{path}: signature {signature!r} must take images alone. It takes: {names}")
        self._input = names[0]
        spec = self._function.structured_input_signature[1][self._input]
        self._dtype, self._size = spec.dtype, spec.shape[1:3]
        self.channels = spec.shape[3] if spec.shape.rank == 4 else None
        self.classes, self.preprocessing = labels_of(path), preprocessing_of(path)
        self.image_size = _square(self._size)
        outputs = list(self._function.structured_outputs)
        known = [name for name in ("logits", "probabilities") if name in outputs]
        known += outputs if len(outputs) == 1 else []
        if output is None and not known:
            raise ValueError(f"{path}: say which output holds the logits, output=one of {outputs}.")
        self._output = output or known[0]
        if self._output not in outputs:
            raise ValueError(f"{path} has no output {self._output!r}; it has {outputs}.")
        self.name = path

    def __call__(self, images):
        """Returns the logits [batch, classes] of images [batch, height, width, channels]."""
        _check_size(self.path, self._size, images)
        outputs = self._function(**{self._input: tf.cast(images, self._dtype)})[self._output]
        if self._output == "probabilities":
            return logits_of(outputs)
        return outputs


class LiteRT:
    """A LiteRT (TensorFlow Lite) file, as `export.export_litert` writes it, as a function from images to logits.

    It has no gradients: `Square` attacks it, and examples transferred from other networks.
    """

    has_gradients = False

    def __init__(self, path):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ValueError(f"{path} is run by ai-edge-litert: {extras.install('litert')}") from error
        try:
            interpreter = Interpreter(path)
        except ValueError as error:
            raise ValueError(f"{path} is not a LiteRT file: {error}") from error
        self.path = self.name = path
        self._lock = threading.Lock()  # an interpreter has one set of buffers
        self._run = interpreter.get_signature_runner("serving_default")
        inputs = self._run.get_input_details()
        if list(inputs) != ["images"]:
            raise ValueError(f"{path} must take images alone, by this name. It takes: {list(inputs)}")
        shape = tf.TensorShape([None if length < 0 else length for length in inputs["images"]["shape_signature"]])
        self._size = shape[1:3]
        self.image_size, self.channels = _square(self._size), shape[3]
        self.classes, self.preprocessing = labels_of(path), preprocessing_of(path)
        self._classes = self._run.get_output_details()["logits"]["shape"][-1]

    def __call__(self, images):
        """Returns the logits [batch, classes] of images [batch, height, width, channels]."""
        _check_size(self.path, self._size, images)
        logits = tf.numpy_function(self._logits, [tf.cast(images, tf.float32)], tf.float32, stateful=False)
        return tf.ensure_shape(logits, (images.shape[0], self._classes))

    def _logits(self, images):
        if not len(images):
            return np.zeros((0, self._classes), np.float32)
        with self._lock:
            return self._run(images=images)["logits"]


def labels_of(path: str) -> list[str] | None:
    """Returns the names of an export's classes, in order; None where it has none.

    They lie beside a SavedModel, in assets/labels.txt, or at the end of a LiteRT file, which is an archive too.
    """
    text = _asset(path, LABELS)
    return None if text is None else text.rstrip("\n").split("\n")


def preprocessing_of(path: str) -> Preprocessing | None:
    """Returns the `Preprocessing` of an export; None where it has none.

    Raises:
        ValueError: for a description that cannot be read.
    """
    text = _asset(path, PREPROCESSING)
    try:
        return None if text is None else Preprocessing.of(json.loads(text))
    except ValueError as error:
        raise ValueError(f"{path}: {PREPROCESSING} is damaged: {error}") from error


def _asset(path, name):
    """Returns the text of a file of an export; None where it has none."""
    if os.path.isdir(path):
        file = os.path.join(path, name)
        return _text(file) if os.path.exists(file) else None
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        base = os.path.basename(name)
        return archive.read(base).decode("utf-8-sig") if base in archive.namelist() else None


def _text(path):
    with open(path, encoding="utf-8-sig") as file:  # an editor may have put a mark at its beginning
        return file.read()


def _square(size):
    """Returns height and width as one number; None if they are free, or differ."""
    return size[0] if size.rank == 2 and size[0] == size[1] else None


def _check_size(path, size, images):
    if not size.is_compatible_with(images.shape[1:3]):
        taken, received = (" x ".join(map(str, sides)) for sides in (size, images.shape[1:3]))
        raise ValueError(f"{path} takes images of {taken} pixels. Received: {received}. Resize them.")


def logits_of(probabilities):
    """Returns the logarithms of probabilities: logits but for a constant, which no loss of the attacks sees.

    Of one probability p, that of class 1, it returns log(p / (1 - p)): one logit.
    """
    if probabilities.shape[-1] == 1:
        return log_odds(probabilities)
    return _log(tf.cast(probabilities, tf.float32))


def log_odds(probabilities):
    """Returns log(p / (1 - p)), what a sigmoid was given."""
    probabilities = tf.cast(probabilities, tf.float32)
    return _log(probabilities) - _log(1 - probabilities)


def _log(probabilities):
    return tf.math.log(tf.maximum(probabilities, _SMALLEST))


def load(path, signature="serving_default", output=None):
    """Returns a SavedModel or a LiteRT file as a function that attacks, `evaluate` and `audit` take as a model.

    Args:
        path: the folder of a SavedModel, or a FILE.tflite.
        signature: the one to call; it takes images alone.
        output: the one that holds logits; default: "logits", else "probabilities", of which the logarithm is taken
            (logits but for a constant, which no loss of the attacks sees), else the only one.

    Raises:
        ValueError: if there is no SavedModel, signature or output of that name, or no LiteRT file.
    """
    path = files.expanded(path)
    if path.endswith(".tflite"):
        if not os.path.exists(path):
            raise ValueError(f"There is no {path}; export.export_litert writes one.")
        return LiteRT(path)
    return Deployed(path, signature, output)


def model_of(what):
    """Returns what `load` makes of a path; anything else as it is."""
    return load(os.fspath(what)) if isinstance(what, (str, os.PathLike)) else what


def read(path):
    """Returns tf.saved_model.load(path), of any path.

    Raises:
        ValueError: if it holds no SavedModel, or a damaged one.
    """
    try:
        with files.without_wildcards(path) as plain:
            return tf.saved_model.load(plain)
    except (OSError, IndexError, tf.errors.OpError) as error:  # an IndexError where a file is cut short
        raise ValueError(f"{path} is not a SavedModel, or a damaged one: {error}") from error
