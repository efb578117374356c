"""Images for validation, and for the evaluation, that the weights were trained on before."""

import dataclasses
import json
import re
import shutil

import pytest

from keras_sat import run as run_lib
from keras_sat.run import Run, trained_on

SEEN = "validation accuracies are too high"


@pytest.fixture(scope="module")
def first(trained, tmp_path_factory):
    """The folder of a run with its run.json as it is: train[:500], 100 of them held out, seed 0."""
    folder = tmp_path_factory.mktemp("first") / "run"
    shutil.copytree(trained[0], folder)
    return folder


def second(first, **changes):
    values = {"weights": str(first), "train_split": "train[:500]", "validation": 100, "image_size": 14, "steps": 1}
    return Run(**values | changes)


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({}, 0),  # the same images are held out
        ({"seed": 1}, 1),
        ({"validation": 50}, 1),
        ({"train_split": "train[:600]"}, 1),
        ({"train_split": "train[500:900]"}, 0),
        ({"train_split": "train[500:900]", "validation_split": "train[400:450]"}, 1),
        ({"validation_split": "test[:100]"}, 0),
        ({"validation": 0}, 0),
    ],
)
def test_validation(first, changes, number):
    lines = trained_on.for_validation(second(first, **changes))
    assert len(lines) == number
    assert all(line.startswith("The weights were trained on train[:500] of") and SEEN in line for line in lines)
    assert trained_on.for_validation(second(first, weights=str(first / "last.weights.h5"), **changes)) == lines


def test_weights_of_the_zoo():
    """sat-fashion-mnist was trained on the images of which fashion_mnist_mini is a part."""
    (line,) = trained_on.for_validation(Run(weights="sat-fashion-mnist"))
    assert line.startswith("The weights were trained on train of fashion_mnist_mini")
    assert trained_on.for_validation(Run(weights="sat-fashion-mnist", validation_split="test[:100]")) == []


def test_what_a_run_began_with_is_remembered(first, tmp_path):
    """Also what came before: the first training is in the run.json of the third one."""
    run, said = second(first, train_split="train[500:700]", epochs=1, batch_size=50, validation=50, guard="none"), []
    run_lib.train(run, tmp_path / "second", say=said.append)
    assert not any(SEEN in line for line in said)
    began = json.loads((tmp_path / "second" / "run.json").read_text())["began_with"]
    (own,) = began["trained_on"]
    assert set(own.pop("images")) == {"train", "test"}
    assert own == {"dataset": "fashion_mnist_mini", "train_split": "train[:500]", "seed": 0, "hold_out": 100}
    third = dataclasses.replace(run, weights=str(tmp_path / "second"), train_split="train[700:900]")
    assert [one["train_split"] for one in trained_on.before(third)] == ["train[500:700]", "train[:500]"]
    with pytest.warns(UserWarning) as warned:
        run_lib.open_run(tmp_path / "second", split="train[480:700]")
    text = " ".join(str(warning.message) for warning in warned)
    assert re.search(r"weights that were trained on train\[:500\], which has 20 images of train\[480:700\]", text)
    finished, model = run_lib.load(tmp_path / "second")
    run_lib.export(finished, model, tmp_path / "second", tmp_path / "export")
    from_export = dataclasses.replace(third, weights=str(tmp_path / "export"))
    assert trained_on.before(from_export) == trained_on.before(third)


def test_a_folder_that_moved_or_changed(photos, quick, tmp_path):
    """The images count, not where they are. Of a folder with more images, others are held out."""
    run_lib.train(quick(photos, validation=4), tmp_path / "run")
    second = quick(photos, validation=4, weights=str(tmp_path / "run"))
    assert trained_on.for_validation(second) == []
    shutil.copytree(photos, tmp_path / "copy")
    copied = quick(tmp_path / "copy", validation=4, weights=str(tmp_path / "run"))
    assert trained_on.for_validation(copied) == []
    (line,) = trained_on.for_validation(dataclasses.replace(copied, seed=1))
    assert SEEN in line
    shutil.copy(photos / "train" / "dark" / "0.png", photos / "train" / "dark" / "more.png")
    (line,) = trained_on.for_validation(quick(photos, validation=4, weights=str(tmp_path / "run")))
    assert SEEN in line
