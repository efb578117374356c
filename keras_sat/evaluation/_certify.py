"""Certifies a network by randomised smoothing: `certify`."""

import json
import math
import numbers
import os
import time
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sat import deployed, files, losses
from keras_sat.attacks import gradients, randomness, threats, validation
from keras_sat.evaluation import identity, report
from keras_sat.evaluation.certification import CertificationReport
from keras_sat.evaluation.examples import Examples, digests_of
from keras_sat.lines import Line, duration
from keras_sat.models import classifier
from keras_sat.typing import Dataset, LogitsFunction, Path

GROUP = 20  # noisy images that one seed draws: with a seed for each, drawing would take longer on a GPU
SAVE_EVERY = 5.0  # seconds


def certify(
    model: LogitsFunction | Path,
    dataset: Dataset,
    sigma: float,
    *,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    bounds: tuple[float, float] = threats.PIXELS,
    seed: int = 0,
    batch_size: int = 400,
    progress: bool = True,
    state: Path | None = None,
    shard: tuple[int, int] = (0, 1),
    context: dict[str, Any] | None = None,
) -> CertificationReport:
    """Certifies the predictions of a smoothed classifier (Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918).

    The smoothed classifier returns the class that the network most likely returns for the image with Gaussian noise.
    For each image, `n0` noisy images select a class, and `n` others bound its probability from below. The bound p gives
    the radius `sigma Phi^-1(p)`, within which the L2 norm of no perturbation changes the class of the smoothed
    classifier. Where p is not above 1/2, the smoothed classifier abstains, and the image counts as misclassified.

    The certificate is of the smoothed classifier, not of the network, which should be trained under the same noise:
    `AdversarialModel(model, GaussianNoise(sigma))`. The noise is not clipped to the bounds, as in the paper: the
    certificate holds for unclipped noise only, so the network sees pixels outside 0..255. A noisy image for which a
    logit is not finite counts for no class. The network itself is called, in inference mode and without a copy. Each
    image costs n0 + n forward passes.

    Every image has its own random seed, which depends on `seed` and on its index in the dataset. So its noise depends
    neither on the batch size, nor on shards, nor on an interruption.

    Args:
        model: see `evaluate`. Probabilities may be in place of logits, because only the largest one counts.
        dataset: see `evaluate`.
        sigma: standard deviation of the noise, > 0, in the images' unit: pixels 0..255. The paper's 0.25, 0.5 and 1.0
            are for images in 0..1: 63.75, 127.5 and 255 here.
        n0: number of noisy images that select the class, >= 1. Default: 100, as in the paper.
        n: number of noisy images that bound its probability, >= 1. Default: 100,000, as in the paper.
        alpha: probability that the radius of an image is too large, between 0 and 1. Default: 0.001, as in the paper.
        bounds: smallest and largest value of a pixel. The images are checked against it. Default: (0, 255).
        seed: the same seed gives the same results. Default: 0.
        batch_size: number of noisy images in a batch, rounded down to a multiple of 20, and at least 20. Default: 400.
        progress: whether to show on stdout what is done, and where a certification with a `state` continues.
        state: path of a file to which the counts so far are written every five seconds. If it exists, the certification
            continues from it. Default: no file.
        shard: (k, n) certifies only the k-th of n parts, see `evaluate`. `CertificationReport.merge` joins the reports.
        context: a dict of plain values to add to the report's context, such as {"dataset": "cifar10", "split": "test"}.

    Returns:
        A `CertificationReport`.

    Raises:
        ValueError: for a sigma, n0, n, alpha or bounds out of range; images that are not finite or outside the bounds,
            or in 0..1 although the bounds are 0..255; labels that are not class numbers; a dataset that is empty or
            has changed since the state was written; or the state of another certification.
    """
    settings = _checked(sigma, n0, n, alpha, bounds)
    shown = _Progress(progress)
    given, network = report.check_given(context), deployed.model_of(model)
    if isinstance(network, keras.Model):
        classifier.check_interface(network)
    examples = Examples(dataset, batch_size, shard)
    classes, shape = _first(examples, network, settings["bounds"])
    facts = report.context(network, int(seed)) | {identity.LOGITS: identity.of({"model": network}, shape)}
    counts = _Counts(state, {**settings, "shard": list(shard), **facts})
    votes = _Votes(network, settings, int(seed), batch_size)
    shown.resume(counts)
    place = 0
    for index, images, labels in examples.read():
        losses.check_range(labels, classes)
        _check_range(images, settings["bounds"])
        for number, label, digest, image in zip(index.tolist(), labels.tolist(), digests_of(images).tolist(), images):
            _certify_one(votes, counts, shown, place, (number, label, digest), image)
            place += 1
    shown.end(place)
    if place < len(counts.rows):
        raise ValueError(_CHANGED)
    counts.save()
    facts |= {identity.DATASET: examples.checksum} if shard[1] > 1 else {}
    return CertificationReport.of(settings, facts | given, counts.rows)


