"""The command `keras-sat compare`."""

import json
import shutil

import pytest

from keras_sat import export
from keras_sat import run as run_lib
from keras_sat.preprocessing import Preprocessing


def test_compare_warns_of_another_preprocessing(inside, of_photos, tmp_path, capsys):
    run, model = run_lib.load(of_photos)
    how, classes = Preprocessing(16, 18, 1, "padded"), run.description.classes
    export.export_saved_model(model, tmp_path / "other", labels=classes, preprocessing=how, signatures=[])
    own = run.description.preprocessing
    export.export_saved_model(model, tmp_path / "unnamed", preprocessing=own, signatures=[])
    with (
        pytest.warns(UserWarning, match="other has another preprocessing than the run: .*padded"),
        pytest.warns(UserWarning, match="unnamed does not name its classes"),
    ):
        given = ("--attack=fgsm", f"--output={tmp_path / 'table.json'}")
        assert inside("compare", of_photos, tmp_path / "other", tmp_path / "unnamed", *given) == 0
    paths = {"original": str(of_photos)} | {name: str(tmp_path / name) for name in ("other", "unnamed")}
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name, path in paths.items():
        assert [f"{name}:", path] in lines
    assert json.loads((tmp_path / "table.json").read_text())["context"]["networks"] == paths


def test_an_export_is_checked_against_its_labels(inside, photos, of_photos, exported, tmp_path):
    shutil.copytree(exported[0], tmp_path / "saved")
    with pytest.raises(ValueError, match="exists already: choose another file"):
        inside("compare", of_photos, tmp_path / "saved", f"--output={tmp_path}")
    (tmp_path / "saved" / "assets" / "labels.txt").write_text("dark\nbright\n")
    with pytest.raises(ValueError, match="other classes than the run: 'dark' in its labels.txt, 'bright' in run.json"):
        inside("compare", of_photos, tmp_path / "saved", "--attack=fgsm")
    (tmp_path / "saved" / "assets" / "labels.txt").write_text("dark\nlight\n")
    given = (f"--dataset={photos}", "--epsilon=4", "--attack=fgsm", f"--output={tmp_path / 'out'}")
    with pytest.raises(ValueError, match="does not know: 'bright' .*lacks 'light'"):
        inside("evaluate", tmp_path / "saved", *given)
