import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sat
from keras_sat.attacks import PGD, LinfBall
from keras_sat.training import (
    AdversarialModel,
    AveragedWeights,
    CatastrophicOverfittingGuard,
    Checkpoint,
    PerturbationImages,
    RobustAccuracy,
    callbacks,
)

STRONG = PGD(LinfBall(64), steps=10)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def trainer_of(model, attack, optimizer="sgd", **options):
    trainer = AdversarialModel(model, attack, **options)
    trainer.compile(optimizer, LOSS, metrics=["accuracy"])
    return trainer


def restorer(trainer):
    """Returns a function that sets a trainer back to its state of now. What was traced of it is kept."""
    trainer.optimizer.build(trainer.trainable_variables)
    state = [(v, keras.ops.convert_to_numpy(v)) for v in (*trainer.variables, *trainer.optimizer.variables)]

    def restore():
        for variable, value in state:
            variable.assign(value)

    return restore


def test_robust_accuracy_is_measured_every_few_epochs_and_can_be_monitored(tiny_model, images, labels, tmp_path):
    model, attack = tiny_model(), PGD(LinfBall(2), steps=3)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(3)
    measure = RobustAccuracy(dataset, attack, every=2)
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="val_robust_accuracy", mode="max", save_best_only=True
    )
    trainer = trainer_of(model, attack, keras.optimizers.Adam(0.02))
    history = trainer.fit(images, labels, epochs=6, verbose=0, callbacks=[measure, best]).history
    values = history["val_robust_accuracy"]
    assert values[1] == values[2]
    assert values[3] == values[4]
    assert max(values) > values[0]
    saved = keras.models.load_model(tmp_path / "best.keras")
    assert callbacks.robust_accuracy(saved, dataset, attack) == max(values)


def test_a_resumed_run_measures_robust_accuracy_after_the_same_epochs(tiny_model, images, labels, tmp_path):
    trainer = trainer_of(tiny_model(), attack := PGD(LinfBall(2), steps=1))
    for epochs in (1, 2):  # ends after the first epoch, and goes on
        measure = RobustAccuracy((images, labels), attack, every=3)
        with Checkpoint(tmp_path, 1, callbacks=[measure]) as checkpoint:
            checkpoint.restore(trainer)
            if epochs == 2:
                measure.dataset = None  # the second epoch repeats the value
            options = {"epochs": epochs, "initial_epoch": checkpoint.epoch, "batch_size": 8, "verbose": 0}
            trainer.fit(images, labels, callbacks=[measure, checkpoint], **options)
    values = [logs["val_robust_accuracy"] for logs in checkpoint.history.values()]
    assert values[0] == values[1]


def test_averaged_weights_are_validated_and_the_others_given_back_bit_for_bit(tiny_model, images, labels):
    after = []
    for validation in (None, (images, labels)):
        model = tiny_model()
        optimizer = keras.optimizers.SGD(0.2, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=None)
        trainer = trainer_of(model, PGD(LinfBall(2), steps=1), optimizer)
        options = {"validation_data": validation, "shuffle": False, "callbacks": [AveragedWeights()]}
        history = trainer.fit(images, labels, batch_size=4, epochs=3, verbose=0, **options).history
        after.append([weight.tobytes() for weight in model.get_weights()])
    assert after[0] == after[1]
    evaluated = trainer.evaluate(images, labels, verbose=0, return_dict=True)  # fit ends with the averages
    assert history["val_loss"][-1] == pytest.approx(evaluated["loss"], rel=1e-5)


