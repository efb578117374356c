import csv
import io
import re

import keras
import pytest

from keras_sat.attacks import PGD, LinfBall
from keras_sat.training import AdversarialModel, Checkpoint, HistoryFile, Progress, progress

RUNNING = r"epoch \d of 2, step [1-4] of 4: (\d[\d.]* images/s, )?loss \S+, accuracy under attack \S+ %(, \d+ s left)?"
ENDED = (
    r"epoch \d of 2: \d+ s, \d[\d.]* images/s, loss \S+, accuracy under attack \S+ %, validation accuracy \S+ %, "
    r"robust validation accuracy \S+ %(, \d+ s left)?"
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def fit(tiny_model, images, labels):
    def run(stream, checkpoint=None, initial_epoch=0, callbacks=(), **options):
        trainer = AdversarialModel(tiny_model(), PGD(LinfBall(8), steps=1))
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
    assert quiet[0] == "epoch 1 of 2, step 0 of 4: compiling"
    assert len(quiet) == 3
    assert all(re.fullmatch(ENDED, line) for line in quiet[1:])
    assert [line.split(":")[0] for line in quiet[1:]] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert "left" in quiet[1]
    assert "left" not in quiet[2]
    lines = fit(io.StringIO(), every=1e-9).splitlines()
    assert "epoch 1 of 2, validating: 3 batches" in lines
    assert "epoch 2 of 2, validating: 3 of 4 batches" in lines
    assert len([line for line in lines if re.fullmatch(RUNNING, line)]) == 8
    assert "epoch 1 of 2, validating: 3 of 4 batches" in fit(io.StringIO(), every=1e-9, validation_steps=4)


def test_on_a_terminal_one_line_is_rewritten(fit):
    text = fit(Terminal())
    assert text.count("\n") == 2  # the ends of the epochs
    first, second = (line.split("\r") for line in text.strip("\n").split("\n"))
    assert first[1].strip() == "epoch 1 of 2, step 0 of 4: compiling"
    assert "epoch 1 of 2, validating: 0 batches" in [part.strip() for part in first]
    for *parts, last in (first, second):
        assert re.fullmatch(ENDED, last.strip())
        assert all(len(part) < 80 for part in parts)


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
    assert lines[0] == "epoch 1 of 2, validating: 0 batches"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert set(rows[0]) == {"epoch", "learning_rate", *checkpoint.history[0]} == {"epoch", *checkpoint.history[1]}
    assert float(rows[1]["val_loss"]) == checkpoint.history[1]["val_loss"]
    before = table.read_bytes()
    with Checkpoint(tmp_path / "checkpoints", 4) as checkpoint:
        table.unlink()
        assert fit(io.StringIO(), checkpoint, callbacks=[checkpoint, HistoryFile(table, checkpoint)]) == ""
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (101_000, "1 d 4 h")],
)
def test_duration(seconds, text):
    assert progress.duration(seconds) == text
