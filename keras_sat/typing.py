"""Types that public functions share."""

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

Array: TypeAlias = np.ndarray | tf.Tensor  # what TensorFlow converts to a tensor
LogitsFunction: TypeAlias = Callable[[Any], Any]  # images [batch, height, width, channels] -> logits [batch, classes]
LossFunction: TypeAlias = Callable[[Any, Any], Any]  # labels [batch], logits [batch, classes] -> losses [batch]
Dataset: TypeAlias = Iterable[Any]  # a tf.data.Dataset of (images, labels), a list of batches, or a pair of arrays
Path: TypeAlias = str | os.PathLike[str]