def test_robust_accuracy_is_that_of_the_averaged_weights(tiny_model, images, labels, monkeypatch):
    measured, trained = [], []
    monkeypatch.setattr(callbacks, "robust_accuracy", lambda model, *_: measured.append(model.get_weights()) or 0.5)
    optimizer = keras.optimizers.SGD(0.2, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=None)
    trainer = trainer_of(tiny_model(), PGD(LinfBall(2), steps=1), optimizer)
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: trained.append(trainer.classifier.get_weights()))
    watch = [RobustAccuracy((images, labels), PGD(LinfBall(2), steps=1)), look]
    trainer.fit(images, labels, batch_size=4, verbose=0, callbacks=watch)  # ends with the averages
    for seen, average in zip(measured[0], trainer.classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(seen, average)
    assert any((seen != own).any() for seen, own in zip(measured[0], trained[0]))  # these go on


def test_before_the_first_step_there_are_no_averages(tiny_model, images, labels):
    optimizer = keras.optimizers.SGD(0.2, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=None)
    trainer = trainer_of(tiny_model(), PGD(LinfBall(2), steps=1), optimizer)
    losses = [trainer.evaluate(images, labels, verbose=0, callbacks=c)[0] for c in ([], [AveragedWeights()])]
    assert losses[0] == losses[1]


def test_perturbations_are_shown_in_tensorboard(tiny_model, images, labels, tmp_path):
    attack = PGD(LinfBall(8), steps=2)
    show = PerturbationImages(images[:3], np.eye(4)[labels[:3]], attack, str(tmp_path), every=2)  # one-hot
    trainer_of(tiny_model(), attack).fit(images, labels, epochs=4, verbose=0, callbacks=[show])
    (path,) = tmp_path.glob("events*")
    seen = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            width, height, *pictures = value.tensor.string_val
            seen.setdefault(value.tag, []).append((event.step, int(width), len(pictures)))
            assert tf.io.decode_png(pictures[0]).shape == (8, 8, 3)
    expected = [(1, 8, 3), (3, 8, 3)]
    assert seen == {f"attack/{name}": expected for name in ("clean", "adversarial", "perturbation")}


@pytest.fixture(scope="module")
def held_out():
    return keras_sat.data.load("fashion_mnist_mini", "test[:200]", 200, image_size=14)


@pytest.fixture(scope="module")
def collapsing(held_out):
    """Returns a function that runs a training which collapses: a ReLU network, and one step of a large epsilon.

    All runs use one trainer, which begins each from the same state: so it is traced once.
    """
    keras.utils.set_random_seed(0)
    layers = [keras.Input((14, 14, 1)), keras.layers.Rescaling(2 / 255, -1.0)]
    layers += [keras.layers.Conv2D(32, 3, 2, "same", activation="relu")]
    layers += [keras.layers.Conv2D(64, 3, 2, "same", activation="relu"), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(128, "relu"), keras.layers.Dense(10)])
    trainer = trainer_of(model, PGD(LinfBall(64), steps=1, step_size=128.0), keras.optimizers.Adam(0.003))
    restore = restorer(trainer)

    def train(**options):
        restore()
        guard = CatastrophicOverfittingGuard(held_out, STRONG, every=50, **options)
        data = keras_sat.data.load(
            "fashion_mnist_mini", "train[:6000]", 50, image_size=14, training=True, augment=False
        )
        history = trainer.fit(data, epochs=3, shuffle=False, verbose=0, callbacks=[guard]).history
        return trainer, guard, history

    return train


@pytest.fixture(scope="module")
def collapsed(collapsing):
    """Returns the robust accuracies of such a run without a guard, and its accuracies under the training attack."""
    _, guard, history = collapsing(collapse=1e-6)
    return list(guard.probes.values()), history["adversarial_accuracy"]


def test_the_guard_stops_a_run_that_collapses(collapsing, collapsed, held_out):
    probes, own = collapsed
    assert min(probes) < max(probes) / 3
    assert own[-1] > own[0] + 0.2  # and looks better and better meanwhile
    with pytest.warns(UserWarning, match="Catastrophic overfitting at step.*training ends"):
        trainer, guard, _ = collapsing()
    (step,) = guard.collapses
    *_, before, last = guard.probes.values()
    assert step == max(guard.probes) < 360
    assert last < before
    assert callbacks.robust_accuracy(trainer.classifier, held_out, STRONG) == pytest.approx(before)
    assert float(trainer.step_size_factor.numpy()) == 1


def test_the_guard_rolls_back_and_goes_on_with_a_smaller_step(collapsing, collapsed, held_out):
    with pytest.warns(UserWarning, match="Catastrophic overfitting at step.*the step size is multiplied by 0.25"):
        trainer, guard, history = collapsing(action="roll_back", factor=0.25)
    assert len(history["loss"]) == 3
    assert len(guard.probes) == 7
    assert float(trainer.step_size_factor.numpy()) == 0.25 ** len(guard.collapses)
    assert callbacks.robust_accuracy(trainer.classifier, held_out, STRONG) > 2 * collapsed[0][-1]


def test_the_guard_watches_beyond_epsilon(tiny_model, images, labels):
    """After the first epoch the network is right for all images, at every epsilon, and after the second for few."""
    attack = PGD(LinfBall(1), steps=1, step_size=1.0)
    guard = CatastrophicOverfittingGuard((images, labels), attack, every=100, beyond=(1.25, 1.5))
    trainer = trainer_of(tiny_model(), attack, keras.optimizers.SGD(0.0))
    spoiling = Spoiling(images, labels, is_killed=False)
    spoiling.set_model(trainer)
    at_the_end = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: spoiling.on_train_batch_end(2 * epoch))
    with pytest.warns(UserWarning, match=r"Partial .* at step 4: robust accuracy at 1.(25|5) times epsilon fell"):
        history = trainer.fit(
            images, labels, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[at_the_end, guard]
        ).history
    for factor in (1.25, 1.5):
        first, second = history[f"probe_accuracy_{factor}_epsilon"]
        assert (first, second < 0.5) == (1.0, True)
        assert guard.probes_beyond[factor] == {2: first, 4: second}
        stronger = PGD(LinfBall(factor), steps=1, step_size=factor)
        assert callbacks.robust_accuracy(trainer.classifier, (images, labels), stronger) == second
    with pytest.raises(ValueError, match="above 1"):
        CatastrophicOverfittingGuard((images, labels), attack, beyond=(0.5,))
    again = CatastrophicOverfittingGuard((images, labels), attack, beyond=(1.25, 1.5))
    again.set_state(guard.get_state())
    assert again.probes_beyond == guard.probes_beyond


