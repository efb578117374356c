"""Adversarial training through Keras' own compile and fit."""

import contextlib
import dataclasses
import functools
import os

import h5py
import keras
import numpy as np
import tensorflow as tf

from keras_sat import activations, internals, losses
from keras_sat.attacks import PGD, agreement, gradients, inputs, randomness, threats
from keras_sat.models import classifier, folding
from keras_sat.training import distribution, schedules
from keras_sat.training.free import Free
from keras_sat.training.objectives import AdversarialTraining


class AdversarialModel(internals.FirstBatch, keras.Model):
    """Trains a Keras classifier on adversarial examples made from each batch.

        model = keras_sat.models.ResNet20(activation="silu", classes=10)
        trainer = AdversarialModel(model, PGD(LinfBall(8), steps=2))
        trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        trainer.fit(train_dataset, validation_data=test_dataset)

    `train_step` perturbs the batch and takes Keras' own step on it, so loss and metrics in the logs of training are
    those on the adversarial images (the loss: the objective's). `evaluate` reports the compiled ones on the clean
    images, and `robust_accuracy`: the share of examples classified correctly both clean and under `evaluation_attack`.
    `predict` and calls are clean inference. The attack ascends its loss for the hard label, whatever the training loss
    does (label smoothing, say).

    The noise of the attack is drawn from `seed`, the optimizer's iterations and the replica: the same seed gives the
    same run, a resumed run goes on as the uninterrupted one, and no two replicas draw the same. `evaluate` draws the
    same noise at each call.

    Args:
        model: a built Keras classifier from images [batch, height, width, channels] to logits [batch, classes]; from
            this package, keras.applications or anywhere else. Its weights are the ones trained; it is what is saved
            and exported (`.model`).
        attack: makes the training examples, such as `PGD(LinfBall(4), steps=1, clean_start=0.2)`, the paper's; or
            `Free(LinfBall(4), replays=4)`.
        evaluation_attack: used by `evaluate` and for validation; default: `attack`, never from a clean start; for
            `Free` PGD-10.
        attack_batch_norm: how the model runs while it is attacked in training: "frozen", the paper's, in inference
            mode; or "batch", in training mode (statistics of the batch, dropout live), without any update. The
            evaluation attack always sees inference mode.
        attack_precision: None; or "mixed_bfloat16" or "mixed_float16", in which the training attack alone computes:
            where the hardware gains by it, it costs less and finds nearly the same examples. For "frozen".
        objective: `AdversarialTraining()`, the default; `TRADES(beta)` or `MART(beta)`.
        weight_perturbation: None, or `AWP(gamma)`.
        epsilon_schedule: None, or a function of the optimizer's iterations (an int64 tensor) that returns the factor by
            which epsilon and step size of the training attack are multiplied, such as
            `keras.optimizers.schedules.PolynomialDecay(0.0, 1000, 1.0)`, which lets them grow over 1,000 iterations.
        step_size_schedule: the same for the step size alone.
        seed: of the attack's noise.

    `trainer.step_size_factor` is a variable, 1 at first, by which the step size is multiplied too: what a callback
    assigns to it holds from the next batch on.

    Labels are integers [batch] or [batch, 1], or one-hot [batch, classes]. Sample weights weigh the loss and the
    metrics, not the attack.

    Raises:
        ValueError: for a model that is not built or ends in a softmax, an unknown `attack_batch_norm`, an
            `attack_precision` that the model cannot be copied in, a targeted attack, or an objective that the attack
            cannot serve. In `fit` and `evaluate`, for a first batch of images outside the attack's bounds, images in
            0..1 where the bounds are 0..255, or labels that are not those of the classes. (For images also
            tf.errors.InvalidArgumentError, which later batches raise, unless XLA compiles the step.)

    The attacks run on a faster copy of the model, if that computes the same: with batch norms folded, and with
    `attack_precision`. At the first batch each copy is compared with the model, logits and input gradients. Where they
    differ, the model itself is attacked, and a warning says why.
    """

    def __init__(
        self,
        model,
        attack,
        evaluation_attack=None,
        attack_batch_norm="frozen",
        seed=0,
        *,
        attack_precision=None,
        objective=AdversarialTraining(),  # noqa: B008 - frozen
        weight_perturbation=None,
        epsilon_schedule=None,
        step_size_schedule=None,
        **kwargs,
    ):
        classifier.check(model)
        _check_attack("attack", attack)
        if evaluation_attack is not None:
            _check_attack("evaluation_attack", evaluation_attack)
        if attack_batch_norm not in ("frozen", "batch"):
            raise ValueError(f'attack_batch_norm must be "frozen" or "batch". Received: {attack_batch_norm!r}')
        if attack_precision is not None and attack_batch_norm == "batch":
            raise ValueError('attack_precision is for attack_batch_norm="frozen". Received: "batch"')
        _check_objective(objective, attack)
        # The policy is the model's, for the loss scaling that Keras derives from it. The images are not cast to it
        # here: bfloat16 rounds pixels above 127 to whole levels, out of the ball. The model's own layers cast.
        super().__init__(dtype=model.dtype_policy, autocast=False, **kwargs)
        self.model = model
        self.attack = attack
        self.evaluation_attack = evaluation_attack or _evaluation_attack(attack)
        self.attack_batch_norm = attack_batch_norm
        self.objective = objective
        self.weight_perturbation = weight_perturbation
        self.epsilon_schedule = epsilon_schedule
        self.step_size_schedule = step_size_schedule
        self.seed = seed
        # Kept, not made at each step: an attack that runs eagerly compiles its loop once for this object.
        self._inference = functools.partial(model, training=False)
        self._folding = folding.Folding(model)
        self._low = folding.Folding(model, attack_precision) if attack_precision else self._folding
        self._attack_precision = attack_precision
        outputs = getattr(model, "outputs", None)  # one logit is for two classes
        self._classes = max(2, outputs[0].shape[-1]) if outputs else None  # None: the model does not say
        self._is_judged = self._is_compared = False
        self.robust_accuracy = keras.metrics.Mean(name="robust_accuracy")
        self.step_size_factor = self.add_weight(
            shape=(), initializer="ones", dtype="float32", trainable=False, name="step_size_factor"
        )
        self.built = True

    def call(self, inputs, training=False):
        if training:
            return self.model(inputs, training=True)
        return distribution.pad_empty_replica(self._inference, inputs)

    def compile(self, optimizer="rmsprop", *args, jit_compile="auto", **kwargs):
        """Compiles as Keras does; under several replicas `jit_compile=True` compiles the attack alone, which is most.

        Raises:
            ValueError: for a loss that takes probabilities, for the model returns logits; under several replicas, for
                what would be wrong there (see `distribution.check`).
        """
        losses.check_takes_logits(args[0] if args else kwargs.get("loss"))
        replicas = self.distribute_strategy.num_replicas_in_sync
        self._jit_attack = jit_compile is True and replicas > 1
        super().compile(optimizer, *args, jit_compile=False if self._jit_attack else jit_compile, **kwargs)
        distribution.check(self.model, self.optimizer, self.distribute_strategy)

    def fit(self, x=None, y=None, *args, **kwargs):
        """Trains as Keras does. What is wrong with labels or validation data is said before the first epoch."""
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

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        seed = self._replica_seed(self.optimizer.iterations)
        attack = self._scheduled_attack()
        if isinstance(attack, Free):
            logits = self._replay(attack, tf.cast(x, tf.float32), y, sample_weight, seed)
        else:
            adversarial = self._adversarial(attack, x, losses.hard_labels(y), seed)
            logits, _ = self._descend(x, adversarial, y, sample_weight)
        logs = self.compute_metrics(x, y, logits, sample_weight=sample_weight)
        return {name: value for name, value in logs.items() if name != self.robust_accuracy.name}

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        labels = losses.hard_labels(y)
        attack = functools.partial(self.evaluation_attack, self._frozen(self._folding), seed=self._replica_seed(-1))
        adversarial = distribution.pad_empty_replica(attack, x, labels)
        robust = self._is_correct(x, labels) & self._is_correct(adversarial, labels)
        self.robust_accuracy.update_state(robust, sample_weight)
        return super().test_step(data)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the metrics; an example whose logits are not finite counts as misclassified."""
        return super().compute_metrics(x, y, _wrong_where_not_finite(y, y_pred), sample_weight=sample_weight)

    def make_train_function(self, force=False):
        self.train_function = self._own_loop(self.train_step, self.train_function, force)
        super().make_train_function()

    def make_test_function(self, force=False):
        self.test_function = self._own_loop(self.test_step, self.test_function, force)
        super().make_test_function()

    def save(self, filepath, **kwargs):
        """Saves the classifier, `.model`: the trainer around it is code, not weights."""
        return self.model.save(filepath, **kwargs)

    def save_weights(self, filepath, **kwargs):
        """Saves the weights of the classifier, `.model`. The optimizer's lie beside them, where it passes them over."""
        with _lent_optimizer(self.model, self.optimizer):
            return self.model.save_weights(filepath, **kwargs)

    def load_weights(self, filepath, **kwargs):
        """Loads weights of the classifier, `.model`, whether it or its trainer saved them: then the optimizer's too."""
        with _lent_optimizer(self.model, self.optimizer if _holds_optimizer(filepath) else None):
            self.model.load_weights(filepath, **kwargs)
        # What was traced may hold what layers derived from the weights before.
        for function, make in (
            ("train_function", self.make_train_function),
            ("test_function", self.make_test_function),
        ):
            if getattr(self, function) is not None:
                make(force=True)
        self.predict_function = None

    def export(self, filepath, **kwargs):
        """Exports the classifier, `.model`, as Keras does; `keras_sat.export` writes more."""
        return self.model.export(filepath, **kwargs)

    def get_config(self):
        raise NotImplementedError(
            "An AdversarialModel is saved as its classifier: call trainer.save(path), or "
            "keras.models.save_model(trainer.model, path), and wrap what you load in an AdversarialModel again."
        )

    def _own_loop(self, step, function, force):
        """Returns the function there is, a new one where Keras' own would fail, or None, for Keras to make it."""
        if function is not None and not force:
            return function
        if not self.run_eagerly and distribution.needs_own_loop(self.distribute_strategy, self.steps_per_execution):
            return distribution.make_step_function(self.distribute_strategy, step, self.steps_per_execution)
        return None

    def see_first_batch(self, batch):
        """Checks the batch, and compares the copies that will be attacked with the model."""
        self._check_batch(batch)

    def _check_batch(self, batch):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        if isinstance(x, (dict, tuple, list)):
            raise ValueError(f"An image classifier takes one tensor of images. Received a {type(x).__name__}")
        labels, images = losses.hard_labels(y, self._classes), tf.convert_to_tensor(x)
        if not len(labels):  # of a small batch, a replica's share
            return
        classifier.check_images(self.model, images)
        for ball in {self.attack.ball, self.evaluation_attack.ball}:
            inputs.check_batch(images, labels, ball)
        if not self._is_judged:
            inputs.check_logits(self._inference, images, labels)
            self._is_judged = True
        if not (self._is_compared or self.run_eagerly):
            self._compare_copies(images)
            self._is_compared = True

    def _compare_copies(self, images):
        """Attacks the model itself in place of a copy that does not compute what the model computes."""
        exact = agreement.LOW if classifier.computes_low(self.model) else agreement.EXACT
        self._compare(self._folding, "with folded batch norms", images, exact)
        if self._low is not self._folding:
            self._compare(self._low, f"in {self._attack_precision}", images, agreement.LOW)
            self._low = self._low if self._low.is_copy else self._folding

    def _compare(self, copy, what, images, tolerance):
        if copy.is_copy and not agreement.holds(self._inference, copy.bind(), images, tolerance, self.model.name, what):
            copy.give_up()

    def _scheduled_attack(self):
        step, factor = self.optimizer.iterations, tf.convert_to_tensor(self.step_size_factor.value)
        if self.step_size_schedule is not None:
            factor = factor * self.step_size_schedule(step)
        epsilon_factor = 1.0 if self.epsilon_schedule is None else self.epsilon_schedule(step)
        return schedules.scaled(self.attack, epsilon_factor, factor)

    def _adversarial(self, attack, x, labels, seed):
        with activations.training_attack():
            attacked = self._batch_statistics if self.attack_batch_norm == "batch" else self._frozen(self._low)
            if self.objective.attack_loss is not None:
                loss = self.objective.attack_loss(gradients.logits(attacked, tf.cast(x, tf.float32)))
                attack = schedules.replaced(attack, loss=loss)
            if self._jit_attack:  # around the attack alone: Keras' whole step cannot be compiled on replicas
                compiled = tf.function(functools.partial(attack, attacked), jit_compile=True, autograph=False)
                return compiled(x, labels, seed)
            return attack(attacked, x, labels, seed)

    def _replay(self, attack, x, y, sample_weight, seed):
        """Takes the steps of `Free`, and returns the logits of the last."""
        points = attack.ball.sample(seed, x)
        for _ in range(attack.replays):
            logits, gradient = self._descend(x, points, y, sample_weight)
            points = attack.ball.project(points + attack.resolved_step_size * attack.ball.steepest(gradient), x)
        return logits

    def _descend(self, clean, adversarial, y, sample_weight):
        """Takes Keras' step on a batch; returns the adversarial logits, and for `Free` the images' gradient."""
        forward = functools.partial(self._objective, clean, adversarial, y, sample_weight)
        if self.weight_perturbation is not None:
            forward = self.weight_perturbation.perturb(forward, self.model)
        weights = self.trainable_variables
        sources = [*weights, adversarial] if isinstance(self.attack, Free) else weights
        loss, logits, found = gradients.of_training(forward, sources, self.optimizer.scale_loss)
        self.optimizer.apply(distribution.clip_summed_gradients(self.optimizer, found[: len(weights)]), weights)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        tracker = next(metric for metric in self.metrics if metric.name == "loss")
        tracker.update_state(loss * replicas, sample_weight=tf.shape(logits)[0])
        return logits, found[len(weights)] if len(found) > len(weights) else None

    def _objective(self, clean, adversarial, y, sample_weight):
        """Returns the objective of a batch, divided by the number of replicas as Keras does, and adversarial logits."""
        clean_outputs = self(clean, training=True) if self.objective.sees_clean else None
        outputs = self(adversarial, training=True)
        compared = clean_outputs if self.objective.compiled_loss == "clean" else outputs
        loss = self.compute_loss(adversarial, y, compared, sample_weight, training=True)
        labels, logits = losses.hard_labels(y), _as_logits(outputs)
        with tf.control_dependencies([inputs.assert_labels(labels, logits)]):
            penalty = self.objective.penalty(tf.identity(labels), logits, _as_logits(clean_outputs))
            loss = tf.identity(loss)
        if penalty is None:
            return loss, outputs
        if sample_weight is not None:
            penalty *= tf.reshape(tf.cast(sample_weight, penalty.dtype), [-1])
        return loss + tf.reduce_mean(penalty) / tf.distribute.get_strategy().num_replicas_in_sync, outputs

    def _frozen(self, folded):
        """Returns the model in inference mode; in a graph its batch norms are folded, once for all steps."""
        return self._inference if tf.executing_eagerly() else folded.bind()

    def _batch_statistics(self, images):
        with keras.StatelessScope():  # swallows the updates of the moving statistics
            return self.model(images, training=True)

    def _is_correct(self, images, labels):
        return losses.is_correct(labels, gradients.logits(self, images))

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
def _lent_optimizer(model, optimizer):
    """Gives a classifier its trainer's optimizer, for Keras to save or load the two together."""
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


