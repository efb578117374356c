"""The training of a run, and how an interrupted run continues."""

import csv
import dataclasses
import json
import os
import shutil

import h5py
import numpy as np
import pytest

from keras_sat import run as run_lib
from keras_sat.attacks import PGD
from keras_sat.run import Run, optimizers, training
from keras_sat.training import Progress
from keras_sat.training.callbacks import robust_accuracy


def test_a_folder_is_not_overwritten(short, trained):
    folder, _ = trained
    before = (folder / "model.weights.h5").read_bytes()
    with pytest.raises(ValueError, match="contains a finished run.*--continue"):
        run_lib.train(short, folder)
    assert (folder / "model.weights.h5").read_bytes() == before


def test_a_failure_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="tfds build cifar10"):
        run_lib.train(Run(dataset="cifar10", data_dir=str(tmp_path / "data")), tmp_path / "run")
    assert not os.path.exists(tmp_path / "run")


def test_a_run_that_failed_before_its_first_checkpoint_does_not_bind_the_next(short, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(dataclasses.replace(short, learning_rate=9.0).settings()))
    assert training._check_goes_on(short, tmp_path / "run", go_on=False) == []
    (folder / "step-3.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other settings \(learning_rate=9.0\)"):
        training._check_goes_on(short, tmp_path / "run", go_on=False)


def test_a_failure_in_the_first_step_leaves_nothing(short, tmp_path):
    options = {"learning_rate": 1e30, "ema": 0.0, "clip_norm": None, "optimizer": "sgd", "strategy": "none"}
    wrong = dataclasses.replace(short, **options)
    with pytest.raises(FloatingPointError):
        run_lib.train(wrong, tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_data_that_changed_are_noticed_when_a_run_goes_on(quick, run_on_photos):
    folder, photos = run_on_photos
    path = photos / "train" / "bright" / "0.png"
    (photos / "train" / "bright" / "new.png").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="The data of the run in .* changed: train: 24 images then, 25 now"):
        run_lib.train(quick(photos, epochs=2), folder, go_on=True)


def test_a_finished_run_can_be_continued(quick, run_on_photos, tmp_path):
    folder, photos = run_on_photos
    with pytest.raises(ValueError, match="contains a finished run: "):
        run_lib.train(quick(photos, epochs=3), folder)
    with pytest.raises(ValueError, match="contains a finished run: .*a larger N"):
        run_lib.train(quick(photos), folder, go_on=True)
    with pytest.raises(ValueError, match="contains no run to continue"):
        run_lib.train(quick(photos, epochs=3), tmp_path / "typo", go_on=True)
    os.rename(photos, tmp_path / "moved")  # the same data elsewhere
    photos = tmp_path / "moved"
    with pytest.raises(ValueError, match="other settings .activation='silu'"):
        run_lib.train(quick(photos, epochs=3, activation="relu"), folder, go_on=True)
    run_lib.train(quick(photos, epochs=3), folder, go_on=True)
    record = json.loads((folder / "run.json").read_text())
    assert (record["epochs"], record["continued"], record["iterations"]) == (3, [1], 9)
    assert [len(values) for values in record["history"].values()] == [3] * len(record["history"])
    assert None not in record["history"]["val_accuracy"]


TINY = Run(
    train_split="train[:90]",
    image_size=8,
    batch_size=20,
    validation=10,
    steps=1,
    epochs=2,
    strategy="none",
    guard="none",
)