class Spoiling(keras.callbacks.Callback):
    """Makes a network right for its images after the first step, and wrong after the third. Then it may be killed."""

    def __init__(self, images, labels, is_killed):
        super().__init__()
        self.images, self.labels, self.is_killed = images, labels, is_killed

    def on_train_batch_end(self, batch, logs=None):
        classifier = self.model.classifier
        head = classifier.layers[-1]
        if batch == 0:
            features = keras.Model(classifier.inputs[0], head.input)(self.images).numpy()
            head.kernel.assign(np.linalg.lstsq(features, 100 * np.eye(4)[self.labels] - 30, rcond=None)[0])
            head.bias.assign(np.zeros(4))
        if batch == 2:
            head.kernel.assign(np.zeros(head.kernel.shape))
            head.bias.assign([0.0, 1.0, -1.0, 0.0])

    def on_test_end(self, logs=None):
        if self.is_killed:
            raise InterruptedError


def guarded(trainer, images, labels, folder, is_killed):
    """Trains with a guard from the last checkpoint. Returns what a resumed run must not change, and the history."""
    guard = CatastrophicOverfittingGuard((images, labels), PGD(LinfBall(1), steps=1), every=1)
    with Checkpoint(folder, 4, callbacks=[guard]) as checkpoint:
        done = checkpoint.restore(trainer)
        spoiling = [] if done else [Spoiling(images, labels, is_killed)]
        options = {"epochs": 3, "initial_epoch": checkpoint.epoch, "batch_size": 2, "shuffle": False, "verbose": 0}
        options |= {"validation_data": (images, labels), "callbacks": [*spoiling, guard, checkpoint]}
        with contextlib.suppress(InterruptedError):
            trainer.fit(images, labels, **options)
    weights = [weight.tobytes() for weight in trainer.classifier.get_weights()]
    return (checkpoint.done, list(guard.probes.items()), guard.collapses, weights), sorted(checkpoint.history)


def test_a_run_that_the_guard_stopped_stays_stopped(tiny_model, images, labels, tmp_path):
    """It is killed in the validation of the epoch that the guard cut short, and started again twice."""
    trainer = trainer_of(tiny_model(), PGD(LinfBall(2), steps=1))
    restore = restorer(trainer)
    with pytest.warns(UserWarning, match="Catastrophic overfitting at step 3"):
        stopped, history = guarded(trainer, images, labels, tmp_path, is_killed=True)
    assert history == []
    assert (stopped[0], [step for step, _ in stopped[1]], stopped[2]) == (3, [1, 2, 3], [3])
    for _ in range(2):
        restore()
        again, history = guarded(trainer, images, labels, tmp_path, is_killed=False)
        assert again == stopped
        assert history == [0]


def test_held_out_data_in_every_form_that_evaluate_takes(tiny_model, images, labels):
    attack = PGD(LinfBall(8), steps=2)
    whole = tf.data.Dataset.from_tensor_slices((images, labels, np.ones(8))).batch(8)
    forms = ((images, labels), (images, np.eye(4)[labels]), (images, labels[:, None]), whole, [(images, labels)])
    measured, trainer = set(), trainer_of(tiny_model(), attack)
    restore = restorer(trainer)
    for form in forms:
        restore()
        callbacks_ = [RobustAccuracy(form, attack), CatastrophicOverfittingGuard(form, attack, every=1)]
        history = trainer.fit(images, labels, batch_size=8, verbose=0, callbacks=callbacks_).history
        measured.add((history["val_robust_accuracy"][0], *callbacks_[1].probes.values()))
    assert len(measured) == 1
    for kind in (RobustAccuracy, CatastrophicOverfittingGuard):  # when it is made, not after the first epoch
        with pytest.raises(ValueError, match="never ends"):
            kind(whole.repeat(), attack)
        with pytest.raises(ValueError, match="is targeted"):
            kind(whole, PGD(LinfBall(8), targeted=True))
        with pytest.raises(ValueError, match="Images with several labels"):
            kind((images, np.ones((8, 4))), attack)


def test_logits_that_are_not_finite_are_not_robust(tiny_model, images, labels):
    model = tiny_model()

    def nothing(x):
        return model(x) * float("nan")

    assert callbacks.robust_accuracy(nothing, (images, 0 * labels), PGD(LinfBall(8), steps=1)) == 0


def test_refusals(tiny_model, images, labels):
    attack = PGD(LinfBall(8))
    with pytest.raises(ValueError, match='"stop" or "roll_back"'):
        CatastrophicOverfittingGuard([], attack, action="panic")
    with pytest.raises(ValueError, match="between 0 and 1"):
        CatastrophicOverfittingGuard([], attack, collapse=2)
    with pytest.raises(ValueError, match="every must be an integer >= 1"):
        CatastrophicOverfittingGuard([], attack, every=0)
    with pytest.raises(ValueError, match="no images"):
        callbacks.robust_accuracy(tiny_model(), [], attack)
