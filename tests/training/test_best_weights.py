import keras
import numpy as np
import pytest

from keras_sat.attacks import PGD, LinfBall
from keras_sat.training import AdversarialModel, BestWeights, Checkpoint

NAN = float("nan")


@pytest.fixture
def trainer():
    def build(**options):
        layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(2 / 255, -1.0), keras.layers.Flatten()]
        model = keras.Sequential([*layers, keras.layers.Dense(4)])
        trainer = AdversarialModel(model, PGD(LinfBall(8), steps=1))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(keras.optimizers.SGD(0.1, **options), loss, metrics=["accuracy"])
        return trainer

    return build


@pytest.fixture
def ended(tmp_path):
    """Returns a function that ends epochs of a trainer, whose bias is the number of the epoch in each."""

    def run(trainer, values, first=0, state=None, **options):
        best = BestWeights(tmp_path / "best.weights.h5", keras.Model.save_weights, **options)
        if state:
            best.set_state(state)
        best.set_model(trainer)
        best.on_train_begin()
        for epoch, value in enumerate(values, first):
            best.on_epoch_begin(epoch)
            trainer.classifier.layers[-1].bias.assign([epoch + 1.0] * 4)
            best.on_epoch_end(epoch, {"loss": 1.0, "val_robust_accuracy": value})
        return best

    return run


def written(trainer, path):
    trainer.classifier.load_weights(path)
    return trainer.classifier.layers[-1].bias.numpy()[0]


@pytest.mark.parametrize(
    ("values", "epoch"), [([0.1, 0.3, 0.2], 2), ([0.3, 0.3], 1), ([NAN, 0.0, NAN], 2), ([0.2, 0.1, NAN, 0.4], 4)]
)
def test_the_first_of_the_largest_values_counts(values, epoch, trainer, ended):
    best = ended(subject := trainer(), values)
    assert best.best == {"epoch": epoch, "loss": 1.0, "val_robust_accuracy": values[epoch - 1]}
    assert written(subject, best.path) == epoch


def test_nan_is_never_the_best(trainer, ended, tmp_path):
    assert ended(trainer(), [NAN, NAN]).best is None
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_written_after_the_last_checkpoint_is_taken_back(trainer, ended):
    best = ended(subject := trainer(), [0.1])
    state = best.get_state()
    best = ended(subject, [0.2], first=1, state=state)
    assert written(subject, best.path) == 2
    best = ended(subject, [], state=state)  # killed before a checkpoint had noted the second
    assert written(subject, best.path) == 1
    best = ended(subject, [0.2, 0.1], first=1, state=state)
    assert best.best["epoch"] == written(subject, best.path) == 2


def test_an_epoch_is_the_best_once_its_file_is_written(trainer, ended):
    best = ended(subject := trainer(), [0.1])
    before = best.get_state()

    write = best._write

    def interrupted():
        subject.classifier.layers[-1].bias.assign([2.0] * 4)
        write()
        raise KeyboardInterrupt

    best._write = interrupted
    with pytest.raises(KeyboardInterrupt):
        best.on_epoch_end(1, {"val_robust_accuracy": 0.2})
    best.take_back()
    assert best.get_state() == before
    assert written(subject, best.path) == 1


def test_a_file_that_was_changed_is_told(trainer, ended, tmp_path):
    state = ended(trainer(), [0.1]).get_state()
    (tmp_path / "best.weights.h5").write_bytes(b"")
    with pytest.warns(UserWarning, match="no longer holds the weights of epoch 1"):
        ended(trainer(), [], state=state)


def test_averaged_weights_are_written_and_the_others_given_back(trainer, images, labels, tmp_path):
    best = BestWeights(tmp_path / "best.weights.h5", keras.Model.save_weights, monitor="adversarial_accuracy")
    subject = trainer(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=None)
    seen = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(subject.classifier.get_weights()))
    subject.fit(images, labels, batch_size=4, verbose=0, callbacks=[best, look])  # ends with the averages
    averages = subject.classifier.get_weights()
    subject.classifier.load_weights(best.path)
    for saved, average, trained in zip(subject.classifier.get_weights(), averages, seen[0]):
        np.testing.assert_array_equal(saved, average)
        assert not np.array_equal(trained, average)


def test_patience_ends_the_training_and_a_resumed_run_does_not_begin_again(trainer, images, labels, tmp_path):
    """Killed in the validation after which it ends, and after its end."""
    steps, ends = [], []
    for failing in (5, None, None):
        best = BestWeights(tmp_path / "x.weights.h5", keras.Model.save_weights, monitor="val_bias", patience=2)
        with Checkpoint(tmp_path / "checkpoints", 2, callbacks=[best]) as checkpoint:
            checkpoint.restore(subject := trainer())
            falling = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(val_bias=-epoch))
            count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: steps.append(len(logs)))
            ending = keras.callbacks.LambdaCallback(on_test_end=Failing(failing, len(checkpoint.history)))
            options = {"epochs": 9, "initial_epoch": checkpoint.epoch, "batch_size": 4, "verbose": 0, "shuffle": False}
            try:
                callbacks = [ending, falling, best, count, checkpoint]
                subject.fit(images, labels, validation_data=(images, labels), callbacks=callbacks, **options)
            except InterruptedError:
                assert checkpoint.done == 6
            ends.append((checkpoint.done, len(checkpoint.history), best.stopped_epoch, best.best))
        failing = None
    assert ends[0][:3] == (6, 2, None)
    assert ends[1] == ends[2]
    assert ends[1][:3] == (6, 3, 3)
    assert ends[1][3]["epoch"] == 1
    assert len([step for step in steps if step]) == 6 + 1  # the last skipped one has the logs of the epoch


class Failing:
    """Raises an error at the end of the third validation of the first run."""

    def __init__(self, is_first, done):
        self.is_first, self.count = is_first, done

    def __call__(self, logs):
        self.count += 1
        if self.is_first and self.count == 3:
            raise InterruptedError


def test_refusals(trainer, ended):
    with pytest.raises(ValueError, match="patience must be an integer >= 1"):
        ended(trainer(), [], patience=0)
    with pytest.raises(ValueError, match="have no 'val_accuracy', only loss, val_robust_accuracy: give fit"):
        ended(trainer(), [0.1], monitor="val_accuracy")