_CHANGED = "The dataset has changed since the state was written: it must be the same each time."


class _Progress:
    """Shows on stdout how many images are certified, and how long an image takes."""

    def __init__(self, enabled: bool) -> None:
        self._line = Line(enabled=enabled)
        self._line.show("Compiling the network for noisy images (up to a minute) ...", is_due=True)
        self._before, self._start = 0, time.monotonic()  # images that were certified before, and when others began

    def resume(self, counts: "_Counts") -> None:
        """Says where a certification continues. Says nothing if it is new."""
        self._before, self._start = len(counts.rows), time.monotonic()
        if counts.rows or counts.done:
            self._line.write(
                f"Continuing an interrupted certification: {len(counts.rows)} images certified, and {counts.done} "
                "noisy images of the next one classified."
            )

    def update(self, images: int, done: int, total: int) -> None:
        """Shows the number of images that are certified, and how many of the noisy images of the next one are done."""
        self._line.show(lambda: f"{self._text(images)}; the next one: {done} of {total} noisy images")

    def end(self, images: int) -> None:
        """Shows the number of images that are certified, in a line that stays."""
        self._line.write(self._text(images))

    def _text(self, images):
        seconds = (time.monotonic() - self._start) / max(1, images - self._before)
        has_any = images > self._before
        return f"{images} images certified" + (f", {duration(seconds)} an image" if has_any and seconds >= 1 else "")


def _certify_one(votes, counts, shown, place, example, image):
    """Counts the votes of an image that the state does not have yet, and adds them to the state.

    `example` is its index, its label, and the digest of its pixels.
    """
    if not counts.is_known(place, example):
        raise ValueError(_CHANGED)
    if place == len(counts.rows):
        total = votes.n0 + votes.n
        while counts.done < total:
            votes.count(image, example[0], counts)
            counts.example = list(example)
            shown.update(place, counts.done, total)
            counts.save_now_and_then()
        counts.finish()


