import contextlib
import csv
import inspect
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat.attacks import PGD, LinfBall
from keras_sat.training import AdversarialModel, Checkpoint

SURVIVOR = pathlib.Path(__file__).with_name("survivor.py")


@pytest.fixture(scope="module")
def survivor(tmp_path_factory):
    """Returns a function that runs trainings which are killed and resumed. One process imports TensorFlow for all.

    It returns the printed lines, one or more for each child.
    """
    errors = tmp_path_factory.mktemp("survivor") / "errors.txt"
    with errors.open("w") as file:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": file, "text": True}
        process = subprocess.Popen([sys.executable, str(SURVIVOR)], **pipes)

    def run(folder, devices, *arguments):
        folder.mkdir()
        lines, too_long = [], threading.Timer(300, process.kill)
        too_long.start()
        try:
            process.stdin.write("\t".join(map(str, (folder, devices, *arguments))) + "\n")
            process.stdin.flush()
            while (line := process.stdout.readline()) != "end\n":
                assert line, errors.read_text()
                lines.append(line.rstrip("\n"))
        finally:
            too_long.cancel()
        return lines

    yield run
    process.communicate(timeout=60)
    assert process.returncode == 0, errors.read_text()


def results(folder):
    """Returns all that a run leaves: weights, the best weights, what callbacks have seen, and its history."""
    with np.load(folder / "weights.npz") as arrays:
        last = [arrays[name].tobytes() for name in arrays]
    with h5py.File(folder / "best.weights.h5") as file:
        best = []
        file.visititems(lambda _, one: best.append(one[()].tobytes()) if isinstance(one, h5py.Dataset) else None)
    seen = json.loads((folder / "seen.json").read_text())
    history = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert not list(folder.glob(".previous*"))
    return last, best, seen, history


@pytest.fixture(scope="module")
def calm(survivor, tmp_path_factory):
    """Returns the results of an uninterrupted run, on one device and on two."""
    by_devices = {}
    for devices in (1, 2):
        folder = tmp_path_factory.mktemp("runs") / "calm"
        assert survivor(folder, devices, "SIGKILL") == ["0"]
        by_devices[devices] = results(folder)
    _, _, seen, history = by_devices[1]
    assert [step for step, _ in seen["probes"]] == [7, 14, 21, 28, 35]
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    accuracies = [float(row["val_robust_accuracy"]) for row in history]
    assert seen["best"]["val_robust_accuracy"] == max(accuracies)
    assert accuracies.index(max(accuracies)) + 1 == seen["best"]["epoch"] > 1  # so that there are two best ones
    return by_devices


def test_a_run_that_is_killed_at_any_place_ends_with_the_same_results(calm, survivor, tmp_path):
    # Before the first checkpoint, amid the first epoch, in its validation, after it and across the end of the second.
    assert survivor(tmp_path / "killed", 1, "SIGKILL", 3, 9, "v1", "e1", 16) == [*["-9"] * 5, "0"]
    assert results(tmp_path / "killed") == calm[1]


def test_a_run_on_two_devices_that_is_killed_ends_with_the_same_results(calm, survivor, tmp_path):
    assert survivor(tmp_path / "killed", 2, "SIGKILL", "v2", 5) == ["-9", "-9", "0"]
    *ours, history = results(tmp_path / "killed")
    *theirs, calm_history = calm[2]
    assert ours == theirs
    for row, calm_row in zip(history, calm_history, strict=True):
        for name in row:  # sums over the examples of an epoch are added up in another order
            assert float(row[name]) == pytest.approx(float(calm_row[name]), rel=1e-6)


def test_sigterm_saves_before_it_ends(calm, survivor, tmp_path):
    assert survivor(tmp_path / "term", 1, "SIGTERM", "v4", 2) == ["143", "143", "0"]
    assert results(tmp_path / "term") == calm[1]


def test_ctrl_c_saves_before_it_ends(calm, survivor, tmp_path):
    assert survivor(tmp_path / "int", 1, "SIGINT", 3, "v4") == ["130", "130", "0"]
    assert results(tmp_path / "int") == calm[1]


def test_on_a_full_disk_the_checkpoint_before_is_still_there(survivor, tmp_path):
    first, *rest = survivor(tmp_path / "full", 1, "full", 7)
    assert "No checkpoint could be written at step 10" in first
    assert "Last good checkpoint" in first
    assert "step-5.npz" in first
    assert rest == ["3", "0"]
    assert (tmp_path / "full" / "weights.npz").exists()


