"""Measures clean and robust accuracy."""

import functools
import hashlib
import numbers
import time
import warnings
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sat import deployed, losses
from keras_sat.attacks import agreement, gradients, judging, randomness, validation
from keras_sat.attacks.attack import Attack
from keras_sat.evaluation import copies, identity, report, signs
from keras_sat.evaluation.examples import Examples, digests_of
from keras_sat.evaluation.progress import Progress
from keras_sat.evaluation.stages import Stage, by_name, stage_of, stages_of
from keras_sat.evaluation.state import PICTURES, ROBUST, State
from keras_sat.models import classifier
from keras_sat.typing import Array, Dataset, LogitsFunction, Path


def evaluate(
    model: LogitsFunction | Path,
    dataset: Dataset,
    attacks: Attack | list[Attack] | dict[str, Attack],
    *,
    seed: int = 0,
    batch_size: int = 128,
    progress: bool = True,
    state: Path | None = None,
    shard: tuple[int, int] = (0, 1),
    attack_precision: str | None = None,
    targets: Array | None = None,
    static_shapes: bool = False,
    context: dict[str, Any] | None = None,
) -> report.RobustnessReport:
    """Measures the accuracy of a classifier, clean and under each attack.

    An image counts as robust under an attack if it is classified correctly both without and with the attack. Images
    that are misclassified without an attack are not attacked. An image for which a logit is not finite (NaN, infinity)
    counts as misclassified, and the report says how many there were. Each stage of an attack (AutoAttack has several)
    attacks the examples that are still robust, packed into full batches.

    Attacks run on a faster copy of the Keras model, with folded batch norms (`models.folding.fold`). The copy is first
    compared with the model on images of the dataset. If they differ, the model itself is attacked, and a warning says
    why. The adversarial images are always classified by the model itself, in inference mode.

    Every example has its own random seed, which depends on `seed` and on its index in the dataset. So its result
    depends neither on the batch size, nor on shards, nor on an interruption.

    In the scope of a strategy with several replicas, each batch is split among them.

    Args:
        model: a Keras classifier, or a function, from images to logits [batch, classes], or [batch, 1] for two classes
            (a logit z counts as the logits [-z, z]); or the path of a SavedModel (see `deployed.load`).
        dataset: a finite tf.data.Dataset of (images [batch, height, width, channels], labels), which must be the same
            in each iteration (not shuffled); or a list of such batches; or a pair of arrays of all images and labels.
            The images are in the range of the attacks' bounds. The labels are integers [batch] or [batch, 1], or
            one-hot.
        attacks: an attack or a `Corruption`, a list of these, or a dict {name in the report: attack}.
        seed: the same seed gives the same results. Default: 0.
        batch_size: number of images in a batch. Default: 128.
        progress: whether to show on stdout what is done, an upper limit of the time left, and where an evaluation
            with a `state` continues.
        state: path of a file to which the results so far are written after each batch. If it exists, the evaluation
            continues from it, after it has read all images and compared them. Default: no file.
        shard: (k, n) evaluates only the k-th of n parts, k = 0..n-1, for example in several processes. `merge` joins
            the reports.
        attack_precision: "mixed_bfloat16" or "mixed_float16": all stages first attack a copy of the Keras model in this
            precision; then they attack the model itself, on the examples that are still robust. The model itself
            classifies all adversarial images. The copy is first compared with the model, and not used if they differ.
            Default: None, no such copy.
        targets: for targeted attacks, such as `PGD(ball, targeted=True)`: the class to reach for each image, integers
            [n] in the dataset's order, each different from the label of the image. The row of the attack gives the
            remaining accuracy, and in `reached` how many images reached their target.
        static_shapes: True keeps the shape of all batches, for XLA and TPU: the last batch is filled up, and attacks
            keep examples that are already misclassified. The results are the same. Default: False.
        context: a dict of plain values to add to the report's context, such as {"dataset": "cifar10", "split": "test"}.

    Returns:
        A `RobustnessReport`.

    Raises:
        ValueError: for a dataset that is empty, changes or never ends; labels that are not class numbers; outputs that
            are not logits; a targeted attack without targets; the state of another evaluation; a `context` that would
            replace a measured fact; or images and labels for which `Attack.__call__` raises ValueError.
    """
    named = by_name(attacks)
    if targets is None:
        for attack in named.values():
            validation.check_untargeted(attack)
    elif not any(attack.targeted for attack in named.values()):
        raise ValueError("targets= is for targeted attacks, such as PGD(ball, targeted=True). Here is none.")
    settings = {name: attack.settings() for name, attack in named.items()}
    bar = Progress(progress)
    bar.prepare()
    evaluation = _Evaluation(
        model, dataset, batch_size, seed, shard, targets=targets, static_shapes=static_shapes, context=context
    )
    evaluation.check(named)
    evaluation.open_state(state, {"attacks": settings, "low": attack_precision})
    evaluation.look_for_signs(named)
    low = evaluation.low_precision(attack_precision) if attack_precision else None
    bar.stages = stages = {name: stages_of(attack, evaluation.folded, low) for name, attack in named.items()}
    bar.resume(evaluation.state)
    evaluation.classify_clean(bar)
    for name in named:
        evaluation.attack(name, stages[name], bar)
    bar.close()
    names = {name: [stage.name for stage in stages[name]] for name in named}
    return evaluation.to_report(names, settings, {"attack_precision": attack_precision} if low else {})


