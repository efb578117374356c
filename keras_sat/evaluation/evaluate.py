"""Measures clean and robust accuracy."""

import dataclasses
import functools
import hashlib
import time
import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_sat import attacks as attacks_lib
from keras_sat import data, losses
from keras_sat.attacks import agreement, gradients, inputs, randomness
from keras_sat.attacks.threats import Ball
from keras_sat.evaluation import deployed, display, report
from keras_sat.evaluation.state import PICTURES, STANDS, State
from keras_sat.models import classifier, folding


def evaluate(
    model,
    dataset,
    attacks,
    *,
    seed=0,
    batch_size=128,
    progress=True,
    state=None,
    shard=(0, 1),
    attack_precision=None,
    targets=None,
):
    """Measures the accuracy of a classifier, clean and under each attack.

    An image counts as robust under an attack when it is classified correctly both as it is and as attacked; those
    misclassified as they are are not attacked. An image for which a logit is not finite (NaN, infinity) counts as
    misclassified, and the report says how many there were. Each stage of an attack (AutoAttack has several) is given
    the examples that still stand, packed into full batches. Attacks run on a copy of the Keras model with its batch
    norms folded (`models.folding.fold`), which is first compared with the model on images of the dataset; where they
    differ, the model itself is attacked, and a warning says why. What the attacks return is judged by the model itself,
    in inference mode. Every example has a seed of its own, from `seed` and its place in the dataset: neither the batch
    size, nor a shard, nor an interruption changes what becomes of it.

    In the scope of a strategy with several replicas, each batch is shared among them.

    Args:
        model: a Keras classifier, or a function, from images to logits [batch, classes], or [batch, 1] for the classes
            0 and 1 (a logit z counts as the logits [-z, z]); or the path of a SavedModel (see `deployed`).
        dataset: a finite tf.data.Dataset of (images [batch, height, width, channels], labels), the same at each
            iteration (not shuffled), a list of such batches, or a pair of arrays of them; the images in the range of
            the attacks' bounds, the labels integers [batch] or [batch, 1], or one-hot.
        attacks: an attack or a `Corruption`, a list of them, or a dict from names to them.
        seed: the same seed gives the same figures.
        batch_size: images in a batch.
        progress: whether to print how far it is, and the time left at most.
        state: path of a file that is kept up to date; where it exists, the evaluation goes on from it.
        shard: (k, n) evaluates the k-th of n parts, k = 0..n-1, in a process of its own, say; `merge` the reports.
        attack_precision: "mixed_bfloat16" or "mixed_float16": each stage runs on a copy of the Keras model in this
            precision first, then on the model itself against those that stand. What is found is always judged by the
            model itself. Such a copy is compared with the model too, and left out where they differ.
        targets: for targeted attacks, `PGD(ball, targeted=True)`: the class that each image is to be led to, integers
            [n] in the dataset's order, none of them the image's own. The row of such an attack gives the accuracy that
            is left, and as `reached` how many images came to their target.

    Returns:
        A `RobustnessReport`.

    Raises:
        ValueError: for a dataset without images, one that changes or never ends, labels that are not class numbers,
            outputs that are not logits, a targeted attack without targets, a state of another evaluation, or what the
            attacks refuse.
    """
    named = by_name(attacks)
    settings = {name: attack.settings() for name, attack in named.items()}
    more = {"attacks": settings, "low": attack_precision}
    engine = _Engine(model, dataset, batch_size, seed, shard, state, more, targets)
    for attack in named.values():
        engine.check_targets(attack)
    low = engine.low_precision(attack_precision) if attack_precision else None
    stages = {name: _stages(attack, engine.folded, low) for name, attack in named.items()}
    shown = display.Display(progress, stages)
    engine.clean(shown)
    for name in named:
        engine.row(name, stages[name], shown)
    shown.close()
    rows = {name: [stage.name for stage in stages[name]] for name in named}
    return engine.report(rows, settings, {"attack_precision": attack_precision} if low else {})


