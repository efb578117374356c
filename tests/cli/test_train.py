"""The command `keras-sat train`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from keras_sat import cli
from keras_sat.cli import train

COMMAND = os.path.join(os.path.dirname(sys.executable), "keras-sat")


@pytest.mark.slow
def test_two_workers_are_given_the_same_command(train_flags, free_ports, tmp_path):
    """Two processes on this machine; only the chief prints and writes files."""
    path, processes = tmp_path / "gelu", []
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    for index in range(2):
        environment = {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": os.environ | environment}
        processes.append(subprocess.Popen([COMMAND, *train_flags, f"--output={path}"], **options))
    (output, error), (silent, _) = (process.communicate(timeout=240) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], error
    assert f"keras-sat evaluate {path}" in output
    assert "robust validation accuracy" in output
    assert "accuracy" not in silent
    kept = {"model.weights.h5", "last.weights.h5", "run.json", "history.csv"}
    assert set(os.listdir(path)) == {*kept, "logs", "checkpoints"}
    assert len(list((path / "logs" / "train").iterdir())) == 1
    record = json.loads((path / "run.json").read_text())
    assert (record["iterations"], record["finished"]) == (4, True)


# A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C.
HEED_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def interrupted(arguments, when, patience=0.0):
    """Runs a training, and sends Ctrl-C after a line of its output that contains `when`. Returns status and stderr."""
    command = [sys.executable, "-c", HEED_CTRL_C, COMMAND, "train", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if when in line:
                break
        time.sleep(patience)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()  # otherwise, after a failure, it would slow down the next tests
        process.communicate()
    return process.returncode, error


def test_ctrl_c_leaves_what_was_trained_and_the_run_goes_on(inside, tmp_path):
    path = tmp_path / "run"
    command = [f"--output={path}", "--epochs=4", "--image_size=14", "--batch_size=500", "--ema=0.9", "--steps=1"]
    command += ["--train_split=train[:4000]", "--validation=500", "--guard=none"]  # seven steps an epoch
    status, error = interrupted(command, "epoch 1 of 4: ", patience=0.1)  # the first epoch is done
    assert status == 130
    assert error.strip().endswith(f"The training so far is in {path}; give the same command again to continue it")
    assert "Traceback" not in error
    record = json.loads((path / "run.json").read_text())
    assert record["finished"] is False
    assert 7 <= record["iterations"] < 28
    assert (path / "checkpoints" / f"step-{record['iterations']}.npz").exists()
    with pytest.warns(UserWarning, match=r"was interrupted at step \d+"):
        assert inside("evaluate", path, "--attack=fgsm", "--split=test[:100]") == 0
    assert inside("train", *command) == 0
    record = json.loads((path / "run.json").read_text())
    assert (record["finished"], record["iterations"]) == (True, 28)
    assert [len(values) for values in record["history"].values()] == [4] * len(record["history"])
    assert (path / "report.json").exists()


def test_ctrl_c_before_the_first_step_leaves_nothing(tmp_path):
    status, error = interrupted([f"--output={tmp_path / 'run'}", "--steps=10"], "held out", patience=1.0)
    assert (status, error.strip()) == (130, "keras-sat: interrupted")
    assert os.listdir(tmp_path) == []


def test_ctrl_c_while_tensorflow_starts_is_a_line(tmp_path):
    command = [sys.executable, "-c", HEED_CTRL_C, COMMAND, "train", f"--output={tmp_path / 'run'}"]
    for patience in (0.3, 1.0, 2.0):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(patience)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert (process.returncode, error.strip()) in ((130, "keras-sat: interrupted"), (-2, ""))  # or before our code
    assert os.listdir(tmp_path) == []


def test_a_damaged_file_ends_the_training_with_its_name(photos, tmp_path, monkeypatch, capfd):
    shutil.copytree(photos, tmp_path / "photos")
    bad = tmp_path / "photos" / "train" / "dark" / "cut.png"
    bad.write_bytes((photos / "train" / "dark" / "1.png").read_bytes()[:-40])
    flags = ["--image_size=16", "--channels=1", "--crop=stretch", "--epochs=1", "--batch_size=10", "--steps=1"]
    flags += ["--validation=0", f"--dataset={tmp_path / 'photos'}", f"--output={tmp_path / 'run'}"]
    for more, status, said in (
        ([], 1, f"keras-sat: This image cannot be read: {bad} (cut short"),
        (
            ["--skip-damaged"],
            0,
            f"keras-sat: {tmp_path / 'photos'}: damaged files are left out, 1 in all: train/dark/cut.png",
        ),
    ):
        monkeypatch.setattr(sys, "argv", [COMMAND, "train", *flags, *more])
        with pytest.raises(SystemExit) as left:
            cli.main()
        error = capfd.readouterr().err
        assert left.value.code == status, error
        assert any(line.startswith(said) for line in error.splitlines()), error
        assert (tmp_path / "run").exists() == (status == 0)


def test_cost_and_config(inside, of_photos, tmp_path, capsys):
    """--cost ends before anything is written. --config takes the settings of a run, which further flags change."""
    flags = ["--epochs=6", "--step_size=1", "--cost"]
    assert inside("train", f"--config={of_photos / 'run.json'}", *flags) == 0
    output = capsys.readouterr().out
    assert "images/s" in output and "for 6 epochs of 4 steps" in output
    args = cli.parse(["keras-sat", "train", f"--config={of_photos}", *flags])
    config, record = train._config(args).settings(), json.loads((of_photos / "run.json").read_text())
    assert {name: value for name, value in config.items() if value != record[name]} == {"epochs": 6, "step_size": 1.0}
    stored = json.loads((of_photos / "run.json").read_text()) | {"freeze": "backbone", "patience": 2, "mixup": 0.2}
    (tmp_path / "run.json").write_text(
        json.dumps(stored | {"weights": "sat-fashion-mnist", "validation_split": "test"})
    )

    def configured(*more):
        return train._config(cli.parse(["keras-sat", "train", f"--config={tmp_path}", "--cost", *more]))

    fresh = configured("--freeze=none", "--patience=none", "--mixup=none", "--weights=none", "--validation=0.2")
    assert (fresh.freeze, fresh.patience, fresh.mixup, fresh.weights) == (None, None, None, None)
    assert (fresh.validation, fresh.validation_split) == (0.2, None)
    other = configured(f"--weights={of_photos}", "--patience=3")  # its network is that of its own weights
    assert (other.activation, other.patience) == (stored["activation"], 3)
    network = (stored["model"], stored["activation"])
    for weights in ("none", "sat-fashion-mnist"):  # they say no network: that of the config stays
        kept = configured("--freeze=none", "--patience=none", f"--weights={weights}")
        assert (kept.model, kept.activation) == network
    with pytest.raises(ValueError, match="Say --validation, .* or --validation_split, not both"):
        configured("--validation=0.2", "--validation_split=test")
    (tmp_path / "bad.json").write_text('{"epoch": 3}')
    for path, message in ((tmp_path / "bad.json", "has 'epoch', which is no setting"), (tmp_path / "none", "no file")):
        with pytest.raises(ValueError, match=message):
            inside("train", f"--config={path}", f"--output={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
