"""Reads the files of CIFAR-10-C, CIFAR-100-C and ImageNet-C, and evaluates networks on them."""

import os
import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sat import data, deployed, files
from keras_sat.attacks import gradients
from keras_sat.attacks.threats import PIXELS
from keras_sat.data import imagenet, reading
from keras_sat.evaluation._evaluate import evaluate
from keras_sat.evaluation.corruptions import NAMES
from keras_sat.evaluation.report import AttackResult, RobustnessReport
from keras_sat.preprocessing import Preprocessing
from keras_sat.typing import Dataset, LogitsFunction, Path

SEVERITIES = range(1, 6)


def corrupted_datasets(
    folder: Path, preprocessing: Preprocessing | None = None, *, batch_size: int = 100, robustbench: bool = False
) -> dict[tuple[str, int], Dataset]:
    """Returns {(corruption, severity): dataset} of the fifteen corruptions and five severities of a benchmark.

    Args:
        folder: CIFAR-10-C or CIFAR-100-C: NAME.npy, uint8 [5 n, height, width, 3], the images of severity 1 first, and
            labels.npy [5 n]. Or ImageNet-C: `NAME/SEVERITY/CLASS/*.JPEG`, all corruptions in one folder; the labels
            are the places of the classes in alphabetical order.
        preprocessing: of ImageNet-C's files. Default: RobustBench's for them, `Preprocessing(224, 224, 3, "Res224")`.
        batch_size: number of ImageNet-C's images in a batch.
        robustbench: of ImageNet-C, whether to take RobustBench's 5,000 images alone.

    Returns:
        Datasets for `evaluate`: pairs of arrays, read from the disk when they are needed, or tf.data.Datasets.

    Raises:
        ValueError: if files are missing, damaged, or do not fit together.
    """
    folder = files.expanded(folder)
    arrays = os.path.join(folder, "labels.npy")
    if not os.path.exists(arrays) and not any(os.path.isdir(os.path.join(folder, name)) for name in NAMES):
        raise ValueError(f"{folder} holds neither labels.npy (CIFAR-10-C) nor folders such as fog/3 (ImageNet-C).")
    if os.path.exists(arrays):
        if robustbench or preprocessing:
            raise ValueError("preprocessing and robustbench are for ImageNet-C: leave them out.")
        return _arrays(folder)
    how = preprocessing or Preprocessing(224, 224, 3, "Res224")
    return _folders(folder, how, batch_size, frozenset(imagenet.names()) if robustbench else None)


def evaluate_corrupted(
    model: LogitsFunction | Path,
    datasets: dict[tuple[str, int], Dataset],
    *,
    bounds: tuple[float, float] = PIXELS,
    batch_size: int = 128,
    progress: bool = False,
    context: dict[str, Any] | None = None,
) -> RobustnessReport:
    """Returns a report with a row for each corruption and severity, which `corruptions.mce` and `mean_accuracy` read.

    The row "clean" is over all corrupted images together. A warning says if no image has the network's last class: in
    ImageNet-C's folders, a class that is missing shifts the labels of those after it.

    Args:
        model: see `evaluate`.
        datasets: what `corrupted_datasets` returns, or a part of it: pixels in 0..255.
        bounds: smallest and largest value of a pixel that the network takes. The pixels are scaled to it. Default:
            (0, 255).
        batch_size, progress, context: see `evaluate`.
    """
    rows, report, network, largest = [], None, deployed.model_of(model), -1
    for (name, severity), dataset in datasets.items():
        scaled = _in_bounds(dataset, bounds)
        report = evaluate(network, scaled, {}, batch_size=batch_size, progress=progress, context=context)
        clean, settings = report["clean"], {"corruption": name, "severity": severity, "files": True}
        row = (f"{name}-{severity}", clean.n, clean.correct, clean.seconds, settings)
        rows.append(AttackResult.of(*row, not_finite=clean.not_finite))
        largest = max(largest, *report.examples["label"])
    if report is None:
        raise ValueError("There is no dataset to evaluate on.")
    _check_classes(network, next(iter(datasets.values())), largest)
    n, correct, seconds, not_finite = (
        sum(getattr(row, field) for row in rows) for field in ("n", "correct", "seconds", "not_finite")
    )
    together = AttackResult.of("clean", n, correct, seconds, {}, not_finite=not_finite)
    return RobustnessReport([together, *rows], report.context)