def sweep(model, dataset, attack, epsilons, *, seed=0, batch_size=128, progress=True, state=None, shard=(0, 1)):
    """Measures robust accuracy against epsilon: a curve that never rises.

    Goes upwards: an image broken at one epsilon is broken at all larger ones, and those that stand are attacked from
    where the smaller epsilon left them (`APGD`, and `PGD` with a random start).

    Args:
        attack: an attack; the epsilon of its ball is replaced, and an explicit `step_size` is scaled with it (that of
            `FGSM` is epsilon). The settings of each row say the step. Where channels have an epsilon of their own, the
            largest is replaced, and the others keep their share of it.
        epsilons: the radii, in the images' unit.
        others: as of `evaluate`.

    Returns:
        A `RobustnessReport` with a row for each epsilon, smallest first, named "epsilon 4".

    Raises:
        ValueError: as `evaluate`; also for a targeted attack, or an explicit step size at epsilon 0.
    """
    if not isinstance(_ball(attack), Ball):
        raise ValueError(f"sweep takes an attack with a ball, such as PGD(LinfBall(4)). Received: {attack!r}")
    inputs.check_untargeted(attack)
    radii = sorted({float(epsilon) for epsilon in epsilons})
    if not radii:
        raise ValueError("epsilons must be at least one number. Received none")
    at = {f"epsilon {radius:g}": inputs.with_radius(attack, radius) for radius in radii}
    settings = {name: one.settings() for name, one in at.items()}
    engine = _Engine(model, dataset, batch_size, seed, shard, state, {"sweep": settings})
    shown = display.Display(progress, {str(attack): [_Stage(str(attack), one, engine.folded) for one in at.values()]})
    engine.clean(shown)
    engine.sweep(at, shown)
    shown.close()
    context = {"sweep": str(attack)}
    if getattr(attack, "step_size", None) is not None:
        context["step_size"] = f"{attack.step_size / attack.ball.radius:g} x epsilon"
    return engine.report({name: [str(attack)] for name in at}, settings, context)


@dataclasses.dataclass(frozen=True)
class _Stage:
    name: str
    attack: object
    logits_fn: object


def _stages(attack, model, low):
    """Returns what an attack does in turn; with a copy of the model in low precision, that one comes first."""
    parts = getattr(attack, "stages", [attack])
    stages = [_Stage(str(part), part, model) for part in parts]
    if low is None or _ball(attack) is None:  # a corruption does not look at the model
        return stages
    return [_Stage(f"{part}, low precision", part, low) for part in parts] + stages


def _ball(attack):
    """Returns the ball of an attack; None for a corruption, which is none."""
    return getattr(attack, "ball", None)


def by_name(attacks):
    """Returns {name: attack} of what `evaluate` takes as attacks."""
    if isinstance(attacks, dict):
        named = attacks
    else:
        attacks = list(attacks) if isinstance(attacks, (list, tuple)) else [attacks]
        named = {str(attack): attack for attack in attacks}
        if len(named) < len(attacks):
            raise ValueError(f"Several attacks have one name: pass a dict from names to attacks. Received: {attacks}")
    for attack in named.values():
        if not hasattr(attack, "settings") or isinstance(attack, type):
            raise ValueError(f"An attack is a configuration, such as AutoAttack(LinfBall(4)). Received: {attack!r}")
    if "clean" in named:
        raise ValueError('"clean" is the row of the images as they are: name the attack otherwise.')
    return named


