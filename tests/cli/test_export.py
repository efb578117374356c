"""The command `keras-sat export`."""

import json
import os
import re

import pytest
import tensorflow as tf


def test_train_writes_what_evaluate_and_export_read(inside, run, folder):
    record = json.loads((folder / "run.json").read_text())
    assert record["activation"] == {"name": "gelu", "approximate": False}
    assert (record["epsilon"], record["iterations"], record["finished"]) == (10, 4, True)
    assert record["attack_precision"] == "mixed_bfloat16"

    done = run("evaluate", folder, "--attack=fgsm,pgd-3", "--split=test[:200]")
    assert done.returncode == 0, done.stderr
    assert re.search(r"PGD-3 +linf +10 +200 +\d", done.stdout)
    report = json.loads((folder / "report.json").read_text())
    assert [row["name"] for row in report["results"]] == ["clean", "FGSM", "PGD-3"]
    assert (report["context"]["dataset"], report["context"]["split"]) == ("fashion_mnist_mini", "test[:200]")

    assert inside("export", folder) == 0
    loaded = tf.saved_model.load(folder / "saved_model")
    assert loaded.signatures["serving_default"](images=tf.zeros((1, 14, 14, 1)))["logits"].shape == (1, 10)
    with pytest.raises(ValueError, match="exists"):
        inside("export", folder)


def test_what_is_refused_is_refused_before_anything_is_written(inside, of_photos, exported, photos, tmp_path):
    for flags, message in (
        (["--int8=net.lite"], "ends in .tflite"),
        ([f"--dataset={photos}"], "--dataset and --data_dir go with --int8"),
        ([f"--int8={tmp_path}/n.tflite", "--precision=bfloat16"], "leave out --precision=bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            inside("export", of_photos, f"--to={tmp_path / 'saved'}", *flags)
    assert os.listdir(tmp_path) == []
    given = (f"--dataset={photos}", "--epsilon=4", f"--output={tmp_path / 'out'}")
    with pytest.raises(ValueError, match="has no gradients, which .* needs: use --attack=square"):
        inside("evaluate", exported[1], "--attack=pgd-5", *given)
    assert not (tmp_path / "out").exists()