def arrays(path):
    """Returns {name: values} of a file of weights."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def assert_same_weights(one, other):
    one, other = arrays(one), arrays(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], name)


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """A run of one epoch that keeps the last one, with a named split for validation: (run, folder, network, lines)."""
    run, lines = dataclasses.replace(TINY, validation_split="test[:20]", epochs=1, keep="last"), []
    folder = tmp_path_factory.mktemp("validated")
    model, _ = run_lib.train(run, folder, say=lines.append)
    return run, folder, model, lines


@pytest.fixture(scope="module")
def unvalidated(tmp_path_factory):
    """A run of one epoch without validation: (run, folder)."""
    run = dataclasses.replace(TINY, epochs=1, normalization="none", validation=0)
    folder = tmp_path_factory.mktemp("unvalidated")
    run_lib.train(run, folder)
    return run, folder


def test_the_best_epoch_is_kept_beside_the_last(tmp_path):
    """Patience of one epoch ends the training right after the best epoch, or after a tie."""
    run, said = dataclasses.replace(TINY, epochs=30, patience=1, ema=0.5, learning_rate=0.02), []
    model, is_finished = run_lib.train(run, tmp_path, say=said.append)
    record = json.loads((tmp_path / "run.json").read_text())
    robust = record["history"]["val_robust_accuracy"]
    best = int(np.argmax(robust))
    assert is_finished and record["finished"] and len(robust) == best + 2 < 30
    assert record["ended"] == "no larger robust validation accuracy for 1 epoch"
    assert (record["kept"], record["best"]["epoch"], record["last"]["epoch"]) == ("best", best + 1, best + 2)
    assert said[-2:] == [
        "The training ended early: no larger robust validation accuracy for 1 epoch.",
        f"Kept: epoch {best + 1} of 30, robust validation accuracy {100 * robust[best]:.1f} %.",
    ]
    assert record["best"]["val_robust_accuracy"] == robust[best]
    _, loaded = run_lib.load(tmp_path)
    for own, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(own, theirs)
    again = robust_accuracy(loaded, run.validation_data(), PGD(run.ball(), steps=10))
    assert again == pytest.approx(robust[best], abs=0.11)  # the weights that were kept have the figure of the record
    best_weights, last_weights = arrays(tmp_path / "model.weights.h5"), arrays(tmp_path / "last.weights.h5")
    assert any((value != last_weights[name]).any() for name, value in best_weights.items())
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_robust_accuracy"]) for row in rows] == pytest.approx(robust)


def test_the_last_epoch_is_kept_on_demand_and_without_validation(validated, unvalidated):
    _, folder, _, _ = validated
    assert json.loads((folder / "run.json").read_text())["kept"] == "last"
    assert_same_weights(folder / "model.weights.h5", folder / "best.weights.h5")  # one epoch
    run, folder = unvalidated
    record = json.loads((folder / "run.json").read_text())
    assert run.keep == "best"
    assert (record["kept"], record["best"], "val_accuracy" in record["history"]) == ("last", None, False)
    assert not (folder / "best.weights.h5").exists()


class Snapshots(Progress):
    """Copies the folder of the run at some steps, as a kill would leave it."""

    folder, steps = None, {}

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        for step, place in self.steps.items():
            if (self.folder / "checkpoints" / f"step-{step}.json").exists() and not place.exists():
                shutil.copytree(self.folder, place)


FROM_WEIGHTS = {"weights": "sat-fashion-mnist", "head_epochs": 1, "freeze": "batch_norm"}
FROM_NOTHING = {"optimizer": "torch_sgd", "schedule": "onecycle", "cycle_momentum": "0.8,0.9", "cutmix": 1.0}
FROM_NOTHING |= {"extra_share": 0.5, "objective": "trades", "clean_passes": 2, "learning_rate": 0.1}


@pytest.mark.parametrize("options", [FROM_WEIGHTS, FROM_NOTHING], ids=["weights", "extra images"])
def test_a_killed_run_ends_as_if_it_was_not_killed(options, tmp_path, monkeypatch):
    """Killed at the last step of the epoch of the head, before its validation; and within the second phase."""
    if "extra_share" in options:
        images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
        np.savez(tmp_path / "extra.npz", image=images, label=np.arange(40) % 10)
        options = options | {"extra_data": str(tmp_path / "extra.npz")}
    run = dataclasses.replace(TINY, ema=0.5, checkpoint_every=1, patience=3, **options)
    monkeypatch.setattr(Snapshots, "folder", tmp_path / "whole")
    monkeypatch.setattr(Snapshots, "steps", {4: tmp_path / "killed-4", 6: tmp_path / "killed-6"})
    monkeypatch.setattr(training, "Progress", Snapshots)
    lines = []
    run_lib.train(run, tmp_path / "whole", say=lines.append)
    assert any("10 images of train[:90] are held out for validation" in line for line in lines)
    monkeypatch.setattr(training, "Progress", Progress)
    whole = json.loads((tmp_path / "whole" / "run.json").read_text())
    for step in (4, 6):
        killed = tmp_path / f"killed-{step}"
        assert killed.exists()
        said: list[str] = []
        run_lib.train(run, killed, say=said.append)
        assert f"Continuing the run in {killed}: {step} of 8 steps are done." in said
        record = json.loads((killed / "run.json").read_text())
        assert record["iterations"] == whole["iterations"] == 8
        for name in ("val_accuracy", "val_robust_accuracy", "val_loss"):
            assert record["history"][name] == whole["history"][name]
        assert record["best"]["epoch"] == whole["best"]["epoch"]
        for name in ("model", "last"):
            assert_same_weights(tmp_path / "whole" / f"{name}.weights.h5", killed / f"{name}.weights.h5")


def test_ctrl_c_before_the_first_step_of_the_second_phase_keeps_the_head(tmp_path, monkeypatch):
    run = dataclasses.replace(TINY, weights="sat-fashion-mnist", head_epochs=1, ema=0.9, validation=0)
    fit, ended = training.AdversarialModel.fit, []

    def fit_once(trainer, *args, **kwargs):
        if ended:
            trainer.optimizer.build(trainer.trainable_variables)  # as before the first batch
            raise KeyboardInterrupt
        history = fit(trainer, *args, **kwargs)
        ended.extend(trainer.classifier.get_weights())
        return history

    monkeypatch.setattr(training.AdversarialModel, "fit", fit_once)
    model, is_finished = run_lib.train(run, tmp_path)
    assert not is_finished
    for weight, before in zip(model.get_weights(), ended, strict=True):
        np.testing.assert_array_equal(weight, before)


def test_the_head_is_trained_first_on_demand():
    run = dataclasses.replace(TINY, weights="sat-fashion-mnist", head_epochs=1)
    phases = training._phases(run)
    assert [(phase.freeze, phase.first, phase.last) for phase in phases] == [("backbone", 0, 1), (None, 1, 2)]
    with pytest.raises(ValueError, match="head_epochs must be 0, or with --weights fewer than epochs"):
        dataclasses.replace(run, head_epochs=2)
    with pytest.raises(ValueError, match="freeze must be left out without weights"):
        dataclasses.replace(TINY, freeze="backbone")


def test_a_named_split_for_validation(validated, tmp_path):
    """It must not overlap with the training split; a line says that the evaluation uses it too, if it decided."""
    run, folder, model, lines = validated
    line = (
        "`keras-sat evaluate` uses test too: its accuracies are too high, because the epoch that is kept was chosen on "
        "these images."
    )
    assert lines[1] == "Validation: test[:20]."
    assert line not in lines  # the last epoch is kept, whatever its accuracy
    best = dataclasses.replace(run, keep="best")
    assert training._about_splits(best) == ["Validation: test[:20].", line]
    record = json.loads((folder / "run.json").read_text())
    kept = record["best"]["val_robust_accuracy"]
    assert robust_accuracy(model, run.validation_data(), PGD(run.ball(), steps=10)) == pytest.approx(kept, abs=0.06)
    run_lib.open_run(folder)
    shutil.copytree(folder, tmp_path / "best")
    (tmp_path / "best" / "run.json").write_text(json.dumps(record | {"keep": "best"}))
    with pytest.warns(
        UserWarning, match=r"20 images of test are also in test\[:20\], on which the network was validated"
    ):
        run_lib.open_run(tmp_path / "best")
    with pytest.raises(ValueError, match="apart from train_split, train.:90.: 10 images are in both"):
        dataclasses.replace(run, validation_split="train[80:200]").steps_per_epoch()


def test_what_the_weights_are_is_recorded_whatever_was_given(unvalidated, tmp_path):
    """A run that is told its network, but not its normalization, has that of the weights, and so it is loaded."""
    run, first = unvalidated
    given = {"model": "ResNet8", "activation": "silu", "normalization": None, "weights": str(first)}
    second = dataclasses.replace(run, **given)
    assert second.normalization == "none"
    model, _ = run_lib.train(second, tmp_path / "second")
    _, loaded = run_lib.load(tmp_path / "second")
    images = next(iter(run.load_data("test[:4]")))[0]
    np.testing.assert_array_equal(loaded(images), model(images))
    began = json.loads((tmp_path / "second" / "run.json").read_text())["began_with"]
    assert began["weights"] == str(first) and len(began["sha256"]) == 64
    with pytest.raises(ValueError, match="leave out"):
        dataclasses.replace(run, weights=str(first), normalization="cifar10")


def test_a_run_of_an_older_version_goes_on_as_it_was(short, trained, tmp_path):
    """It held nothing out: with 5 % held out now, it would be validated on images that it has seen."""
    shutil.copytree(trained[0], tmp_path / "old")
    for path in (tmp_path / "old").rglob("run.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in record.items() if name != "validation"}))
    with pytest.raises(ValueError, match=r"other settings \(validation=0.0\)"):
        run_lib.train(dataclasses.replace(short, epochs=2), tmp_path / "old", go_on=True)
    assert run_lib.load(tmp_path / "old")[0].validation == 0


def test_extra_images_that_changed_are_noticed_when_a_run_goes_on(tmp_path):
    path = tmp_path / "extra.npz"
    for seed in range(2):
        images = np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 1), np.uint8)
        np.savez(path, image=images, label=np.arange(40) % 10)
        run = dataclasses.replace(TINY, extra_data=str(path), extra_share=0.5, epochs=1 + seed, validation=0)
        if seed == 0:
            lines = []
            run_lib.train(run, tmp_path / "run", say=lines.append)
            assert any(line.startswith("Extra images: 40 of") for line in lines)
            continue
        with pytest.raises(ValueError, match="The data of the run in .* changed: other extra images"):
            run_lib.train(run, tmp_path / "run", go_on=True)


def test_the_guard_is_on_for_one_step():
    run = Run(steps=1)
    assert run.guard_action() == "stop"
    assert dataclasses.replace(run, steps=2).guard_action() == "none"
    small = dataclasses.replace(run, validation=49)
    assert small.guard_action() == "none"
    assert training._about_training(small, 3)[-1].endswith("it takes 50 images for validation, there are 49.")
    for asked in (dataclasses.replace(small, steps=2), dataclasses.replace(small, guard="none")):
        assert len(training._about_training(asked, 3)) == 1
    assert dataclasses.replace(run, guard="roll_back").guard_action() == "roll_back"
    assert dataclasses.replace(run, validation=0).guard_action() == "none"
    guard = training._guard(run, steps=100)
    assert guard.every == 25
    assert sum(len(labels) for _, labels in guard.dataset) == 200
    with pytest.raises(ValueError, match="guard must be none without validation images"):
        Run(guard="stop", validation=0)


def test_cost_is_measured_for_exactly_these_settings():
    text = run_lib.cost(dataclasses.replace(TINY, epochs=3))
    assert "images/s" in text and "for 3 epochs of 4 steps" in text


@pytest.mark.parametrize("name", ["ResNet8", "ConvNeXtTiny"])
def test_weight_decay_is_on_kernels_only(name, short):
    run = dataclasses.replace(short, model=name, activation="smooth_relu", weight_decay=0.1, image_size=32)
    model = run.build()
    weights = model.trainable_weights
    assert {w.name for w in weights} == {"kernel", "bias", "gamma", "beta", "root_beta"}
    optimizer = optimizers.optimizer(run, model, 10, 0.1)
    assert {w.name for w in weights if optimizer._use_weight_decay(w)} == {"kernel"}
    optimizers.optimizer(dataclasses.replace(run, optimizer="sgd"), model, 10, 0.1)
    assert {w.name for w in weights if w.regularizer is not None} == {"kernel"}
    assert all(w.regularizer for w in weights if w.name == "kernel")