class _Engine:
    """The examples of one evaluation, and what is done to them, batch by batch."""

    def __init__(self, model, dataset, batch_size, seed, shard, path, configuration, targets=None):
        self.model = deployed.model_of(model)
        if isinstance(self.model, keras.Model):
            classifier.check_interface(self.model)
        self.dataset, self.batch_size, self.seed, self.shard = dataset, batch_size, int(seed), shard
        if not 0 <= shard[0] < shard[1]:
            raise ValueError(f"shard must be (k, n) with 0 <= k < n. Received: {shard!r}")
        self.targets = None if targets is None else np.asarray(losses.hard_labels(np.asarray(targets)))
        self.classes = None  # until the first logits are there
        self.some = self._first_images()
        self.context = report.context(self.model, self.seed)
        # New ones for each evaluation: what layers derive from weights is constant in what was traced before.
        copy = _folded(self.model, self.context["weights_sha256"], self.some)
        own = functools.partial(self.model) if isinstance(self.model, keras.Model) else self.model
        self.folded = copy or own
        self._judged = tf.function(functools.partial(_judge, self.model), autograph=False, reduce_retracing=True)
        configuration |= {"shard": list(shard), "batch_size": batch_size, **self.context}
        if targets is not None:
            configuration["targets"] = hashlib.sha256(self.targets.tobytes()).hexdigest()
        self.state = State(path, configuration)
        self.strategy = tf.distribute.get_strategy()

    def _first_images(self):
        """Returns some images of the dataset, after a look at whether it can be evaluated on."""
        for _, images, labels in self._batches(self._is_in_shard):
            if isinstance(self.model, keras.Model):
                classifier.check_images(self.model, images)
            inputs.check_logits(self.model, tf.convert_to_tensor(images), labels)
            self.classes = gradients.logits(self.model, tf.cast(images[:1], tf.float32)).shape[-1]
            is_class = True if self.targets is None else (self.targets >= 0) & (self.targets < self.classes)
            if not np.all(is_class):
                raise ValueError(f"targets must lie in 0..{self.classes - 1}. Received: {self.targets[~is_class][0]}")
            return images[: agreement.IMAGES]
        raise ValueError("The dataset has no images to evaluate on.")

    def _is_in_shard(self, index):
        return index % self.shard[1] == self.shard[0]

    def low_precision(self, precision):
        """Returns a copy of the model in another precision, folded; None where it is not what the model is."""
        copy = folding.fold(classifier.in_precision(self.model, precision))
        what = f"in {precision}"
        return copy if agreement.holds(self.model, copy, self.some, agreement.LOW, self.model.name, what) else None

    def check_targets(self, attack):
        """Raises ValueError for a targeted attack without targets."""
        if self.targets is None:
            inputs.check_untargeted(attack)

    def clean(self, shown):
        """Classifies the images as they are."""
        if self.state.index is not None:
            return
        start, parts = time.perf_counter(), []
        for index, images, labels in self._batches(self._is_in_shard):
            self._check_targets(index, labels)
            parts.append((index, labels, *self._judge(images, labels)[:2]))
            shown.clean(parts)
        self.state.add_examples(*map(np.concatenate, zip(*parts)))
        if self.targets is not None and self.shard[1] == 1 and len(self.targets) != len(self.state.index):
            raise ValueError(
                f"targets must be one class for each image. Received {len(self.targets)}, "
                f"for {len(self.state.index)} images"
            )
        self.state.seconds = time.perf_counter() - start
        self.state.save()

    def _check_targets(self, index, labels):
        if self.targets is None:
            return
        if index[-1] >= len(self.targets):
            raise ValueError(f"targets must be one class for each image. Received {len(self.targets)}, for more images")
        own = index[self.targets[index] == labels]
        if len(own):
            raise ValueError(f"targets must be other classes than the images' own; that of image {own[0]} is its own.")

    def row(self, name, stages, shown):
        """Runs the stages of an attack, each on what stands."""
        row = self.state.row(name, on_all=_ball(stages[0].attack) is None)
        for number in range(row.stage, len(stages)):
            begun = row.broken_by == number + 1  # those already broken in this stage, before an interruption
            self._stage(row, number, stages[number], np.flatnonzero(row.standing() | begun)[row.done :], shown, name)
            row.stage, row.done = number + 1, 0
            self.state.save()

    def _stage(self, row, number, stage, places, shown, name):
        seed = tf.constant([self.seed, number], tf.int32)
        shown.begin(name, stage, row, len(places))
        for at, images, labels in self._at(places):
            start = time.perf_counter()
            aims = self.targets[self.state.index[at]] if getattr(stage.attack, "targeted", False) else None
            adversarial = self._attack(stage, images, labels if aims is None else aims, self._seeds(seed, at))
            correct = self._record(row, number + 1, at, images, adversarial, labels, aims)
            row.done += len(at)
            row.seconds += time.perf_counter() - start
            self.state.save()
            shown.update(len(at), np.count_nonzero(correct))

    def sweep(self, at, shown):
        """Runs an attack with each epsilon in turn on each batch."""
        rows = [self.state.row(name) for name in at]
        places = np.flatnonzero(self.state.clean)[rows[0].done :]
        first = next(iter(at.values()))
        shown.begin("sweep", _Stage(str(first), first, self.folded), rows[-1], len(places))
        for batch, images, labels in self._at(places):
            self._sweep_batch(list(at.values()), rows, batch, images, labels)
            self.state.save()
            shown.update(len(batch), np.count_nonzero(rows[-1].standing()[batch]))

    def _sweep_batch(self, attacks, rows, batch, images, labels):
        standing, points = np.ones(len(batch), bool), None
        for number, (attack, row) in enumerate(zip(attacks, rows)):
            start = time.perf_counter()
            if standing.any():
                seeds = self._seeds(tf.constant([self.seed, number], tf.int32), batch[standing])
                stage = _Stage(str(attack), attack, self.folded)
                points = self._attack(stage, images[standing], labels[standing], seeds, points)
                correct = self._record(row, 1, batch[standing], images[standing], points, labels[standing])
                standing[standing] = correct
                points = points[correct] if _goes_on(attack) else None
            fallen = batch[~standing]
            row.broken_by[fallen] = 1  # those of a smaller epsilon too
            if number:
                row.margin[fallen] = np.maximum(row.margin[fallen], rows[number - 1].margin[fallen])
            row.done += len(batch)
            row.seconds += time.perf_counter() - start

    def report(self, rows, settings, more):
        """Returns the report; `rows` maps names to the names of their stages."""
        return report.of_state(self.state, rows, settings, self.context | more)

    def _seeds(self, seed, places):
        index = tf.constant(self.state.index[places], tf.int32)
        return tf.stack([tf.fill(index.shape, randomness.fold(seed, seed[1])[0]), index], axis=1)

    def _attack(self, stage, images, labels, seeds, start=None):
        """Returns adversarial images as an array."""
        values = [np.asarray(value) for value in (images, labels, seeds, start) if value is not None]
        number, size = len(labels), len(labels)
        if getattr(stage.attack, "survivors", None) == "mask":  # its shapes are to stay, in the last batch too
            size = self.batch_size
        replicas = self.strategy.num_replicas_in_sync
        filled = np.resize(np.arange(number), -(-size // replicas) * replicas)  # up with its first examples
        values = [value[filled] for value in values]
        if replicas > 1:
            return _on_replicas(self.strategy, stage, values)[:number]
        return stage.attack(stage.logits_fn, *values).numpy()[:number]

    def _record(self, row, number, places, images, adversarial, labels, aims=None):
        """Writes into the row what the attack came to, and returns which are still classified correctly."""
        correct, margin, predicted = self._judge(adversarial, labels)
        row.margin[places] = np.maximum(row.margin[places], margin)  # NaN stays NaN
        row.broken_by[places] = np.where(correct, STANDS, number)
        row.reached += 0 if aims is None else int(np.count_nonzero(predicted == aims))
        for k in np.flatnonzero(~correct)[: PICTURES - len(row.pictures)]:
            row.pictures.append((self.state.index[places[k]], images[k], adversarial[k], predicted[k]))
        return correct

    def _judge(self, images, labels):
        """Returns which are classified correctly, the margin of a wrong class, and the predicted class.

        The margin is NaN where a logit is not finite.
        """
        return [value.numpy() for value in self._judged(tf.cast(images, tf.float32), labels)]

    def _at(self, places):
        """Yields places in the state, images and labels of the examples at `places`, in full batches."""
        end, wanted = 0, self.state.index[places]
        for index, images, labels in self._batches(lambda index: np.isin(index, wanted), len(places)):
            batch = places[end : end + len(index)]
            end += len(index)
            if not np.array_equal(self.state.label[batch], labels):
                raise ValueError("The dataset has changed since its first pass: it must not shuffle, nor augment.")
            yield batch, images, labels
        if end < len(places):
            raise ValueError("The dataset has become shorter since its first pass: it must be the same each time.")

    def _batches(self, wanted, count=None):
        """Yields indices, images and labels of the examples whose indices are wanted, packed into full batches."""
        kept, end, found = [], 0, 0
        for images, labels in data.batches(self.dataset, self.batch_size):
            labels = losses.hard_labels(labels, self.classes).numpy()
            index = np.arange(end, end + len(labels))
            end += len(labels)
            pick = wanted(index)
            kept.append(tuple(np.asarray(column)[pick] for column in (index, images, labels)))
            found += np.count_nonzero(pick)
            while sum(len(part[0]) for part in kept) >= self.batch_size:
                joined = [np.concatenate(column) for column in zip(*kept)]
                yield tuple(column[: self.batch_size] for column in joined)
                kept = [tuple(column[self.batch_size :] for column in joined)]
            if found == count:
                break  # the rest of the dataset need not be read
        joined = [np.concatenate(column) for column in zip(*kept)]
        if joined and len(joined[0]):
            yield tuple(joined)


def _judge(model, images, labels):
    logits = gradients.logits(model, images)
    margin = tf.where(losses.is_finite(logits), losses.margin(labels, logits), float("nan"))
    return losses.is_correct(labels, logits), margin, tf.argmax(logits, -1, tf.int32)


_FOLDED = weakref.WeakKeyDictionary()


def _folded(model, sha256, images):
    """Returns the model with its batch norms folded; the same copy each time, to compile it once.

    The copy is compared with the model when it is made. Where they differ, or there is nothing to fold, returns None.
    """
    if not isinstance(model, keras.Model):
        return None
    key = (sha256, tf.distribute.get_strategy())
    if model not in _FOLDED or _FOLDED[model][0] != key:
        copy = folding.fold(model)
        tolerance = agreement.LOW if classifier.computes_low(model) else agreement.EXACT
        what = "with folded batch norms"
        is_used = copy is not model and agreement.holds(model, copy, images, tolerance, model.name, what)
        _FOLDED[model] = (key, copy if is_used else None)  # a value that held its key would keep it alive
    return _FOLDED[model][1]


def _goes_on(attack):
    """Says whether an attack can begin from where another left; one that begins at the image, as FGSM, stays there."""
    return isinstance(attack, (attacks_lib.PGD, attacks_lib.APGD)) and getattr(attack, "random_start", True)


def _on_replicas(strategy, stage, values):
    """Attacks a batch in equal parts, one for each replica."""
    parts = [np.split(value, strategy.num_replicas_in_sync) for value in values]
    values = [
        strategy.experimental_distribute_values_from_function(
            lambda context, part=part: tf.constant(part[context.replica_id_in_sync_group])
        )
        for part in parts
    ]
    found = strategy.experimental_local_results(_replicated(strategy, stage.attack, stage.logits_fn, *values))
    return np.concatenate([part.numpy() for part in found])


@tf.function(autograph=False, reduce_retracing=True)
def _replicated(strategy, attack, logits_fn, *values):
    return strategy.run(lambda *parts: attack(logits_fn, *parts), args=values)