def sweep(
    model: LogitsFunction | Path,
    dataset: Dataset,
    attack: Attack,
    epsilons: Iterable[float],
    *,
    seed: int = 0,
    batch_size: int = 128,
    progress: bool = True,
    state: Path | None = None,
    shard: tuple[int, int] = (0, 1),
    static_shapes: bool = False,
    context: dict[str, Any] | None = None,
) -> report.RobustnessReport:
    """Measures robust accuracy for several epsilons: a curve that never rises.

    The epsilons are used in ascending order. An image that is broken at one epsilon counts as broken at all larger
    ones. For the other images, the attack starts from the adversarial images of the smaller epsilon if it accepts a
    start (`APGD`, and `PGD` with a random start).

    Args:
        model, dataset: see `evaluate`.
        attack: an attack with a ball. The epsilon of the ball is replaced, and an explicit `step_size` is scaled with
            it (the step size of `FGSM` stays epsilon). With an epsilon per channel, the largest one is replaced, and
            the others keep their ratio to it.
        epsilons: the epsilons, each >= 0, in the images' unit.
        seed, batch_size, progress, state, shard, static_shapes, context: see `evaluate`.

    Returns:
        A `RobustnessReport` with a row for each epsilon, smallest first, named "epsilon 4".

    Raises:
        ValueError: see `evaluate`; also for no epsilons, several attacks, an attack without a ball, a targeted attack,
            or an explicit step size whose ball has epsilon 0.
    """
    named = list(by_name(attack).values())
    if len(named) != 1 or named[0].ball is None:
        raise ValueError(f"sweep takes an attack with a ball, such as PGD(LinfBall(4)). Received: {attack!r}")
    attack = named[0]
    validation.check_untargeted(attack)
    if isinstance(epsilons, numbers.Real):
        raise ValueError(f"epsilons must be a list of numbers, such as [4, 8]. Received: {epsilons!r}")
    radii = sorted({float(epsilon) for epsilon in epsilons})
    if not radii:
        raise ValueError("epsilons must be at least one number. Received none")
    at = {f"epsilon {radius:g}": attack.with_radius(radius) for radius in radii}
    settings = {name: one.settings() for name, one in at.items()}
    bar = Progress(progress)
    bar.prepare()
    evaluation = _Evaluation(model, dataset, batch_size, seed, shard, static_shapes=static_shapes, context=context)
    evaluation.check(at)
    evaluation.open_state(state, {"sweep": settings})
    evaluation.look_for_signs(at)
    bar.resume(evaluation.state)
    evaluation.classify_clean(bar)
    evaluation.sweep(at, bar)
    bar.close()
    more = {"sweep": str(attack)}
    if attack.step_size is not None:
        more["step_size"] = f"{attack.step_size / attack.ball.radius:g} x epsilon"
    return evaluation.to_report({name: [str(attack)] for name in at}, settings, more)


