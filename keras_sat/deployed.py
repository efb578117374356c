"""Loads an exported network, a SavedModel or a LiteRT file, as a function from images to logits."""

import collections
import json
import os
import threading
import zipfile
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sat import extras, files
from keras_sat.preprocessing import Preprocessing
from keras_sat.typing import Array, Path

__all__ = ["Deployed", "LiteRT", "labels_of", "load", "preprocessing_of"]

LABELS = os.path.join("assets", "labels.txt")
PREPROCESSING = os.path.join("assets", "preprocessing.json")

_SMALLEST = 1e-30  # in place of a probability that float32 rounded to 0, so that its logarithm is finite


class Deployed:
    """A signature of a SavedModel as a function from images to logits. `load` returns it.

    Gradient-based attacks use the gradients of the SavedModel. If it has none (an integer input, a lookup, a quantized
    graph), these attacks raise ValueError or LookupError. `Square` needs only the outputs.

    Args:
        path: the folder of the SavedModel.
        signature: the name of the signature to call. Images must be its only input.
        output: the name of the output that holds the logits; None: see `load`.

    Raises:
        ValueError: if there is no SavedModel, signature or output of that name, or another number of class names than
            of classes.

    Attributes:
        path: the folder.
        name: the folder as well; reports use it as the name of the model.
        takes_integers: whether the input is of an integer type. Pixels are rounded for it.
        has_gradients: True, although single operations of the graph may have no gradient.
        image_size: height and width of the images in pixels, if they are equal and fixed; otherwise None.
        channels: number of channels of the images; None if any number is accepted.
        classes: names of the classes, in the order of the logits; None if unknown.
        preprocessing: the `Preprocessing` that converts files to images for this model; None if unknown.
    """

    has_gradients: bool = True

    def __init__(self, path: str, signature: str, output: str | None) -> None:
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
        self.takes_integers = spec.dtype.is_integer
        self.channels: int | None = spec.shape[3] if spec.shape.rank == 4 else None
        self.classes, self.preprocessing = labels_of(path), preprocessing_of(path)
        self.image_size = _square(self._size)
        self._output = _output_name(path, list(self._function.structured_outputs), output)
        self.name = path
        outputs = self._function.structured_outputs[self._output].shape
        _check_labels(path, self.classes, outputs[-1] if outputs.rank == 2 else None)

    def __call__(self, images: Array) -> tf.Tensor:
        """Returns the logits [batch, classes] of images [batch, height, width, channels]."""
        _check_size(self.path, self._size, images)
        outputs = self._function(**{self._input: self._cast(images)})[self._output]
        return logits_of(outputs) if self._output == "probabilities" else outputs

    def _cast(self, images):
        """Returns images of the input's type. For integers they are rounded, and not wrapped."""
        if not (self._dtype.is_integer and tf.convert_to_tensor(images).dtype.is_floating):
            return tf.cast(images, self._dtype)
        return tf.saturate_cast(tf.round(images), self._dtype)


def _output_name(path, outputs, asked):
    """Returns the name of the output that holds the logits (or the probabilities)."""
    if asked is None:
        candidates = [name for name in ("logits", "probabilities") if name in outputs]
        candidates += outputs if len(outputs) == 1 else []
        if not candidates:
            raise ValueError(f"{path}: say which output holds the logits, output=one of {outputs}.")
        return candidates[0]
    if asked not in outputs:
        raise ValueError(f"{path} has no output {asked!r}; it has {outputs}.")
    return asked


class LiteRT:
    """A LiteRT (TensorFlow Lite) file as a function from images to logits. `load` returns it.

    It has no gradients. `Square` can attack it, and adversarial examples that were made for other networks can be
    tried on it.

    Args:
        path: the file, as `export.export_litert` writes it.

    Raises:
        ValueError: if the file is not a LiteRT file, if "images" is not its only input, or if ai-edge-litert is not
            installed.

    Attributes:
        path, name, has_gradients, image_size, channels, classes, preprocessing: see `Deployed`; has_gradients is False.
    """

    has_gradients: bool = False

    def __init__(self, path: str) -> None:
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
        _check_labels(path, self.classes, self._classes)

    def __call__(self, images: Array) -> tf.Tensor:
        """Returns the logits [batch, classes] of images [batch, height, width, channels]."""
        _check_size(self.path, self._size, images)
        logits = tf.numpy_function(self._logits, [tf.cast(images, tf.float32)], tf.float32, stateful=False)
        return tf.ensure_shape(logits, (images.shape[0], self._classes))

    def _logits(self, images):
        if not len(images):
            return np.zeros((0, self._classes), np.float32)
        with self._lock:
            return self._run(images=images)["logits"]


