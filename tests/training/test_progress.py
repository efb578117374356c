import csv
import io
import re

import keras
import pytest

from keras_sat.attacks import PGD, GaussianNoise, LinfBall
from keras_sat.training import AdversarialModel, Checkpoint, HistoryFile, Progress

RUNNING = r"epoch \d of 2, step [1-4] of 4: (\d+ s left, )?(\d[\d.]* images/s, )?loss \S+, adversarial accuracy \S+ %"
ENDED = (
    r"epoch \d of 2: took \d+ s, (\d+ s left, )?\d[\d.]* images/s, loss \S+, adversarial accuracy \S+ %, "
    r"clean validation accuracy \S+ %, robust validation accuracy \S+ %"
)
COMPILING = "epoch 1 of 2, step 0 of 4: compiling the first step (up to a minute)"
VALIDATING = "epoch 1 of 2, validating: 0 batches (compiling the first one)"


PGD8 = PGD(LinfBall(8), steps=1)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def fit(tiny_model, images, labels):
    def run(stream, checkpoint=None, initial_epoch=0, callbacks=(), attack=PGD8, **options):
        trainer = AdversarialModel(tiny_model(), attack)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile("sgd", loss, metrics=["accuracy"])
        if checkpoint:
            options["done"] = checkpoint.restore(trainer)
            initial_epoch = checkpoint.epoch
        shown = Progress(2, 4, 2, stream=stream, **options)
        data = {"validation_data": (images, labels), "batch_size": 2, "epochs": 2, "initial_epoch": initial_epoch}
        trainer.fit(images, labels, **data, shuffle=False, verbose=0, callbacks=[*callbacks, shown])
        return stream.getvalue()

    return run


def test_in_a_file_there_is_a_line_for_each_epoch_and_one_every_few_seconds(fit):
    quiet = fit(io.StringIO()).splitlines()
    assert quiet[:2] == [COMPILING, VALIDATING]  # what takes long is said before
    assert len(quiet) == 4
    assert all(re.fullmatch(ENDED, line) for line in quiet[2:])
    assert [line.split(":")[0] for line in quiet[2:]] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert " left, " in quiet[2]
    assert " left, " not in quiet[3]
    lines = fit(io.StringIO(), every=1e-9).splitlines()
    assert "epoch 1 of 2, validating: 3 batches" in lines
    assert "epoch 2 of 2, validating: 3 of 4 batches" in lines
    assert len([line for line in lines if re.fullmatch(RUNNING, line)]) == 8
    estimates = [line for line in lines if line.startswith("Estimated time for the run: ")]
    assert len(estimates) == 1
    assert re.fullmatch(r".*: \d+ s at \d[\d.]* images/s, and the validations\.", estimates[0])
    assert "epoch 1 of 2, validating: 3 of 4 batches" in fit(io.StringIO(), every=1e-9, validation_steps=4)


def test_on_a_terminal_one_line_is_rewritten(fit):
    text = fit(Terminal())
    assert text.count("\n") == 2  # the ends of the epochs
    first, second = (line.split("\r") for line in text.strip("\n").split("\n"))
    assert first[1].strip() == COMPILING
    assert VALIDATING in [part.strip() for part in first]
    for *parts, last in (first, second):
        assert re.fullmatch(ENDED, last.strip())
        assert all(len(part) < 80 for part in parts)


@pytest.mark.parametrize(
    ("attack", "trained", "validated"),
    [
        (GaussianNoise(60.0), "accuracy on noisy images", "validation accuracy on noisy images"),
        (PGD(LinfBall(0), steps=1), "accuracy", "robust validation accuracy"),
    ],
    ids=["noise", "clean"],
)
def test_accuracies_are_named_after_the_images(attack, trained, validated, fit):
    line = fit(io.StringIO(), attack=attack).splitlines()[-1]
    assert re.search(rf", {trained} \S+ %, clean validation accuracy \S+ %, {validated} \S+ %$", line)


def test_steps_that_are_skipped_are_not_steps(fit, tmp_path):
    table = tmp_path / "history.csv"
    with Checkpoint(tmp_path / "checkpoints", 4, every=1) as checkpoint:
        stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(io.StringIO(), checkpoint, callbacks=[stop, checkpoint])
    with Checkpoint(tmp_path / "checkpoints", 4, every=1) as checkpoint:
        options = {"callbacks": [checkpoint, HistoryFile(table, checkpoint)], "every": 1e-9}
        lines = fit(io.StringIO(), checkpoint, **options).splitlines()
    assert [line.split(":")[0] for line in lines if "step" in line] == [
        f"epoch 2 of 2, step {step} of 4" for step in range(5)
    ]
    assert lines[0] == VALIDATING
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert set(rows[0]) == {"epoch", "learning_rate", *checkpoint.history[0]} == {"epoch", *checkpoint.history[1]}
    assert float(rows[1]["val_loss"]) == checkpoint.history[1]["val_loss"]
    before = table.read_bytes()
    with Checkpoint(tmp_path / "checkpoints", 4) as checkpoint:
        table.unlink()
        assert fit(io.StringIO(), checkpoint, callbacks=[checkpoint, HistoryFile(table, checkpoint)]) == ""
    assert table.read_bytes() == before