def _in_bounds(dataset, bounds):
    """Returns a dataset of pixels in 0..255 with the pixels scaled to the bounds."""
    low, high = bounds
    if (low, high) == PIXELS:
        return dataset
    if isinstance(dataset, tf.data.Dataset):
        return dataset.map(lambda images, labels: (low + tf.cast(images, tf.float32) / 255 * (high - low), labels))
    images, labels = dataset
    return low + np.asarray(images, np.float32) / 255 * (high - low), labels


def _check_classes(network, dataset, largest):
    """Warns if the largest label is not that of the network's last class."""
    images, _ = next(data.batches(dataset, 1))
    classes = gradients.logits(network, tf.cast(images[:1], tf.float32)).shape[-1]
    if largest + 1 != classes:
        warnings.warn(
            f"The largest label is {largest}, and the network has {classes} classes: if class folders are missing, the "
            "labels of the others are wrong.",
            stacklevel=3,
        )


def _arrays(folder):
    """Returns the datasets of CIFAR-10-C's files."""
    labels, result = _array(folder, "labels"), {}
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % 5:
        raise ValueError(
            f"{folder}/labels.npy has shape {labels.shape} of {labels.dtype}: integers [5 n] were expected."
        )
    number = len(labels) // 5
    for name in NAMES:
        images = _array(folder, name)
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"{folder}/{name}.npy has shape {images.shape} of {images.dtype}: uint8 [{len(labels)}, height, width, "
                "channels] was expected."
            )
        for severity in SEVERITIES:
            part = slice((severity - 1) * number, severity * number)
            result[name, severity] = (images[part], np.asarray(labels[part], np.int64))
    return result


def _array(folder, name):
    path = os.path.join(folder, f"{name}.npy")
    try:
        return np.load(path, mmap_mode="r")
    except OSError as error:
        raise ValueError(f"{path} is missing, or cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged, or no array: {error}") from error


def _folders(folder, how, batch_size, listed):
    """Returns the datasets of ImageNet-C's files."""
    paths = {(name, severity): _paths(folder, name, severity, listed) for name in NAMES for severity in SEVERITIES}
    expected = [os.path.relpath(path, folder).split(os.sep, 2)[2] for path, _ in paths[NAMES[0], 1]]
    for (name, severity), found in paths.items():
        own = [os.path.relpath(path, folder).split(os.sep, 2)[2] for path, _ in found]
        if own != expected:
            raise ValueError(
                f"{folder}/{name}/{severity} has {len(own)} images, {folder}/{NAMES[0]}/1 has {len(expected)}: the "
                "same images were expected."
            )
    if listed and len(expected) != len(listed):
        raise ValueError(f"{folder} lacks {len(listed) - len(expected)} of RobustBench's {len(listed)} images.")

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((), tf.string)])  # traced once for all datasets
    def pixels(path):
        return how(tf.io.read_file(path))

    def batches(found):
        dataset = tf.data.Dataset.from_tensor_slices(tuple(map(list, zip(*found))))
        return (
            dataset.map(lambda path, label: (pixels(path), label), tf.data.AUTOTUNE)
            .batch(batch_size)
            .prefetch(tf.data.AUTOTUNE)
        )

    return {key: batches(found) for key, found in paths.items()}


def _paths(folder, name, severity, listed):
    """Returns [(path, label), ...] of the images of a corruption and a severity, sorted."""
    part = os.path.join(folder, name, str(severity))
    if not os.path.isdir(part):
        raise ValueError(
            f"{part} is missing: {folder}/NAME/SEVERITY/CLASS/*.JPEG was expected, with all 15 corruptions."
        )
    classes = sorted(entry.name for entry in os.scandir(part) if entry.is_dir() and not reading.is_hidden(entry.name))
    found = [
        (os.path.join(part, one, file), label)
        for label, one in enumerate(classes)
        for file in sorted(os.listdir(os.path.join(part, one)))
        if file.lower().endswith(reading.KINDS) and (listed is None or os.path.splitext(file)[0] in listed)
    ]
    if not found:
        raise ValueError(f"{part} has no images.")
    return found