def load(path: Path, signature: str = "serving_default", output: str | None = None) -> Deployed | LiteRT:
    """Returns a SavedModel or a LiteRT file as a function that attacks, `evaluate` and `audit` accept as a model.

    Args:
        path: the folder of a SavedModel, or the path of a `.tflite` file.
        signature: the name of the SavedModel's signature to call, "serving_default" by default. Images must be its
            only input.
        output: the name of the output that holds the logits. Default: "logits" if there is such an output. Otherwise
            "probabilities", whose logarithm is used: it equals the logits up to a constant, which does not change the
            losses of the attacks. Otherwise the only output.

    Raises:
        ValueError: if there is no SavedModel, signature or output of that name, or no LiteRT file.
    """
    path = files.expanded(path)
    if path.endswith(".tflite"):
        if not os.path.exists(path):
            raise ValueError(f"There is no {path}; export.export_litert writes one.")
        return LiteRT(path)
    return Deployed(path, signature, output)


def model_of(model_or_path: Any) -> Any:
    """Returns `load(path)` for a path, and a model unchanged."""
    return load(os.fspath(model_or_path)) if isinstance(model_or_path, (str, os.PathLike)) else model_or_path


def read(path: str) -> Any:
    """Returns tf.saved_model.load(path), also for a path with brackets or other wildcards.

    Raises:
        ValueError: if the folder holds no SavedModel, or a damaged one.
    """
    try:
        with files.without_wildcards(path) as plain:
            return tf.saved_model.load(plain)
    except (OSError, IndexError, tf.errors.OpError) as error:  # IndexError: the file is incomplete
        raise ValueError(f"{path} is not a SavedModel, or a damaged one: {error}") from error


def labels_of(path: str) -> list[str] | None:
    """Returns the class names of an export, in order; None if it has none.

    They are in assets/labels.txt of a SavedModel's folder, or in the zip archive at the end of a LiteRT file. Names
    that occur more than once, such as ImageNet's two cranes, get their number: "crane (134)".
    """
    text = _asset(path, LABELS)
    if text is None:
        return None
    names = text.rstrip("\n").split("\n")
    count = collections.Counter(names)
    return [name if count[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def _check_labels(path, labels, outputs):
    """Raises ValueError unless there is a label for each output. One output is of two classes."""
    expected = 2 if outputs == 1 else outputs
    if labels is not None and outputs is not None and len(labels) != expected:
        raise ValueError(f"{path} has {len(labels)} class names (labels.txt) for {expected} classes: correct the file.")


def preprocessing_of(path: str) -> Preprocessing | None:
    """Returns the `Preprocessing` of an export; None if it has none.

    Raises:
        ValueError: for a description that cannot be read.
    """
    text = _asset(path, PREPROCESSING)
    try:
        return None if text is None else Preprocessing.of(json.loads(text))
    except ValueError as error:
        raise ValueError(f"{path}: {PREPROCESSING} is damaged: {error}") from error


def _asset(path, name):
    """Returns the text of a file of an export; None if it has none."""
    if os.path.isdir(path):
        file = os.path.join(path, name)
        return _text(file) if os.path.exists(file) else None
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        base = os.path.basename(name)
        return archive.read(base).decode("utf-8-sig") if base in archive.namelist() else None


def _text(path):
    with open(path, encoding="utf-8-sig") as file:  # editors may begin a file with a byte order mark
        return file.read()


def _square(size):
    """Returns the side length of square images; None if height and width differ or are not fixed."""
    return size[0] if size.rank == 2 and size[0] == size[1] else None


def _check_size(path, size, images):
    if not size.is_compatible_with(images.shape[1:3]):
        taken, received = (" x ".join(map(str, sides)) for sides in (size, images.shape[1:3]))
        raise ValueError(f"{path} takes images of {taken} pixels. Received: {received}. Resize them.")


def logits_of(probabilities: tf.Tensor) -> tf.Tensor:
    """Returns log(p) of probabilities p [batch, classes]: the logits up to a constant for each image.

    With one output, p [batch, 1] is the probability of class 1, and the result is log(p / (1 - p)), one logit.
    """
    if probabilities.shape[-1] == 1:
        return log_odds(probabilities)
    return _log(tf.cast(probabilities, tf.float32))


def log_odds(probabilities: tf.Tensor) -> tf.Tensor:
    """Returns log(p / (1 - p)), the inverse of the sigmoid."""
    probabilities = tf.cast(probabilities, tf.float32)
    return _log(probabilities) - _log(1 - probabilities)


def _log(probabilities):
    return tf.math.log(tf.maximum(probabilities, _SMALLEST))
