"""The training of a run, and how an interrupted run continues."""

import dataclasses
import json
import os

import pytest

from keras_sat import run as run_lib
from keras_sat.run import Run, training


def test_a_folder_is_not_overwritten(short, trained):
    folder, _ = trained
    before = (folder / "model.weights.h5").read_bytes()
    with pytest.raises(ValueError, match="holds a finished run already.*--continue"):
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
    with pytest.raises(ValueError, match="finished run already"):
        run_lib.train(quick(photos, epochs=3), folder)
    with pytest.raises(ValueError, match="finished run already.*a larger N"):
        run_lib.train(quick(photos), folder, go_on=True)
    with pytest.raises(ValueError, match="holds no run to go on with"):
        run_lib.train(quick(photos, epochs=3), tmp_path / "typo", go_on=True)
    os.rename(photos, tmp_path / "moved")  # the same data elsewhere
    photos = tmp_path / "moved"
    with pytest.raises(ValueError, match="other settings .activation='silu'"):
        run_lib.train(quick(photos, epochs=3, activation="relu"), folder, go_on=True)
    run_lib.train(quick(photos, epochs=3), folder, go_on=True)
    record = json.loads((folder / "run.json").read_text())
    assert (record["epochs"], record["continued"], record["iterations"]) == (3, [1], 12)
    assert [len(values) for values in record["history"].values()] == [3] * len(record["history"])
    assert None not in record["history"]["val_accuracy"]


@pytest.mark.parametrize("name", ["ResNet8", "ConvNeXtTiny"])
def test_weight_decay_is_on_kernels_only(name, short):
    run = dataclasses.replace(short, model=name, activation="smooth_relu", weight_decay=0.1, image_size=32)
    trainer = training._trainer(run, steps=10)
    weights = trainer.classifier.trainable_weights
    assert {w.name for w in weights} == {"kernel", "bias", "gamma", "beta", "root_beta"}
    assert {w.name for w in weights if trainer.optimizer._use_weight_decay(w)} == {"kernel"}
    training._optimizer(dataclasses.replace(run, optimizer="sgd"), trainer.classifier, steps=10)
    assert {w.name for w in weights if w.regularizer is not None} == {"kernel"}
    assert all(w.regularizer for w in weights if w.name == "kernel")
