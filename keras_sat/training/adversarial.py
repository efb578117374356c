"""Adversarial training through Keras' own compile and fit: `AdversarialModel`."""

import contextlib
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from keras_sat import activations, internals, losses
from keras_sat.attacks import PGD, Attack, agreement, gradients, judging, randomness, validation
from keras_sat.models import classifier, folding
from keras_sat.training import distribution, scopes
from keras_sat.training.gradient_alignment import GradAlign
from keras_sat.training.objectives import AdversarialTraining, Objective
from keras_sat.training.perturbation import AWP
from keras_sat.typing import Path

_ALIGNMENT = 2**16  # folds the seed of a step for the gradient alignment; attacks fold small numbers


class AdversarialModel(internals.FirstBatch, keras.Model):
    """Trains a Keras classifier on adversarial examples that it makes from each batch.

        model = keras_sat.models.ResNet20(activation="silu", classes=10)
        trainer = AdversarialModel(model, PGD(LinfBall(8), steps=2))
        trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        trainer.fit(train_dataset, validation_data=test_dataset)

    `train_step` attacks the batch, then takes a usual training step on the adversarial images. So the logs of training
    have the objective as `loss`, and the compiled metrics on the adversarial images, with the prefix `adversarial_`:
    `adversarial_accuracy`. (The prefix is `noisy_` for `GaussianNoise`; for an attack with epsilon 0, whose images are
    the clean ones, there is none.) `evaluate` reports the compiled loss and metrics on the clean images, and
    `robust_accuracy`: the share of images that are classified correctly both clean and under `evaluation_attack`. In
    the logs of `fit`, these are `val_accuracy` and `val_robust_accuracy`. `predict`, and a call of the trainer, run
    the classifier without an attack. The attack ascends its own loss with hard labels, even if the training loss uses
    label smoothing, for example.

    The noise of the attack depends on `seed`, the iterations of the optimizer and the replica. (With
    `gradient_accumulation_steps` each batch is an iteration, as in Keras' learning rate schedules.) The same seed gives
    the same run. A resumed run continues like one that was not interrupted. Two replicas never draw the same noise.
    `evaluate` draws the same noise at each call.

    Args:
        model: a built Keras classifier from images [batch, height, width, channels] to logits [batch, classes], from
            this package, keras.applications or any other source. `fit` trains its weights. It is the attribute
            `classifier`; `save` and `export` write only this model.
        attack: the attack that makes the training examples. The SAT paper uses
            `PGD(LinfBall(4), steps=1, clean_start=0.2)`. `GaussianNoise(sigma)` trains on noisy images, for
            `evaluation.certify`; `robust_accuracy` is then the accuracy on noisy images.
        evaluation_attack: the attack of `evaluate` and of the validation in `fit`. Default: `attack` without a clean
            start; with `Free`, PGD-10 in the same ball.
        attack_batch_norm: mode in which the network is attacked in training. "frozen" (default, as in the paper):
            inference mode. "batch": training mode (batch statistics, active dropout), without updating any statistics.
            `Free` always attacks in training mode. The evaluation attack always uses inference mode.
        attack_precision: precision of the training attack only: "mixed_bfloat16", "mixed_float16", or None (default)
            for the precision of the model. On hardware that is faster in low precision, the attack costs less and finds
            nearly the same examples. Only for `attack_batch_norm="frozen"`.
        objective: `AdversarialTraining()`, the default; `TRADES(beta)`, `MART(beta)` or `Free(replays)`.
        weight_perturbation: `AWP(gamma)`, or None (default) for no perturbation.
        gradient_alignment: `GradAlign(weight)`, a regularizer of the input gradient that is added to the objective, or
            None (default). Not with `Free`.
        epsilon_schedule: a function from the number of iterations of the optimizer (an integer tensor) to a factor of
            both epsilon and step size of the training attack, or None (default). For example,
            `keras.optimizers.schedules.PolynomialDecay(0.0, 1000, 1.0)` lets both grow over 1,000 iterations.
        step_size_schedule: a function like `epsilon_schedule`, for a factor of the step size only.
        static_shapes: whether attacks keep the shape of the batch, see `Attack.__call__`. None (default): True if XLA
            compiles the step, and under a TPUStrategy; otherwise False.
        seed: seed of the noise of the attacks. Default: 0.
        kwargs: further arguments of keras.Model, such as `name`.

    The variable `trainer.step_size_factor` is another factor of the step size; its initial value is 1. A value that a
    callback assigns to it takes effect at the next batch.

    Labels are integers [batch] or [batch, 1], or one-hot [batch, classes]. Sample weights affect the loss and the
    metrics, not the attack.

    The attacks run on a faster copy of the network: with folded batch norms, and in `attack_precision`. At the first
    batch, the logits and input gradients of each copy are compared with those of the network. If they differ, the
    network itself is attacked, and a warning says why.

    Raises:
        ValueError: for a model that is not built or ends in a softmax, an unknown `attack_batch_norm`, an
            `attack_precision` in which the model cannot be copied, a targeted attack, or options that do not fit
            together. In `fit` and `evaluate`: if the first batch has images outside the attack's bounds, images in 0..1
            although the bounds are 0..255, or labels that are not classes of the network. (The error for images is a
            tf.errors.InvalidArgumentError too. For a later batch, only this error is raised, and none if XLA compiles
            the step.)
    """

    def __init__(
        self,
        model: keras.Model,
        attack: Attack,
        evaluation_attack: Attack | None = None,
        attack_batch_norm: str | None = None,
        seed: int = 0,
        *,
        attack_precision: str | None = None,
        objective: Objective = AdversarialTraining(),  # noqa: B008 - frozen
        weight_perturbation: AWP | None = None,
        gradient_alignment: GradAlign | None = None,
        epsilon_schedule: Callable[[tf.Tensor], Any] | None = None,
        step_size_schedule: Callable[[tf.Tensor], Any] | None = None,
        static_shapes: bool | None = None,
        **kwargs: Any,
    ) -> None:
        classifier.check(model)
        _check_attack("attack", attack)
        if evaluation_attack is not None:
            _check_attack("evaluation_attack", evaluation_attack)
        _check_objective(objective, attack)
        _check_alignment(gradient_alignment, objective, attack)
        if not attack.accepts_scale and (epsilon_schedule or step_size_schedule):
            raise ValueError(f"{attack} takes no schedules: epsilon_schedule and step_size_schedule need PGD.")
        # The policy is the model's, because Keras derives the loss scaling from it. Images are not cast to it here:
        # bfloat16 rounds pixels above 127 to whole levels, which moves them out of the ball. The layers cast.
        super().__init__(dtype=model.dtype_policy, autocast=False, **kwargs)
        self.classifier = model
        self.attack = attack
        self.evaluation_attack = evaluation_attack or (
            PGD(attack.ball) if objective.replays else attack.for_evaluation()
        )
        self.attack_batch_norm = _batch_norm_mode(attack_batch_norm, attack_precision, objective)
        self.objective = objective
        self.weight_perturbation = weight_perturbation
        self.gradient_alignment = gradient_alignment
        self.epsilon_schedule = epsilon_schedule
        self.step_size_schedule = step_size_schedule
        self.static_shapes = static_shapes
        self.seed = seed
        # Created once, not at each step: an attack that runs eagerly is compiled once for each such object.
        self._inference = functools.partial(model, training=False)
        self._folding = folding.Folding(model)
        self._low = folding.Folding(model, attack_precision) if attack_precision else self._folding
        self._attack_precision = attack_precision
        outputs = getattr(model, "outputs", None)  # a network with one logit has two classes
        self._classes = max(2, outputs[0].shape[-1]) if outputs else None  # None: the model does not say
        self._are_logits_checked = self._are_copies_compared = False
        self.robust_accuracy = keras.metrics.Mean(name="robust_accuracy")
        self.step_size_factor = self.add_weight(
            shape=(), initializer="ones", dtype="float32", trainable=False, name="step_size_factor"
        )
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Returns the logits of the classifier. Images of integers are cast to float32."""
        inputs = _pixels(inputs)
        if training:
            return self.classifier(inputs, training=True)
        return distribution.pad_empty_replica(self._inference, inputs)

    def compile(self, optimizer: Any = "rmsprop", *args: Any, jit_compile: bool | str = "auto", **kwargs: Any) -> None:
        """Compiles as Keras does. On several replicas, `jit_compile=True` compiles only the attack with XLA.

        Raises:
            ValueError: for a loss that takes probabilities, because the model returns logits. With TRADES, MART or
                another penalty, also for a loss whose reduction is no mean. On several replicas, also for batch norms
                that are not synchronised, and for `gradient_accumulation_steps` or `ema_overwrite_frequency` of the
                optimizer.
        """
        loss = args[0] if args else kwargs.get("loss")
        losses.check_takes_logits(loss)
        has_penalty = type(self.objective).penalty is not Objective.penalty
        if has_penalty or self.gradient_alignment:
            losses.check_is_mean(loss, self.objective if has_penalty else self.gradient_alignment)
        replicas = self.distribute_strategy.num_replicas_in_sync
        self._jit_attack = jit_compile is True and replicas > 1
        super().compile(optimizer, *args, jit_compile=False if self._jit_attack else jit_compile, **kwargs)
        distribution.check(self.classifier, self.optimizer, self.distribute_strategy)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains as Keras does. Checks labels and validation data before the first epoch.

        Raises:
            ValueError: see the class.
        """
        validation = kwargs.get("validation_data")
        if y is not None:
            losses.hard_labels(np.asarray(y), self._classes)
        if isinstance(validation, (tuple, list)) and len(validation) > 1:
            losses.hard_labels(np.asarray(validation[1]), self._classes)
            self._check_batch([part[: agreement.IMAGES] for part in validation[:2]])
        elif isinstance(validation, tf.data.Dataset):
            for batch in validation.take(1):
                self._check_batch(batch)
        return super().fit(x, y, *args, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Attacks a batch, takes a step of the optimizer on it, and returns the objective and the metrics."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = _pixels(x)
        seed = self._replica_seed(internals.batch_count(self.optimizer))
        if self.objective.replays:
            logits = self._replay(tf.cast(x, tf.float32), y, sample_weight, seed)
        else:
            adversarial = self._adversarial(x, y, seed)
            logits, _ = self._descend(x, adversarial, y, sample_weight, self._near(x, seed))
        return self.training_logs(self.compute_metrics(x, y, logits, sample_weight=sample_weight))

    def training_logs(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the logs of a training step: the objective, and the metrics with the prefix of the attack's images.

        Args:
            metrics: {name: value}, from `compute_metrics` or `get_metrics_result`.
        """
        trained = {name: value for name, value in metrics.items() if name != self.robust_accuracy.name}
        prefix = self.attack.metrics_prefix
        return {name if name == "loss" else prefix + name: value for name, value in trained.items()}

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates a batch, clean and under `evaluation_attack`, and returns the metrics."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        labels = losses.hard_labels(y)
        attack = functools.partial(
            self.evaluation_attack,
            self._frozen(self._folding),
            seed=self._replica_seed(-1),
            static_shapes=self._keeps_shapes(),
        )
        adversarial = distribution.pad_empty_replica(attack, x, labels)
        robust = self._is_correct(adversarial, labels)
        if self.evaluation_attack.ball is not None:  # noise counts for all images, as in `evaluation.evaluate`
            robust &= self._is_correct(x, labels)
        self.robust_accuracy.update_state(robust, sample_weight)
        return super().test_step(data)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Updates and returns the metrics. An example whose logits are not finite counts as misclassified."""
        return super().compute_metrics(x, y, _wrong_where_not_finite(y, y_pred), sample_weight=sample_weight)

    def get_metrics_result(self) -> dict[str, Any]:
        """Returns the metrics; {} before the first step. (A resumed epoch may have no step left, only validation.)"""
        if not all(getattr(metric, "built", True) for metric in self.metrics):
            return {}
        return super().get_metrics_result()

    def make_train_function(self, force: bool = False) -> None:
        """Makes the function that `fit` calls for a batch."""
        self.train_function: Any = self._own_loop(self.train_step, self.train_function, force)
        super().make_train_function()

    def make_test_function(self, force: bool = False) -> None:
        """Makes the function that `evaluate` calls for a batch."""
        self.test_function: Any = self._own_loop(self.test_step, self.test_function, force)
        super().make_test_function()

    def save(self, filepath: Path, **kwargs: Any) -> None:
        """Saves the attribute `classifier`. The trainer itself has no weights that have to be saved."""
        return self.classifier.save(filepath, **kwargs)

    def save_weights(self, filepath: Path, **kwargs: Any) -> None:
        """Saves the weights of the classifier and the state of the optimizer in one file.

        The classifier's own `load_weights` reads the file too. It ignores the optimizer.
        """
        with _with_optimizer(self.classifier, self.optimizer):
            return self.classifier.save_weights(filepath, **kwargs)

    def load_weights(self, filepath: Path, **kwargs: Any) -> None:
        """Loads weights that a classifier or its trainer saved, and the state of the optimizer if the file has it."""
        with _with_optimizer(self.classifier, self.optimizer if _holds_optimizer(filepath) else None):
            self.classifier.load_weights(filepath, **kwargs)
        # Traced functions may contain values that layers computed from the former weights.
        for function, make in (
            ("train_function", self.make_train_function),
            ("test_function", self.make_test_function),
        ):
            if getattr(self, function) is not None:
                make(force=True)
        self.predict_function = None

    def export(self, filepath: Path, **kwargs: Any) -> None:
        """Exports the attribute `classifier` as Keras does. `keras_sat.export` writes more signatures and files."""
        return self.classifier.export(filepath, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Raises NotImplementedError: a trainer is saved as its classifier."""
        raise NotImplementedError(
            "An AdversarialModel is saved as its classifier: call trainer.save(path), or "
            "keras.models.save_model(trainer.classifier, path), and wrap what you load in an AdversarialModel again."
        )

    def _own_loop(self, step, function, force):
        """Returns the present function, a new one if Keras' own would fail, or None to let Keras make it."""
        if function is not None and not force:
            return function
        if not self.run_eagerly and distribution.needs_own_loop(self.distribute_strategy, self.steps_per_execution):
            return distribution.make_step_function(self.distribute_strategy, step, self.steps_per_execution)
        return None

    def see_first_batch(self, batch: Any) -> None:
        """Checks the first batch. On its images, compares the copies that will be attacked with the classifier.

        Args:
            batch: (images, labels), or (images, labels, sample weights).

        Raises:
            ValueError: see the class.
        """
        self._check_batch(batch)

    def _check_batch(self, batch):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        if isinstance(x, (dict, tuple, list)):
            raise ValueError(f"An image classifier takes one tensor of images. Received a {type(x).__name__}")
        labels, images = losses.hard_labels(y, self._classes), tf.convert_to_tensor(x)
        if not len(labels):  # the share of a replica in a small batch may be empty
            return
        classifier.check_images(self.classifier, images)
        for ball, bounds in {(one.ball, one.bounds) for one in (self.attack, self.evaluation_attack)}:
            validation.check_batch(images, labels, ball, bounds)
        images = _pixels(images)
        if not self._are_logits_checked:
            validation.check_logits(self._inference, images, labels)
            self._are_logits_checked = True
        if not (self._are_copies_compared or self.run_eagerly):
            self._compare_copies(images)
            self._are_copies_compared = True

    def _compare_copies(self, images):
        """Compares the copies with the classifier. One that differs is replaced by the classifier itself."""
        exact = agreement.LOW if classifier.computes_low(self.classifier) else agreement.EXACT
        self._compare(self._folding, "with folded batch norms", images, exact)
        if self._low is not self._folding:
            self._compare(self._low, f"in {self._attack_precision}", images, agreement.LOW)
            self._low = self._low if self._low.is_copy else self._folding

    def _compare(self, copy, what, images, tolerance):
        name = self.classifier.name
        if copy.is_copy and not agreement.holds(self._inference, copy.bind(), images, tolerance, name, what):
            copy.give_up()

    def _scales(self):
        """Returns the factors of epsilon and of the step size at this iteration, as arguments of the attack."""
        if not self.attack.accepts_scale:
            return {}
        step, step_size = internals.batch_count(self.optimizer), tf.convert_to_tensor(self.step_size_factor.value)
        if self.step_size_schedule is not None:
            step_size = step_size * self.step_size_schedule(step)
        if self.epsilon_schedule is None:
            return {"step_size_scale": step_size}
        epsilon = self.epsilon_schedule(step)
        return {"epsilon_scale": epsilon, "step_size_scale": step_size * epsilon}

    def _keeps_shapes(self):
        """Returns whether attacks must keep the shape of the batch."""
        if self.static_shapes is not None:
            return self.static_shapes
        return bool(self.jit_compile or self._jit_attack or distribution.is_tpu(self.distribute_strategy))

    def _adversarial(self, x, y, seed):
        """Returns the training attack's images for a batch."""
        attack = self.attack
        with activations.training_attack():
            attacked = self._batch_statistics if self.attack_batch_norm == "batch" else self._frozen(self._low)
            if self.objective.sets_attack_loss:
                clean = gradients.logits(attacked, tf.cast(x, tf.float32))
                rows = losses.label_rows(y, clean.shape[-1])
                attack = attack.with_loss(self.objective.attack_loss(rows, clean))
            attack = functools.partial(attack, attacked, static_shapes=self._keeps_shapes())
            if self._jit_attack:  # the attack alone: XLA cannot compile Keras' whole step on several replicas
                attack = tf.function(attack, jit_compile=True, autograph=False)
            return attack(x, losses.hard_labels(y), seed, **self._scales())

    def _near(self, x, seed):
        """Returns a random point of the ball around each image, for the gradient alignment; None without one."""
        if self.gradient_alignment is None:
            return None
        epsilon = self._scales().get("epsilon_scale", 1.0)
        return self.attack.ball.sample(randomness.fold(seed, _ALIGNMENT), tf.cast(x, tf.float32), epsilon)

    def _replay(self, x, y, sample_weight, seed):
        """Takes the steps of `Free`, and returns the logits of the last one."""
        ball, scales = self.attack.ball, self._scales()
        epsilon, step_size = scales.get("epsilon_scale", 1.0), scales["step_size_scale"]
        points = ball.sample(seed, x, epsilon)
        for _ in range(self.objective.replays):
            logits, gradient = self._descend(x, points, y, sample_weight)
            step = self.attack.resolved_step_size * step_size
            points = ball.project(points + step * ball.steepest(gradient), x, epsilon)
        return logits

    def _descend(self, clean, adversarial, y, sample_weight, near=None):
        """Takes a step of the optimizer. Returns the adversarial logits and, for `Free`, the gradient of the images."""
        forward = functools.partial(self._objective, clean, adversarial, y, sample_weight, near)
        if self.weight_perturbation is not None:
            forward = self.weight_perturbation.perturb(forward, self.classifier)
        weights = self.trainable_variables
        sources = [*weights, adversarial] if self.objective.replays else weights
        loss, logits, computed = gradients.training_gradient(forward, sources, self.optimizer.scale_loss)
        self.optimizer.apply(distribution.clip_summed_gradients(self.optimizer, computed[: len(weights)]), weights)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        tracker = next(metric for metric in self.metrics if metric.name == "loss")
        tracker.update_state(loss * replicas, sample_weight=tf.shape(logits)[0])
        return logits, computed[len(weights)] if self.objective.replays else None

    def _objective(self, clean, adversarial, y, sample_weight, near):
        """Returns the objective of a batch, divided by the number of replicas as in Keras, and adversarial logits."""
        clean_outputs = self._clean_outputs(clean)
        outputs = self(adversarial, training=True)
        compared = clean_outputs if self.objective.compiled_loss == "clean" else outputs
        loss = self.compute_loss(adversarial, y, compared, sample_weight, training=True)
        if self.objective.clean_passes == 2:
            self(clean, training=True)  # for the moving statistics of batch norms
        labels, logits = losses.hard_labels(y), _as_logits(outputs)
        with tf.control_dependencies([validation.assert_labels(labels, logits)]):
            penalty = self.objective.penalty(tf.identity(labels), logits, _as_logits(clean_outputs))
            loss = tf.identity(loss)
        if near is not None:
            rows = losses.label_rows(y, logits.shape[-1])
            alignment = self.gradient_alignment.penalty(self._batch_statistics, rows, clean, near)
            penalty = alignment if penalty is None else penalty + alignment
        if penalty is None:
            return loss, outputs
        if sample_weight is not None:
            penalty *= tf.reshape(tf.cast(sample_weight, penalty.dtype), [-1])
        return loss + tf.reduce_mean(penalty) / tf.distribute.get_strategy().num_replicas_in_sync, outputs

    def _frozen(self, folded):
        """Returns the classifier in inference mode. In a graph its batch norms are folded, once for all steps."""
        return self._inference if tf.executing_eagerly() else folded.bind()

    def _clean_outputs(self, clean):
        if not self.objective.sees_clean:
            return None
        return self(clean, training=True) if self.objective.clean_statistics else self._batch_statistics(clean)

    def _batch_statistics(self, images):
        with scopes.without_updates(self.classifier):
            return self.classifier(images, training=True)

    def _is_correct(self, images, labels):
        return judging.judge(self, images, labels).is_correct

    def _replica_seed(self, step):
        seed = tf.stack([tf.cast(self.seed, tf.int32), tf.cast(step, tf.int32)])
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return randomness.fold(seed, replica)


def _holds_optimizer(path):
    if not (os.path.isfile(path) and h5py.is_hdf5(path)):
        return False  # Keras says what is wrong
    with h5py.File(path) as file:
        return "optimizer" in file


@contextlib.contextmanager
def _with_optimizer(model, optimizer):
    """Gives a classifier the optimizer of its trainer, so that Keras saves or loads both together."""
    if optimizer is None:
        yield
        return
    own = getattr(model, "optimizer", None)
    model.optimizer = optimizer
    try:
        yield
    finally:
        if own is None:
            del model.optimizer
        else:
            model.optimizer = own


def _pixels(images):
    """Returns images as floats, as attacks make them. In uint8, a network that computes 2 * x would wrap around."""
    images = tf.convert_to_tensor(images)
    return images if images.dtype.is_floating else tf.cast(images, tf.float32)


def _as_logits(outputs):
    """Returns float32 logits, also for a network in low precision; None for None.

    One logit z becomes [-z / 2, z / 2], whose softmax is sigmoid(z), as in the compiled loss.
    """
    if outputs is None:
        return None
    outputs = tf.cast(outputs, tf.float32)
    return losses.two_classes(outputs / 2 if outputs.shape[-1] == 1 else outputs)


def _wrong_where_not_finite(y, outputs):
    """Replaces outputs that are not finite by those of a wrong class: argmax would return class 0 for NaN."""
    labels, classes = losses.hard_labels(y), outputs.shape[-1]
    wrong = 1 - 2 * labels[:, None] if classes == 1 else -tf.one_hot(labels, classes, dtype=tf.int32)
    return tf.where(losses.is_finite(outputs)[:, None], outputs, tf.cast(wrong, outputs.dtype))


def _check_attack(name, attack):
    if not isinstance(attack, Attack):
        raise ValueError(f"{name} must be an attack, such as PGD(LinfBall(4), steps=2). Received: {attack!r}")
    validation.check_untargeted(attack)


def _batch_norm_mode(asked, attack_precision, objective):
    """Returns the mode in which the network is attacked in training."""
    if asked not in (None, "frozen", "batch"):
        raise ValueError(f'attack_batch_norm must be "frozen" or "batch". Received: {asked!r}')
    if objective.replays and (asked == "frozen" or attack_precision is not None):
        raise ValueError(
            f"{objective!r} takes the attack's gradients from the training step itself: attack_batch_norm is "
            f'"batch", and attack_precision None. Received: {asked!r} and {attack_precision!r}'
        )
    if asked == "batch" and attack_precision is not None:
        raise ValueError('attack_precision is for attack_batch_norm="frozen". Received: "batch"')
    return asked or ("batch" if objective.replays else "frozen")


def _check_alignment(alignment, objective, attack):
    if alignment is None:
        return
    if not isinstance(alignment, GradAlign):
        raise ValueError(f"gradient_alignment must be GradAlign(weight), or None. Received: {alignment!r}")
    if objective.replays:
        raise ValueError(
            f"{objective!r} moves images and weights by one gradient: it takes no gradient_alignment. "
            f"Received: {alignment!r}"
        )
    if attack.ball is None:
        raise ValueError(f"gradient_alignment needs an attack with a ball. Received: {attack!r}")


def _check_objective(objective, attack):
    if not isinstance(objective, Objective):
        raise ValueError(f"objective must be an objective, such as TRADES(6.0). Received: {objective!r}")
    if objective.replays and not attack.accepts_scale:
        raise ValueError(
            f"{objective!r} takes ball and step size from the attack, which must be PGD. Received: {attack!r}"
        )
    if not objective.sets_attack_loss:
        return
    try:
        attack.with_loss(losses.cross_entropy)
    except ValueError:
        raise ValueError(
            f"{objective!r} needs an attack whose loss it can choose, such as PGD. Received: {attack!r}"
        ) from None
    if objective.needs_random_start and not attack.random_start:
        raise ValueError(
            f"{objective!r} has no gradient at the image itself: the attack needs random_start=True. "
            f"Received: {attack!r}"
        )
