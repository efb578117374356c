"""Adversarial training through Keras' own compile and fit."""

import dataclasses
import functools

import keras
import tensorflow as tf

from keras_sat import activations, losses
from keras_sat.attacks import inputs, randomness
from keras_sat.models import classifier, folding


class AdversarialModel(keras.Model):
    """Trains a Keras classifier on adversarial examples made from each batch.

        model = keras_sat.models.ResNet20(activation="silu", classes=10)
        trainer = AdversarialModel(model, PGD(LinfBall(8), steps=2))
        trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        trainer.fit(train_dataset, validation_data=test_dataset)

    `train_step` perturbs the batch and hands it to Keras' own step, so loss and metrics in the logs of training are
    those on the adversarial images. `evaluate` reports them on the clean images, and `robust_accuracy`: the share of
    examples classified correctly both clean and under `evaluation_attack`. `predict` and calls are clean inference.
    The attack ascends its loss for the hard label, whatever the training loss does (label smoothing, say).

    The noise of the attack is drawn from `seed`, the optimizer's iterations and the replica: the same seed gives the
    same run, a resumed run goes on as the uninterrupted one, and no two replicas draw the same. `evaluate` draws the
    same noise at each call.

    Args:
        model: a built Keras classifier from images [batch, height, width, channels] to logits [batch, classes]; from
            this package, keras.applications or anywhere else. Its weights are the ones trained; it is what is saved
            and exported (`.model`).
        attack: makes the training examples, such as `PGD(LinfBall(4), steps=1, clean_start=0.2)`, the paper's.
        evaluation_attack: used by `evaluate` and for validation; default: `attack`, never from a clean start.
        attack_batch_norm: how the model runs while it is attacked in training: "frozen", the paper's, in inference
            mode; or "batch", in training mode (statistics of the batch, dropout live), without any update. The
            evaluation attack always sees inference mode.
        attack_precision: None; or "mixed_bfloat16" or "mixed_float16", in which the training attack alone computes:
            where the hardware gains by it, it costs less and finds nearly the same examples. For "frozen".
        seed: of the attack's noise.

    Labels are integers [batch] or [batch, 1], or one-hot [batch, classes]. Sample weights weigh the loss and the
    metrics, not the attack.

    Raises:
        ValueError: for a model that is not built or ends in a softmax, an unknown `attack_batch_norm`, or an
            `attack_precision` that the model cannot be copied in.
        tf.errors.InvalidArgumentError: in `fit`, for images outside the attack's bounds, or that reach from 0 to 1
            where the bounds are 0..255.
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
        **kwargs,
    ):
        classifier.check(model)
        if attack_batch_norm not in ("frozen", "batch"):
            raise ValueError(f'attack_batch_norm must be "frozen" or "batch". Received: {attack_batch_norm!r}')
        if attack_precision is not None and attack_batch_norm == "batch":
            raise ValueError('attack_precision is for attack_batch_norm="frozen". Received: "batch"')
        # The policy is the model's, for the loss scaling that Keras derives from it. The images are not cast to it
        # here: bfloat16 rounds pixels above 127 to whole levels, out of the ball. The model's own layers cast.
        super().__init__(dtype=model.dtype_policy, autocast=False, **kwargs)
        self.model = model
        self.attack = attack
        self.evaluation_attack = evaluation_attack or _without_clean_start(attack)
        self.attack_batch_norm = attack_batch_norm
        self.seed = seed
        # Kept, not made at each step: an attack that runs eagerly compiles its loop once for this object.
        self._inference = functools.partial(model, training=False)
        self._folding = folding.Folding(model)
        self._low = folding.Folding(model, attack_precision) if attack_precision else self._folding
        self.robust_accuracy = keras.metrics.Mean(name="robust_accuracy")
        self.built = True

    def call(self, inputs, training=False):
        return self.model(inputs, training=training)

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        seed = self._replica_seed(self.optimizer.iterations)
        with tf.control_dependencies([inputs.assert_not_scaled(x, self.attack.ball.bounds)]):
            x = tf.identity(x)
        with activations.training_attack():
            attacked = self._batch_statistics if self.attack_batch_norm == "batch" else self._frozen(self._low)
            adversarial = self.attack(attacked, x, losses.hard_labels(y), seed)
        logs = super().train_step((adversarial, y, sample_weight))
        return {name: value for name, value in logs.items() if name != self.robust_accuracy.name}

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        labels = losses.hard_labels(y)
        adversarial = self.evaluation_attack(self._frozen(self._folding), x, labels, self._replica_seed(-1))
        robust = self._is_correct(x, labels) & self._is_correct(adversarial, labels)
        self.robust_accuracy.update_state(robust, sample_weight)
        return super().test_step(data)

    def save(self, filepath, **kwargs):
        """Saves the classifier, `.model`: the trainer around it is code, not weights."""
        return self.model.save(filepath, **kwargs)

    def _frozen(self, folded):
        """Returns the model in inference mode; in a graph its batch norms are folded, once for all steps."""
        return self._inference if tf.executing_eagerly() else folded.bind()

    def _batch_statistics(self, images):
        with keras.StatelessScope():  # swallows the updates of the moving statistics
            return self.model(images, training=True)

    def _is_correct(self, images, labels):
        return tf.argmax(self._inference(images), axis=-1, output_type=tf.int32) == labels

    def _replica_seed(self, step):
        seed = tf.stack([tf.cast(self.seed, tf.int32), tf.cast(step, tf.int32)])
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return randomness.fold(seed, replica)


def _without_clean_start(attack):
    return dataclasses.replace(attack, clean_start=0.0) if hasattr(attack, "clean_start") else attack