def _as_logits(outputs):
    """Returns float32 logits, also of a network that computes in low precision; None as it is.

    One logit z becomes [-z / 2, z / 2], of which the softmax is sigmoid(z), as in the compiled loss.
    """
    if outputs is None:
        return None
    outputs = tf.cast(outputs, tf.float32)
    return losses.two_classes(outputs / 2 if outputs.shape[-1] == 1 else outputs)


def _wrong_where_not_finite(y, outputs):
    """Returns outputs in which those that are not finite are replaced by wrong ones: argmax takes NaN for class 0."""
    labels, classes = losses.hard_labels(y), outputs.shape[-1]
    wrong = 1 - 2 * labels[:, None] if classes == 1 else -tf.one_hot(labels, classes, dtype=tf.int32)
    return tf.where(losses.is_finite(outputs)[:, None], outputs, tf.cast(wrong, outputs.dtype))


def _check_attack(name, attack):
    if not (isinstance(getattr(attack, "ball", None), threats.Ball) and not isinstance(attack, type)):
        raise ValueError(f"{name} must be an attack, such as PGD(LinfBall(4), steps=2). Received: {attack!r}")
    inputs.check_untargeted(attack)


def _evaluation_attack(attack):
    if isinstance(attack, Free):
        return PGD(attack.ball)
    return dataclasses.replace(attack, clean_start=0.0) if hasattr(attack, "clean_start") else attack


def _check_objective(objective, attack):
    if isinstance(attack, Free) and objective != AdversarialTraining():
        raise ValueError(f"Free has no attack of its own to serve {objective!r} with: it is for AdversarialTraining().")
    if objective.attack_loss is not None and not hasattr(attack, "loss"):
        raise ValueError(f"{objective!r} needs an attack whose loss it can choose, such as PGD. Received: {attack!r}")
    if objective.attack_loss is not None and not getattr(attack, "random_start", True):
        raise ValueError(
            f"{objective!r} has no gradient at the image itself: the attack needs random_start=True. "
            f"Received: {attack!r}"
        )
