"""The command as a user runs it: in processes of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import tensorflow as tf

from keras_sat import cli, models

COMMAND = os.path.join(os.path.dirname(sys.executable), "keras-sat")


def run(*arguments):
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300)


TRAIN = ["train", '--activation={"name": "gelu", "approximate": false}', "--epsilon=10", "--epochs=1", "--steps=1"]
TRAIN += ["--batch_size=500", "--image_size=14", "--attack_precision=mixed_bfloat16", "--ema=0.5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "gelu"
    done = run(*TRAIN, f"--output={path}")
    assert done.returncode == 0, done.stderr
    assert f"keras-sat evaluate {path}" in done.stdout
    assert "val_robust_accuracy" in done.stdout
    return path


@pytest.mark.slow
def test_two_workers_are_given_the_same_command(free_ports, tmp_path):
    """Real processes on loopback; the chief alone speaks and writes."""
    path, processes = tmp_path / "gelu", []
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    for index in range(2):
        environment = {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": os.environ | environment}
        processes.append(subprocess.Popen([COMMAND, *TRAIN, f"--output={path}"], **options))
    (output, error), (silent, _) = (process.communicate(timeout=240) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], error
    assert f"keras-sat evaluate {path}" in output
    assert "val_robust_accuracy" in output
    assert "val_robust_accuracy" not in silent
    assert set(os.listdir(path)) == {"model.weights.h5", "run.json", "logs"}
    assert len(list((path / "logs" / "train").iterdir())) == 1
    record = json.loads((path / "run.json").read_text())
    assert (record["iterations"], record["finished"]) == (20, True)


def test_train_writes_what_evaluate_and_export_read(folder):
    record = json.loads((folder / "run.json").read_text())
    assert record["activation"] == {"name": "gelu", "approximate": False}
    assert (record["epsilon"], record["iterations"], record["finished"]) == (10, 20, True)
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


def inside(*arguments):
    """Runs the command in this process, which spares starting TensorFlow; prints and raises as it does."""
    args = cli._parse(["keras-sat", *map(str, arguments)])
    return args.run(args)


def test_evaluate_with_all_its_flags(folder, tmp_path, capsys):
    """Several attacks, corruptions, audit and page; then shards, a curve, and what was exported."""
    flags = ("--split=test[:12]", "--batch_size=12", f"--output={tmp_path}")
    assert inside("evaluate", folder, "--attack=apgd-ce,pgd-3x2,corruptions", "--audit", "--html", *flags) == 0
    rows = json.loads((tmp_path / "report.json").read_text())["results"]
    assert [row["name"] for row in rows[:4]] == ["clean", "APGD-CE", "PGD-3X2", "gaussian_noise-3"]
    assert len(rows) == 3 + 7
    assert "loss over steps" in (tmp_path / "report.html").read_text()
    assert "checks" in json.loads((tmp_path / "audit.json").read_text())
    assert not list(tmp_path.glob(".evaluation*"))  # the state goes when it is no longer needed

    for k in (0, 1):
        assert inside("evaluate", folder, "--attack=pgd-2", f"--shard={k}/2", *flags) == 0
    whole = json.loads((tmp_path / "report.json").read_text())
    assert whole["results"][1]["n"] == 12
    assert whole["examples"]["index"] == list(range(12))

    export_to, small = tmp_path / "saved", tmp_path / "small.tflite"
    assert inside("export", folder, f"--to={export_to}", f"--int8={small}") == 0
    assert "Verified" in capsys.readouterr().out
    card = json.loads((export_to / "assets" / "robustness_card.json").read_text())
    assert card["training"]["epsilon"] == 10
    assert (export_to / "assets" / "labels.txt").read_text().startswith("T-shirt/top\n")
    given = ("--dataset=fashion_mnist_mini", "--epsilon=2,8", "--attack=pgd-2")
    assert inside("evaluate", export_to, *given, *flags) == 0
    assert re.search(r"epsilon 8 +linf +8 +12", capsys.readouterr().out)
    given = ("--dataset=fashion_mnist_mini", "--epsilon=8", "--attack=corruptions")
    assert inside("evaluate", small, *given, *flags) == 0
    assert (
        inside("compare", folder, export_to, small, "--attack=pgd-2", f"--output={tmp_path / 'c.json'}", *flags[:2])
        == 0
    )
    assert re.search(r"^small.tflite +\d+\.\d %", capsys.readouterr().out, re.MULTILINE)
    assert set(json.loads((tmp_path / "c.json").read_text())["results"]) == {"original", "saved", "small.tflite"}


def test_bad_flags_of_evaluate(folder, tmp_path):
    new = tmp_path / "new"
    with pytest.raises(ValueError, match="one attack"):
        inside("evaluate", folder, "--epsilon=2,4", "--attack=fgsm,pgd-2", f"--output={new}")
    with pytest.raises(ValueError, match="attack must be one of"):
        inside("evaluate", folder, "--attack=pgd", f"--output={new}")
    assert not new.exists()
    for flag, message in (
        ("--shard=4/4", "K < N"),
        ("--epsilon=big", "epsilon must be a number"),
        ("--dataset=x", "for an export"),
        ("--attack=pgd-fifty", "attack must be one of fgsm, pgd-STEPS"),
        ("--attack=autoatack", "autoattack-plus"),
    ):
        with pytest.raises(ValueError, match=message):
            inside("evaluate", folder, flag)


def test_a_killed_evaluation_goes_on(folder, tmp_path):
    command = [COMMAND, "evaluate", str(folder), "--attack=pgd-300", "--split=test[:300]", "--batch_size=20"]
    process = subprocess.Popen([*command, f"--output={tmp_path}"], stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob(".evaluation*.npz")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    (state,) = tmp_path.glob(".evaluation*.npz")
    done = run(*command[1:], f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert not state.exists()
    assert not done.stdout.startswith("clean")  # that pass was done before the kill
    assert (tmp_path / "report.json").exists()


def test_serve(folder, tmp_path):
    assert inside("export", folder, f"--to={tmp_path / 'net' / '1'}") == 0
    command = [COMMAND, "serve", str(tmp_path / "net"), "--rest_port=0", "--grpc_port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        address = lines[1].split()[-1]
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert json.load(answer)["model_version_status"][0]["state"] == "AVAILABLE"
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert error == ""


# A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C.
HEED_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_ctrl_c_leaves_what_was_trained(tmp_path):
    command = [sys.executable, "-c", HEED_CTRL_C, COMMAND, "train", f"--output={tmp_path / 'run'}", "--epochs=1000"]
    command += ["--image_size=14", "--batch_size=500", "--ema=0.9"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if "val_loss" in line:  # the first epoch is done
                break
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()  # else a failure would leave it to take the cores from the tests after it
        process.communicate()
    assert process.returncode == 130
    assert error.strip().endswith(f"interrupted; what was trained so far lies in {tmp_path / 'run'}")
    assert "Traceback" not in error
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["finished"] is False
    assert record["iterations"] >= 20
    assert inside("evaluate", tmp_path / "run", "--attack=fgsm", "--split=test[:100]") == 0


def test_convert(tmp_path, write_release):
    source = models.EfficientNetB0(input_shape=(None, None, 3))
    write_release(tmp_path / "model", source)
    to = tmp_path / "out" / "b0.weights.h5"
    done = run("convert", f"--from={tmp_path / 'model'}", "--model=EfficientNetB0", f"--to={to}")
    assert done.returncode == 0, done.stderr
    converted = models.EfficientNetB0(input_shape=(None, None, 3), weights=to)
    for one, other in zip(source.get_weights(), converted.get_weights()):
        np.testing.assert_array_equal(one, other)
    done = run(
        "convert", f"--from={tmp_path / 'model'}", "--model=EfficientNetB1", f"--to={tmp_path / 'b1.weights.h5'}"
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "missing" in done.stderr
    assert not (tmp_path / "b1.weights.h5").exists()


def test_list():
    known = json.loads(run("list", "--json").stdout)
    assert "ResNet50" in known["models"]
    assert "smooth_relu" in known["activations"]
    assert known["datasets"] == ["fashion_mnist_mini"]
    assert {"tag", "model", "clean", "robust", "under", "source"} <= set(known["weights"][0])
    text = run("list").stdout
    assert all(name in text for kind, names in known.items() if kind != "weights" for name in names)
    assert re.search(r"sat-imagenet-380 +ResNeXt152_32x8d +silu +380 +122372392 +78.0 +51.0", text)


TIRED = {
    "no command": ((), 2, "required"),
    "a misspelt command": (("tran",), 2, "invalid choice: 'tran'"),
    "a misspelt flag": (("train", "--output=x", "--epoch_s=3"), 2, "--epoch_s=3"),
    "no output": (("train",), 2, "--output"),
    "not a number": (("train", "--output=x", "--epsilon=big"), 2, "epsilon"),
    "not JSON": (("train", "--output=x", "--activation={gelu}"), 2, "not JSON"),
    "out of range": (("train", "--output=x", "--epochs=0"), 1, "epochs must be at least 1"),
    "an unknown activation": (("train", "--output=x", "--activation=swich"), 1, "Known are"),
    "an unknown dataset": (("train", "--output=x", "--dataset=cifr10"), 1, "no dataset 'cifr10'"),
    "an unknown strategy": (("train", "--output=x", "--strategy=tpus"), 1, "strategy must be"),
    "no such checkpoint": (
        ("convert", "--from=none", "--model=ResNet8", "--to=x.weights.h5"),
        1,
        "no readable checkpoint",
    ),
    "nothing to evaluate": (("evaluate",), 1, "a folder, or --model and --weights"),
    "a model without weights": (("evaluate", "--model=ResNet8"), 1, "go together"),
    "weights of another activation": (
        ("evaluate", "--model=ResNet8", "--weights=sat-fashion-mnist", "--activation=mish"),
        1,
        "there are for relu, silu",
    ),
    "an unknown attack": (
        ("evaluate", "--model=ResNet8", "--weights=sat-fashion-mnist", "--attack=pgd-fifty"),
        1,
        "attack must be one of fgsm, pgd-STEPS",
    ),
    "a missing folder": (("evaluate", "nowhere"), 1, "no folder nowhere"),
    "an empty folder": (("export", "."), 1, "run.json is missing"),
    "nothing to serve": (("serve", "."), 1, "holds no SavedModel"),
    "nothing to compare": (("compare", "."), 2, "exported"),
}


@pytest.mark.parametrize(("arguments", "status", "message"), TIRED.values(), ids=TIRED)
def test_bad_input_is_one_clear_line(arguments, status, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [COMMAND, *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()  # in this process, which spares starting TensorFlow for each
    output, error = capfd.readouterr()
    assert left.value.code == status
    assert message in error
    assert len(error.strip().splitlines()) == 1, error
    assert output == ""
    assert os.listdir(tmp_path) == []


def test_unreadable_weights(folder, tmp_path):
    (tmp_path / "run.json").write_bytes((folder / "run.json").read_bytes())
    (tmp_path / "model.weights.h5").write_bytes(b"<html>")
    done = run("evaluate", tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "model.weights.h5 is damaged" in done.stderr