@pytest.fixture
def trainer(tiny_model):
    def build(learning_rate=0.1, width=4):
        model = keras.Sequential([*tiny_model().layers[:-1], keras.layers.Dense(width)])
        model.build((None, 8, 8, 3))
        trainer = AdversarialModel(model, PGD(LinfBall(8), steps=1))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(keras.optimizers.SGD(learning_rate, momentum=0.9), loss)
        return trainer

    return build


@pytest.fixture
def fit(images, labels):
    def run(trainer, checkpoint, epochs=1):
        trainer.fit(images, labels, batch_size=2, shuffle=False, epochs=epochs, callbacks=[checkpoint], verbose=0)

    return run


@pytest.mark.parametrize("damage", ["cut short", "a bit", "no record", "record cut short"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(damage, trainer, fit, tmp_path):
    with Checkpoint(tmp_path, 4, every=2) as checkpoint:
        checkpoint.restore(first := trainer())
        fit(first, checkpoint)
    assert sorted(path.name for path in tmp_path.glob("step*")) == [
        "step-2.json",
        "step-2.npz",
        "step-4.json",
        "step-4.npz",
    ]
    newest = tmp_path / ("step-4.json" if "record" in damage else "step-4.npz")
    content = bytearray(newest.read_bytes())
    if damage == "a bit":
        content[len(content) // 2] ^= 1
    newest.write_bytes(content if damage == "a bit" else content[: len(content) // 2])
    if damage == "no record":  # killed between the two
        newest.unlink()
        with Checkpoint(tmp_path, 4) as checkpoint:
            assert checkpoint.restore(trainer()) == 2
        assert not (tmp_path / "step-4.npz").exists()
        return
    with Checkpoint(tmp_path, 4) as checkpoint, pytest.warns(UserWarning, match="step-4.npz is damaged"):
        assert checkpoint.restore(trainer()) == 2
    (tmp_path / "step-2.npz").write_bytes(b"")
    none = pytest.raises(ValueError, match="is undamaged")
    with Checkpoint(tmp_path, 4) as checkpoint, pytest.warns(UserWarning), none:
        checkpoint.restore(trainer())


def test_what_is_kept(trainer, fit, tmp_path):
    with Checkpoint(tmp_path, 4, every=1, keep=3) as checkpoint:
        fit(trainer(), checkpoint, epochs=2)
        assert sorted(checkpoint._steps()) == [6, 7, 8]
        assert set(checkpoint.history) == {0, 1}
    with Checkpoint(tmp_path, 4) as again:
        again.restore(trainer())
        assert set(again.history) == {0, 1}  # that of the second epoch was added after the last step


def test_other_files_in_the_folder_stay(tmp_path):
    others = ["step-by-step.md", "step-3.npz.txt", "my-step-3.npz", "notes-step-1.json"]
    for name in [*others, "step-3.npz", ".123-step-3.npz", ".9-step-4.json"]:  # the last three: of killed runs
        (tmp_path / name).touch()
    with Checkpoint(tmp_path, 4):
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == sorted(others)


def test_a_loss_that_is_not_finite_ends_the_training(trainer, fit, tmp_path):
    with Checkpoint(tmp_path, 4, every=1) as checkpoint:
        with pytest.raises(FloatingPointError, match=r"at step \d .*learning rate 1e\+20.*Last good checkpoint"):
            fit(trainer(learning_rate=1e20), checkpoint, epochs=3)
        saved = checkpoint.restore(other := trainer())
        assert saved or not list(tmp_path.glob("step*"))
        assert all(np.isfinite(weight).all() for weight in other.classifier.get_weights())


def test_data_that_end_too_early_are_an_error(trainer, images, labels, tmp_path):
    def batches(done):
        whole = tf.data.Dataset.from_tensor_slices((images, labels)).batch(2)
        return whole.repeat(2).skip(done)

    def fit(trainer, checkpoint, dataset, done=0):
        options = {"steps_per_epoch": 4, "epochs": 2, "initial_epoch": done // 4, "callbacks": [checkpoint]}
        trainer.fit(dataset, shuffle=False, verbose=0, **options)

    with Checkpoint(tmp_path, 4, every=3) as checkpoint:
        with (
            pytest.warns(UserWarning, match="ran out of data"),
            pytest.raises(ValueError, match="step 3, within.* at 4"),
        ):
            fit(trainer(), checkpoint, batches(5))  # three batches are left
    with Checkpoint(tmp_path, 4, every=3) as checkpoint:
        done = checkpoint.restore(first := trainer())
        with pytest.warns(UserWarning, match="ran out of data"), pytest.raises(ValueError, match="lambda"):
            fit(first, checkpoint, batches(done), done)  # its five batches are all there, but fit counts eight
        done = checkpoint.restore(first)
        forgetful = batches(done).filter(lambda *_: True)
        fit(first, checkpoint, forgetful, done)
    assert int(first.optimizer.iterations) == 8


class Sending(keras.callbacks.Callback):
    """Sends this process a signal at the given place of `fit`, and then may raise an error."""

    def __init__(self, number, place, error=None):
        super().__init__()
        self.number, self.error = number, error
        setattr(self, place, self.send)

    def send(self, *_, **__):
        signal.raise_signal(self.number)
        if self.error:
            raise self.error


@pytest.fixture
def terminated(monkeypatch):
    """Returns the signals that the process's own handler of SIGTERM received."""
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, before)


def test_signals_are_handled_as_before_once_the_block_has_ended(terminated, trainer, fit, tmp_path):
    """(If fit fails, it does not call its callbacks.)"""
    own, ctrl_c = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(FloatingPointError), Checkpoint(tmp_path, 4) as checkpoint:
        fit(trainer(learning_rate=1e20), checkpoint, epochs=3)
    with pytest.raises(KeyboardInterrupt), Checkpoint(tmp_path / "second", 4) as checkpoint:
        signal.raise_signal(signal.SIGTERM)
        assert terminated == [signal.SIGTERM]  # at once: fit does not run
        subject = trainer()
        subject.fit(  # a Ctrl-C during the second step
            *(np.zeros((8, 8, 8, 3)), np.zeros(8, int)),
            batch_size=2,
            verbose=0,
            callbacks=[Sending(signal.SIGINT, "on_train_batch_end"), checkpoint],
        )
    with Checkpoint(tmp_path / "third", 4) as checkpoint:
        with pytest.raises(KeyboardInterrupt):
            trainer().fit(
                *(np.zeros((8, 8, 8, 3)), np.zeros(8, int)),
                batch_size=2,
                verbose=0,
                callbacks=[Sending(signal.SIGINT, "on_train_batch_end"), checkpoint],
            )
        with pytest.raises(KeyboardInterrupt):  # the second one comes at once, also after fit
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is own
    assert signal.getsignal(signal.SIGINT) is ctrl_c
    signal.raise_signal(signal.SIGTERM)
    assert terminated == [signal.SIGTERM] * 2


def test_ctrl_c_before_the_first_step_of_a_resumed_run_comes_at_once(trainer, images, labels, tmp_path):
    with Checkpoint(tmp_path, 4) as checkpoint:
        trainer().fit(images, labels, batch_size=2, verbose=0, callbacks=[checkpoint])
    with Checkpoint(tmp_path, 4) as checkpoint:
        subject = trainer()
        assert checkpoint.restore(subject) == 4
        sending = Sending(signal.SIGINT, "on_epoch_begin")
        with pytest.raises(KeyboardInterrupt):
            options = {"epochs": 2, "initial_epoch": 1, "batch_size": 2, "verbose": 0}
            subject.fit(images, labels, callbacks=[checkpoint, sending], **options)
        assert checkpoint.done == 4


def test_a_second_ctrl_c_answers_the_first_too(trainer, images, labels, tmp_path):
    with Checkpoint(tmp_path, 4) as checkpoint:  # which raises nothing at its end
        pressed = [Sending(signal.SIGINT, "on_train_batch_end") for _ in range(2)]
        with pytest.raises(KeyboardInterrupt):
            trainer().fit(images, labels, batch_size=2, verbose=0, callbacks=[checkpoint, *pressed])
        assert checkpoint.done == 1


def sending_at(line, checkpoint):
    """Returns a function for `sys.settrace` that sends Ctrl-C once: after the first step, at a line of the callback."""
    is_sent = False

    def trace(frame, event, _):
        nonlocal is_sent
        if frame.f_code.co_filename != inspect.getfile(Checkpoint):
            return None
        if event == "line" and frame.f_lineno == line and checkpoint.done and not is_sent:
            is_sent = True
            signal.raise_signal(signal.SIGINT)
        return trace

    return trace


def test_a_signal_at_any_line_leaves_a_checkpoint_of_the_last_step(trainer, images, labels, tmp_path):
    subject = trainer()
    lines = {line for _, _, line in Checkpoint.on_train_batch_end.__code__.co_lines() if line}
    for line in sorted(lines):
        with pytest.raises(KeyboardInterrupt), Checkpoint(tmp_path / str(line), 4) as checkpoint:
            sys.settrace(sending_at(line, checkpoint))
            try:
                subject.fit(images, labels, batch_size=2, verbose=0, callbacks=[checkpoint])
            finally:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)  # for the lines that no fit without a signal reaches
        assert (tmp_path / str(line) / f"step-{checkpoint.done}.npz").exists(), line


@pytest.mark.parametrize("error", [None, RuntimeError("failed")])
def test_a_signal_that_no_step_can_answer_is_not_lost(error, terminated, trainer, images, labels, tmp_path):
    """The signal arrives after the last step, or fit fails before the step ends."""
    with pytest.raises(RuntimeError) if error else contextlib.nullcontext(), Checkpoint(tmp_path, 4) as checkpoint:
        sending = Sending(signal.SIGTERM, "on_train_batch_begin" if error else "on_epoch_end", error)
        trainer().fit(images, labels, batch_size=2, verbose=0, callbacks=[sending, checkpoint])
        assert terminated == []  # what the block has left to write is written first
    assert terminated == [signal.SIGTERM]


def test_outside_its_block_a_checkpoint_is_refused(trainer, fit, tmp_path):
    checkpoint = Checkpoint(tmp_path / "x", 4)
    for use in (lambda: checkpoint.restore(trainer()), lambda: fit(trainer(), checkpoint)):
        with pytest.raises(ValueError, match="is used in a with block"):
            use()
    with checkpoint:
        assert checkpoint.restore(trainer()) == 0
    with pytest.raises(ValueError, match="is used in a with block"):
        fit(trainer(), checkpoint)


@pytest.mark.parametrize(("steps", "done"), [(3, 0), (4, 2)])
def test_executions_that_do_not_end_with_an_epoch_are_refused(steps, done, trainer, fit, tmp_path):
    subject = trainer()
    subject.steps_per_execution = steps
    with Checkpoint(tmp_path, 4) as checkpoint:
        checkpoint._done = done
        with pytest.raises(ValueError, match=f"must divide steps_per_epoch, 4, and the {done} .*Received: {steps}"):
            fit(subject, checkpoint)
        assert not checkpoint._steps()


def test_checkpoints_of_a_run_before_must_be_restored(trainer, fit, tmp_path):
    with Checkpoint(tmp_path, 4) as checkpoint:
        fit(subject := trainer(), checkpoint)
        fit(subject, checkpoint)  # these are its own
    with Checkpoint(tmp_path, 4, every=1) as checkpoint:
        checkpoint.newest_step(subject.distribute_strategy)
        with pytest.raises(ValueError, match="has checkpoints of a run before: call restore"):
            fit(subject, checkpoint)
        assert checkpoint._steps() == [4]


def test_two_runs_on_one_folder(trainer, tmp_path):
    with Checkpoint(tmp_path, 4):
        with pytest.raises(ValueError, match="Another run is writing"), Checkpoint(tmp_path, 4):
            pass
    with Checkpoint(tmp_path, 4):
        pass


def test_another_network_is_refused(trainer, fit, tmp_path):
    with Checkpoint(tmp_path, 4, every=2) as checkpoint:
        fit(trainer(), checkpoint)
        with pytest.raises(ValueError, match="of another network or optimizer"):
            checkpoint.restore(trainer(width=5))


def test_refusals(tmp_path):
    for options in ({"steps_per_epoch": 0}, {"every": 0}, {"keep": 0}, {"every": 2.5}):
        with pytest.raises(ValueError, match="must be an integer >= 1"):
            Checkpoint(tmp_path / "x", **{"steps_per_epoch": 4, **options})
    with pytest.raises(ValueError, match="EarlyStopping has not: leave it out"):
        Checkpoint(tmp_path / "x", 4, callbacks=[keras.callbacks.EarlyStopping()])
    assert not os.path.exists(tmp_path / "x")


class Remembering(keras.callbacks.Callback):
    """A callback whose state is of every kind, and changes when an epoch ends."""

    def __init__(self, count=0):
        super().__init__()
        self.set_state({"count": count, "none": None, "one": np.zeros(2), "several": {"a/b": np.ones((), np.int64)}})

    def on_epoch_end(self, epoch, logs=None):
        self.state = {**self.state, "count": self.state["count"] + 1, "one": self.state["one"] + 0.5}

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def test_the_state_of_callbacks_is_restored(trainer, images, labels, tmp_path):
    before, other = Remembering(), Remembering(7)
    with Checkpoint(tmp_path, 4, callbacks=[before, other]) as checkpoint:
        options = {"batch_size": 2, "verbose": 0, "shuffle": False}
        trainer().fit(images, labels, callbacks=[before, other, checkpoint], **options)
        with pytest.raises(ValueError, match="Remembering must come before the Checkpoint"):
            trainer().fit(images, labels, callbacks=[checkpoint, before, other], **options)
    again = [Remembering(), Remembering(), Remembering()]
    with Checkpoint(tmp_path, 4, callbacks=again) as checkpoint:
        with pytest.warns(UserWarning, match="Remembering starts anew at step 4"):
            assert checkpoint.restore(trainer()) == 4
        assert checkpoint.epoch == 1
    for one, count in zip(again, (1, 8)):
        assert (one.state["count"], one.state["none"], one.state["several"]) == (count, None, {"a/b": 1})
        np.testing.assert_array_equal(one.state["one"], [0.5, 0.5])


def test_a_variable_that_changes_when_an_epoch_ends_is_saved(trainer, images, labels, tmp_path):
    first, second = trainer(), trainer()
    with Checkpoint(tmp_path, 4) as checkpoint:
        falling = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate)
        falling.on_epoch_end = lambda epoch, logs: first.optimizer.learning_rate.assign(0.03)
        first.fit(images, labels, batch_size=2, verbose=0, callbacks=[falling, checkpoint])
        checkpoint.restore(second)
    assert float(second.optimizer.learning_rate) == pytest.approx(0.03)
    assert len(list(tmp_path.glob("step*"))) == 2


def test_a_checkpoint_that_is_written_again_is_whole_at_each_instant(trainer, fit, tmp_path, monkeypatch):
    whole, kills = tmp_path / "whole", []
    with Checkpoint(whole, 4) as checkpoint:
        checkpoint.restore(subject := trainer())
        fit(subject, checkpoint)

    def killed_before(function):
        def run(*args):
            kills.append(shutil.copytree(whole, tmp_path / f"killed-{len(kills)}"))
            return function(*args)

        return run

    with Checkpoint(whole, 4) as checkpoint:
        checkpoint.restore(subject)
        checkpoint.set_model(subject)
        subject.optimizer.learning_rate.assign(0.03)  # as a callback may, when the epoch ends
        for name in ("replace", "remove"):
            monkeypatch.setattr(os, name, killed_before(getattr(os, name)))
        checkpoint._save_end_of_epoch()
        monkeypatch.undo()
    rates = []
    for folder in [*kills, whole]:
        with Checkpoint(folder, 4) as checkpoint:
            assert checkpoint.restore(subject) == 4
            rates.append(round(float(subject.optimizer.learning_rate), 6))
    assert rates == sorted(rates, reverse=True)
    assert set(rates) == {0.1, 0.03}


def test_a_resumed_validation_adds_to_the_record_alone(trainer, fit, tmp_path):
    with Checkpoint(tmp_path, 4) as checkpoint:
        fit(trainer(), checkpoint)
        checkpoint.history = {}
        checkpoint._save_end_of_epoch()  # as if killed before the end of the epoch
    arrays, record = tmp_path / "step-4.npz", tmp_path / "step-4.json"
    before = arrays.stat().st_ino
    with Checkpoint(tmp_path, 4) as checkpoint:
        checkpoint.restore(subject := trainer())
        assert checkpoint.epoch == 0
        fit(subject, checkpoint)
    assert arrays.stat().st_ino == before
    assert list(json.loads(record.read_text())["history"]) == ["0"]


def test_what_a_layer_derives_from_its_weights_is_restored_too(foreign_model, images, labels, tmp_path):
    """A new process builds its Normalization again, and does not adapt it."""
    results = []
    for restored in (False, True):
        model = foreign_model("normalization")
        if restored:
            model.layers[0].adapt(np.zeros((2, 8, 8, 3)))
        trainer = AdversarialModel(model, PGD(LinfBall(4), steps=1))
        trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        with Checkpoint(tmp_path / "checkpoints", steps_per_epoch=1, every=1) as checkpoint:
            assert checkpoint.restore(trainer) == int(restored)
            if not restored:
                trainer.fit(images, labels, batch_size=8, verbose=0, callbacks=[checkpoint])
        results.append(model(images))
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)