class _Votes:
    """Classifies noisy images, and counts the classes."""

    def __init__(self, model: LogitsFunction, settings: dict[str, Any], seed: int, batch_size: int) -> None:
        self.n0, self.n, self._sigma, self._seed = settings["n0"], settings["n"], settings["sigma"], seed
        self._groups = max(1, batch_size // GROUP)
        self._model = model
        self._predict = tf.function(self._predicted, autograph=False, reduce_retracing=True)

    def count(self, image: np.ndarray, index: int, counts: "_Counts") -> None:
        """Adds a batch of votes for an image to the counts: the first `n0` select a class, the next `n` certify it.

        Args:
            image: [height, width, channels].
            index: index of the image in the dataset.
            counts: the counts so far; `done` is a multiple of `GROUP`.
        """
        left = -(-(self.n0 + self.n - counts.done) // GROUP)
        groups = np.arange(min(self._groups, left), dtype=np.int32) + counts.done // GROUP
        predicted, classes = self._predict(tf.cast(image, tf.float32), tf.constant(index), tf.constant(groups))
        numbers = counts.done + np.arange(len(predicted))
        for stage, is_of_stage in enumerate((numbers < self.n0, (numbers >= self.n0) & (numbers < self.n0 + self.n))):
            counts.add(stage, np.bincount(predicted.numpy()[is_of_stage], minlength=int(classes) + 1))
        counts.done += len(predicted)

    def _predicted(self, image, index, groups):
        """Returns the classes of the noisy images of some groups, int32 [GROUP x groups], and the number of classes.

        An image for which a logit is not finite gets the number of classes in place of its class.
        """
        seed = randomness.at_places(tf.constant([self._seed, 0], tf.int32), index[None])
        seeds = randomness.fold(tf.repeat(seed, tf.size(groups), axis=0), groups)
        shape = tf.concat([[tf.size(groups), GROUP], tf.shape(image)], axis=0)
        noisy = tf.reshape(image + self._sigma * randomness.normal(seeds, shape), [-1, *image.shape])
        logits = gradients.logits(self._model, noisy)
        classes = logits.shape[-1]
        return tf.where(losses.is_finite(logits), tf.argmax(logits, -1, tf.int32), classes), classes


class _Counts:
    """The results so far, and their file.

    Args:
        path: the file, or None for no file. If it exists, the results are read from it.
        configuration: a dict of all settings on which the results depend, as plain values.

    Raises:
        ValueError: for a file of another configuration, or one that is not the state of a certification.

    Attributes:
        rows: for each image that is certified: index, label, selected class, successes, number of votes not finite,
            digest of the image.
        example: index, label and digest of the next image; None if none of its noisy images is counted.
        done: number of noisy images of the next image that are counted.
        votes: of the next image: how many noisy images voted for each class, and (last) how many were not finite; one
            list for the selection, and one for the estimation.
    """

    def __init__(self, path: Path | None, configuration: dict[str, Any]) -> None:
        self.path, self.configuration = path and files.expanded(path), json.loads(json.dumps(configuration))
        self.rows: list[list[int]] = []
        self._reset()
        self._saved = time.monotonic()
        if self.path and os.path.exists(self.path):
            self._load()

    def _reset(self) -> None:
        self.done, self.votes = 0, [np.zeros(1, np.int64), np.zeros(1, np.int64)]
        self.example: list[int] | None = None

    def is_known(self, place: int, example: tuple[int, int, int]) -> bool:
        """Returns whether an image may be the one at this place of the state.

        Args:
            place: number of the image in this certification, at most the number of `rows`.
            example: its index, label and digest.
        """
        if place < len(self.rows):
            index, label, *_, digest = self.rows[place]
            return example == (index, label, digest)
        return self.example in (None, list(example))

    def add(self, stage: int, votes: np.ndarray) -> None:
        """Adds votes [classes + 1] of the next image: stage 0 is the selection, stage 1 the estimation."""
        self.votes[stage] = self.votes[stage] + votes

    def finish(self) -> None:
        """Turns the votes of the next image into its row."""
        assert self.example is not None
        (index, label, digest), (selection, estimation) = self.example, self.votes
        selected, not_finite = int(np.argmax(selection[:-1])), int(selection[-1] + estimation[-1])
        self.rows.append([index, label, selected, int(estimation[selected]), not_finite, digest])
        self._reset()

    def save_now_and_then(self) -> None:
        """Writes the file if the last time is a while ago."""
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Writes the file. Does nothing without a path."""
        self._saved = time.monotonic()
        if self.path:
            votes = [stage.tolist() for stage in self.votes]
            state = {"certification": self.configuration, "rows": self.rows, "done": self.done, "votes": votes}
            state["example"] = self.example
            files.write_text(self.path, json.dumps(state))

    def _load(self):
        try:
            with open(self.path, encoding="utf-8") as file:
                state = json.load(file)
            configuration, self.rows, self.done = state["certification"], state["rows"], state["done"]
            self.votes = [np.array(stage, np.int64) for stage in state["votes"]]
            self.example = state["example"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} is not the state of a certification: {error}. Choose another file."
            ) from error
        if not identity.are_alike(configuration, self.configuration):
            raise ValueError(
                f"{self.path} is the state of another certification: give this one a file of its own.\n"
                f"There: {configuration}\nHere:  {self.configuration}"
            )


def _checked(sigma, n0, n, alpha, bounds):
    """Returns the settings as plain values. Raises ValueError for one that is out of range."""
    if not (isinstance(sigma, numbers.Real) and 0 < sigma < math.inf):
        raise ValueError(f"sigma must be a positive number, in the images' unit, such as 63.75. Received: {sigma!r}")
    for name, value in (("n0", n0), ("n", n)):
        if not (isinstance(value, numbers.Integral) and value >= 1):
            raise ValueError(f"{name} must be an integer >= 1. Received: {value!r}")
    if not (isinstance(alpha, numbers.Real) and 0 < alpha < 1):
        raise ValueError(f"alpha must be between 0 and 1, such as 0.001. Received: {alpha!r}")
    plain = threats.plain_bounds(bounds)
    if plain is None or any(isinstance(value, tuple) for value in plain):
        raise ValueError(f"bounds must be two numbers, the smaller first, such as (0, 1). Received: {bounds!r}")
    if sigma < 1 and plain == threats.PIXELS:
        warnings.warn(
            f"sigma {sigma:g} is less than one level of an image in 0..255. For images in 0..1 say bounds=(0, 1).",
            stacklevel=3,
        )
    return {"sigma": float(sigma), "n0": int(n0), "n": int(n), "alpha": float(alpha), "bounds": list(plain)}


def _first(examples, model, bounds):
    """Checks the first batch and the model. Returns the number of classes, and the shape of an image."""
    for _, images, labels in examples.read():
        return _check(model, images, labels, bounds), images.shape[1:]
    raise ValueError("The dataset has no images to certify.")


def _check(model, images, labels, bounds):
    """Checks the first batch and the model. Returns the number of classes."""
    if isinstance(model, keras.Model):
        classifier.check_images(model, images)
    pixels = tf.convert_to_tensor(images)
    validation.check_shapes(pixels, tf.convert_to_tensor(labels), None)
    has_fractions = pixels.dtype.is_floating and bool(tf.reduce_any(pixels != tf.round(pixels)))
    if has_fractions and validation.looks_scaled(tf.cast(pixels, tf.float32), tuple(bounds)):
        raise ValueError(
            f"The images reach from 0 to 1, the bounds are {tuple(bounds)}: say bounds=(0, 1), and sigma in this unit."
        )
    some, network = tf.cast(pixels[:4], tf.float32), gradients.inference(model)
    if network(some).shape[-1] == 1 and losses.probabilities(network, some):
        raise ValueError(
            "The network returns one probability, and one logit was expected: take keras_sat.models.without_softmax("
            "model), or add log(p / (1 - p))."
        )
    classes = gradients.logits(model, some[:1]).shape[-1]
    losses.check_range(labels, classes)
    return classes


def _check_range(images, bounds):
    """Raises ValueError for images that are not finite or outside the bounds."""
    low, high = float(np.min(images)), float(np.max(images))
    slack = 1e-5 * (bounds[1] - bounds[0])
    if not (bounds[0] - slack <= low and high <= bounds[1] + slack):  # also for NaN
        raise ValueError(
            f"images must be finite and within the bounds {tuple(bounds)}; say another range by bounds=. "
            f"Received values in [{low:g}, {high:g}]"
        )