class _Evaluation:
    """One evaluation: its model, its examples, and the steps of the evaluation, each batch by batch."""

    def __init__(
        self,
        model: LogitsFunction | Path,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        shard: tuple[int, int],
        *,
        targets: Array | None = None,
        static_shapes: bool = False,
        context: dict[str, Any] | None = None,
    ) -> None:
        self.model: Any = deployed.model_of(model)
        if isinstance(self.model, keras.Model):
            classifier.check_interface(self.model)
        self.batch_size, self.seed, self.shard = batch_size, int(seed), shard
        self.targets: Any = None if targets is None else np.asarray(losses.hard_labels(np.asarray(targets)))
        self.static_shapes, self.strategy = static_shapes, tf.distribute.get_strategy()
        self.given = report.check_given(context)
        self.context = report.context(self.model, self.seed)
        if self.targets is not None:
            self.context["targets_sha256"] = hashlib.sha256(self.targets.tobytes()).hexdigest()
        self.examples = Examples(dataset, batch_size, shard)
        self.some_images = self._first_images()
        self.context[identity.LOGITS] = identity.of({"model": self.model}, self.some_images.shape[1:])
        copy = copies.folded(self.model, self.context, self.some_images)
        self.folded = copy or gradients.inference(self.model)
        self._judge = tf.function(functools.partial(judging.judge, self.model), autograph=False, reduce_retracing=True)

    def _first_images(self):
        """Returns some images of the dataset; checks that the dataset and the model fit together."""
        for _, images, labels in self.examples.read():
            if isinstance(self.model, keras.Model):
                classifier.check_images(self.model, images)
            validation.check_logits(self.model, tf.convert_to_tensor(images), labels)
            classes = gradients.logits(self.model, tf.cast(images[:1], tf.float32)).shape[-1]
            self.examples.classes = classes
            outside = [] if self.targets is None else self.targets[(self.targets < 0) | (self.targets >= classes)]
            if len(outside):
                raise ValueError(f"targets must lie in 0..{classes - 1}. Received: {outside[0]}")
            self.first_batch = images, labels
            return images[: agreement.IMAGES]
        raise ValueError("The dataset has no images to evaluate on.")

    def check(self, attacks: dict[str, Attack]) -> None:
        """Raises ValueError if images or surrogate of an attack do not fit. The model has been checked already."""
        images, labels = map(tf.convert_to_tensor, self.first_batch)
        for attack in attacks.values():
            validation.check_range(images, attack.bounds)
            if attack.ball is not None and getattr(self.model, "takes_integers", False):
                _warn_of_rounding(self.model.path, attack.ball)
            if attack.runs_on(self.model)[1] is not self.model:
                attack.check_network(self.model, images, labels)
                surrogate = {str(attack): attack.runs_on(self.model)[1]}
                self.context[identity.LOGITS] |= identity.of(surrogate, images.shape[1:])

    def open_state(self, path: Path | None, configuration: dict[str, Any]) -> None:
        """Opens the file of the state. `configuration`: settings on which the results depend, as plain values."""
        configuration = {**configuration, "shard": list(self.shard), "batch_size": self.batch_size, **self.context}
        self.state = State(path, configuration)
        before = (self.state.index, self.state.label, self.state.digest)
        if self.state.index is not None and not self.examples.are(*before):
            raise ValueError(
                f"{path} is the state of an evaluation on other images or labels: remove it, or give this evaluation "
                "another file."
            )

    def look_for_signs(self, attacks: dict[str, Attack]) -> None:
        """Looks for signs of masked gradients on the first images."""
        images, labels = self.first_batch
        self.signs = signs.measure(self.folded, images, labels, attacks.values())

    def low_precision(self, precision: str) -> keras.Model | None:
        """Returns a copy of the model in another precision; None if it differs from the model."""
        return copies.low_precision(self.model, precision, self.some_images)

    def classify_clean(self, bar: Progress) -> None:
        """Classifies the images without an attack."""
        if self.state.index is not None:
            return
        start, parts = time.perf_counter(), []
        for index, images, labels in self.examples.read():
            self._check_targets(index, labels)
            correct, margin, _ = self._judged(images, labels)
            parts.append((index, labels, digests_of(images), correct, margin))
            bar.clean(len(labels), int(np.count_nonzero(correct)))
        index, label, digest, clean, margin = map(np.concatenate, zip(*parts))
        if self.targets is not None and self.shard[1] == 1 and len(self.targets) != len(index):
            raise ValueError(
                f"targets must be one class for each image. Received {len(self.targets)}, for {len(index)} images"
            )
        _warn_of_repetitions(label, digest)
        self.state.add_examples(index, label, digest, clean, margin)
        self.state.seconds = time.perf_counter() - start
        self.state.save()

    def _check_targets(self, index, labels):
        if self.targets is None:
            return
        if index[-1] >= len(self.targets):
            raise ValueError(f"targets must be one class for each image. Received {len(self.targets)}, for more images")
        own = index[self.targets[index] == labels]
        if len(own):
            raise ValueError(f"targets must differ from the labels; the target of image {own[0]} is its label.")

    def attack(self, name: str, stages: list[Stage], bar: Progress) -> None:
        """Runs the stages of an attack, each on the examples that are still robust."""
        row = self.state.row(name, on_all=stages[0].attack.ball is None)
        for number in range(row.stage, len(stages)):
            broken_before = row.broken_by == number + 1  # by this stage, before an interruption
            places = np.flatnonzero(row.robust() | broken_before)[row.done :]
            bar.begin(name, stages[number], row, len(places))
            self._run_stage(row, number, stages[number], places, bar)
            row.stage, row.done = number + 1, 0
            self.state.save()

    def _run_stage(self, row, number, stage, places, bar):
        for at, images, labels in self._read(places):
            start = time.perf_counter()
            targets = self.targets[self.state.index[at]] if stage.attack.targeted else None
            given = labels if targets is None else targets
            adversarial = self._adversarial(stage, images, given, self._seeds(number, at))
            correct = self._record(row, number + 1, at, images, adversarial, labels, targets)
            row.done += len(at)
            row.seconds += time.perf_counter() - start
            self.state.save()
            bar.update(len(at), int(np.count_nonzero(correct)))

    def sweep(self, at: dict[str, Attack], bar: Progress) -> None:
        """Runs the attack with each epsilon on each batch. `at` is {name of a row: attack with this epsilon}."""
        rows = [self.state.row(name) for name in at]
        stages = [stage_of(attack, self.folded) for attack in at.values()]
        places = np.flatnonzero(self.state.clean)[rows[0].done :]
        bar.begin("sweep", stages[0], rows[-1], len(places))
        for batch, images, labels in self._read(places):
            self._sweep_batch(stages, rows, batch, images, labels)
            self.state.save()
            bar.update(len(batch), int(np.count_nonzero(rows[-1].robust()[batch])))

    def _sweep_batch(self, stages, rows, batch, images, labels):
        robust, points = np.ones(len(batch), bool), None
        for number, (stage, row) in enumerate(zip(stages, rows)):
            start = time.perf_counter()
            if robust.any():
                seeds = self._seeds(number, batch[robust])
                points = self._adversarial(stage, images[robust], labels[robust], seeds, points)
                correct = self._record(row, 1, batch[robust], images[robust], points, labels[robust])
                robust[robust] = correct
                continues = stage.attack.accepts_start and stage.attack.random_start
                points = points[correct] if continues else None
            broken = batch[~robust]
            row.broken_by[broken] = 1  # also those that a smaller epsilon broke
            if number:
                row.margin[broken] = np.maximum(row.margin[broken], rows[number - 1].margin[broken])
            row.done += len(batch)
            row.seconds += time.perf_counter() - start

    def to_report(
        self, stages: dict[str, list[str]], settings: dict[str, dict[str, Any]], more: dict[str, Any]
    ) -> report.RobustnessReport:
        """Returns the report; see `report.of_state`. `more` is added to its context."""
        if self.shard[1] > 1:
            more = more | {identity.DATASET: self.examples.checksum}
        return report.of_state(self.state, stages, settings, self.context | more | self.given, self.signs)

    def _read(self, places):
        """Yields (places in the state, images, labels) of the examples at `places`, in full batches."""
        known = (column[places] for column in (self.state.index, self.state.label, self.state.digest))
        for part, images, labels in self.examples.read_again(*known):
            yield places[part], images, labels

    def _seeds(self, number, places):
        """Returns the seeds of examples for the stage of this number."""
        return randomness.at_places(tf.constant([self.seed, number], tf.int32), self.state.index[places])

    def _adversarial(self, stage, images, labels, seeds, start=None):
        """Returns adversarial images as an array. If necessary, the batch is filled up with its first examples."""
        values = [np.asarray(value) for value in (images, labels, seeds, start) if value is not None]
        number, replicas = len(labels), self.strategy.num_replicas_in_sync
        size = self.batch_size if self.static_shapes else number
        filled = np.resize(np.arange(number), -(-size // replicas) * replicas)
        values = [value[filled] for value in values]
        if replicas > 1:
            return _on_replicas(self.strategy, stage, values, self.static_shapes)[:number]
        return stage.attack(stage.logits_fn, *values, static_shapes=self.static_shapes).numpy()[:number]

    def _record(self, row, number, places, images, adversarial, labels, targets=None):
        """Writes the results of stage `number` (>= 1) into the row. Returns which examples are still robust."""
        correct, margin, predicted = self._judged(adversarial, labels)
        row.margin[places] = np.maximum(row.margin[places], margin)  # NaN stays NaN
        row.broken_by[places] = np.where(correct, ROBUST, number)
        row.reached += 0 if targets is None else int(np.count_nonzero(predicted == targets))
        for k in np.flatnonzero(~correct)[: PICTURES - len(row.pictures)]:
            row.pictures.append((self.state.index[places[k]], images[k], adversarial[k], predicted[k]))
        return correct

    def _judged(self, images, labels):
        """Returns the `Judgement` of the model itself, as arrays."""
        return judging.Judgement(*(value.numpy() for value in self._judge(tf.cast(images, tf.float32), labels)))


def _warn_of_rounding(path, ball):
    """Warns if what a network with integer input sees may lie outside the ball."""
    if ball.norm != "linf" or float(ball.radius) % 1:
        warnings.warn(
            f"{path} takes whole pixel values: adversarial images are rounded, and may leave the {ball.norm} ball of "
            f"epsilon {ball.radius:g}. Robust accuracy may be too low. Take an L-inf ball with a whole epsilon, or a "
            "signature with a float input.",
            stacklevel=3,
        )


def _warn_of_repetitions(labels, digests):
    """Warns if more than a tenth of the images occur again in the dataset: real datasets have a few copies."""
    repeated = len(labels) - len({*zip(labels.tolist(), digests.tolist())})
    if repeated > 0.1 * len(labels):
        warnings.warn(
            f"{repeated} of {len(labels)} images occur before in the dataset, and count again: the intervals are too "
            "narrow. Leave .repeat() out.",
            stacklevel=4,
        )


def _on_replicas(strategy, stage, values, static_shapes):
    """Returns the adversarial images of a batch, split into equal parts, one for each replica."""
    parts = [np.split(value, strategy.num_replicas_in_sync) for value in values]
    values = [
        strategy.experimental_distribute_values_from_function(
            lambda context, part=part: tf.constant(part[context.replica_id_in_sync_group])
        )
        for part in parts
    ]
    adversarial = _replicated(strategy, stage.attack, stage.logits_fn, static_shapes, *values)
    return np.concatenate([part.numpy() for part in strategy.experimental_local_results(adversarial)])


@tf.function(autograph=False, reduce_retracing=True)
def _replicated(strategy, attack, logits_fn, static_shapes, *values):
    return strategy.run(lambda *parts: attack(logits_fn, *parts, static_shapes=static_shapes), args=values)
