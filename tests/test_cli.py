"""The command as a user runs it: in processes of its own."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sat
from keras_sat import cli, data, export, models
from keras_sat import run as run_lib
from keras_sat.preprocessing import Preprocessing

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
    assert set(os.listdir(path)) == {"model.weights.h5", "run.json", "logs", "checkpoints"}
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
    first = "apgd-ce,pgd-3x2,corruptions-linf-10-test_..12"
    assert {f"{first}.json", f"{first}.html", f"{first}-audit.json"} <= set(os.listdir(tmp_path / "reports"))

    for k in (0, 1):
        assert inside("evaluate", folder, "--attack=pgd-2", f"--shard={k}/2", *flags) == 0
    assert (tmp_path / "report.json").readlink() == pathlib.Path("reports", "pgd-2-linf-10-test_..12.json")
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
        ("--dataset=x", "no dataset 'x'"),
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


def interrupted(arguments, when, patience=0.0):
    """Runs a training and sends Ctrl-C once a line of its output holds `when`; returns exit status and stderr."""
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
        process.kill()  # else a failure would leave it to take the cores from the tests after it
        process.communicate()
    return process.returncode, error


def test_ctrl_c_leaves_what_was_trained_and_the_run_goes_on(tmp_path):
    path = tmp_path / "run"
    command = [f"--output={path}", "--epochs=4", "--image_size=14", "--batch_size=500", "--ema=0.9", "--steps=1"]
    status, error = interrupted(command, "val_loss", patience=0.1)  # the first epoch is done
    assert status == 130
    assert error.strip().endswith(f"the same command goes on; what was trained so far lies in {path}")
    assert "Traceback" not in error
    record = json.loads((path / "run.json").read_text())
    assert record["finished"] is False
    assert 20 <= record["iterations"] < 80
    assert (path / "checkpoints" / f"step-{record['iterations']}.npz").exists()
    with pytest.warns(UserWarning, match=r"was interrupted at step \d+"):
        assert inside("evaluate", path, "--attack=fgsm", "--split=test[:100]") == 0
    assert inside("train", *command) == 0
    record = json.loads((path / "run.json").read_text())
    assert (record["finished"], record["iterations"]) == (True, 80)
    assert [len(values) for values in record["history"].values()] == [4] * len(record["history"])
    assert (path / "report.json").exists()


def test_ctrl_c_before_the_first_step_leaves_nothing(tmp_path):
    status, error = interrupted([f"--output={tmp_path / 'run'}", "--steps=10"], "10 classes", patience=1.0)
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


@pytest.fixture(scope="module")
def photos(tmp_path_factory, shades):
    """A folder of grey photos of two classes, bright and dark."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for split, number in (("train", 20), ("test", 10)):
        for name, factor in (("bright", 1.0), ("dark", 0.2)):
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                picture = shades("L", (16, 18)).point(
                    lambda value, factor=factor, index=index, number=number: int(value * factor) + index + number
                )
                picture.save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def of_photos(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "photos"
    flags = ["--epochs=2", "--batch-size=10", "--steps=1", "--epsilon=4", "--learning-rate=0.01"]
    assert inside("train", f"--dataset={photos}", f"--output={path}", *flags) == 0
    return path


def test_the_pixels_of_a_folder_are_the_same_everywhere(photos, of_photos, tmp_path, capsys):
    """evaluate, serving_bytes, predict and the int8 file see the same images, and answer alike."""
    saved, small = tmp_path / "saved", tmp_path / "small.tflite"
    assert inside("export", of_photos, f"--to={saved}", f"--int8={small}") == 0
    assert inside("evaluate", of_photos, "--attack=fgsm") == 0
    examples = json.loads((of_photos / "report.json").read_text())["examples"]
    run, model = run_lib.load(of_photos)
    paths = [path for path, _ in run.source.examples("test")]
    images = tf.concat([x for x, _ in run.load_data("test", 5)], 0)
    served = tf.saved_model.load(saved).signatures["serving_bytes"]
    outputs = served(image_bytes=tf.stack([tf.io.read_file(path) for path in paths]))
    np.testing.assert_allclose(outputs["logits"], model(images), atol=1e-4)
    labels = [label for _, label in run.source.examples("test")]
    np.testing.assert_array_equal(outputs["classes"] == labels, examples["clean"])

    for subject, tolerance in ((of_photos, 1e-4), (saved, 1e-4), (small, 0.2)):
        capsys.readouterr()
        assert inside("predict", subject, *paths, "--top=2", "--json") == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["image"] for row in rows] == paths
        found = [[row["classes"]["bright"], row["classes"]["dark"]] for row in rows]
        np.testing.assert_allclose(found, outputs["probabilities"], atol=tolerance)
    given = (f"--dataset={photos}", "--epsilon=4", f"--output={tmp_path}")
    assert inside("evaluate", saved, "--attack=fgsm", *given) == 0
    card = json.loads((saved / "assets" / "robustness_card.json").read_text())
    assert card["training"]["dataset"] == "photos"  # no folder of this machine
    assert json.loads((tmp_path / "report.json").read_text())["examples"]["clean"] == examples["clean"]


def test_an_export_of_another_tool_is_taken_with_a_word(photos, tmp_path, capsys):
    model = keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.export(tmp_path / "saved", verbose=False)
    with pytest.warns(UserWarning, match="does not say how its images are made.*: crop stretch is taken"):
        assert inside("predict", tmp_path / "saved", photos / "test" / "dark" / "0.png") == 0
    given = (f"--dataset={photos}", "--epsilon=4", "--attack=fgsm", f"--output={tmp_path / 'out'}")
    with pytest.warns(UserWarning) as said:
        assert inside("evaluate", tmp_path / "saved", *given) == 0
    lines = "\n".join(str(each.message) for each in said)
    assert "does not name its classes (assets/labels.txt): those of" in lines
    assert "crop stretch is taken" in lines


def test_predict_names_what_cannot_be_read(photos, of_photos, tmp_path, capsys):
    assert inside("predict", of_photos, photos / "test" / "dark") == 0
    assert re.match(r".*dark/0.png +(dark|bright) \d+.\d%$", capsys.readouterr().out.splitlines()[0])
    (tmp_path / "page.jpg").write_text("<html>")
    for path, message in ((tmp_path / "page.jpg", "a web page"), (tmp_path / "none.png", "no such file")):
        with pytest.raises(ValueError, match=f"{path} cannot be read: {message}"):
            inside("predict", of_photos, path)


def test_what_changed_since_the_training_is_said(of_photos, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    run = tmp_path / "run"
    shutil.copytree(of_photos, run)
    record = json.loads((run / "run.json").read_text().replace(str(photos), str(tmp_path / "photos")))
    (run / "run.json").write_text(json.dumps(record))
    shutil.copy(photos / "test" / "dark" / "1.png", tmp_path / "photos" / "test" / "dark" / "new.png")
    with pytest.warns(UserWarning, match="The images changed since .* was trained. test: 20 images then, 21 now"):
        assert inside("evaluate", run, "--attack=fgsm") == 0
    del record["data"]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match="does not say its classes and preprocessing"):
        assert inside("export", run, f"--to={tmp_path / 'saved'}") == 0


def test_compare_warns_of_another_preprocessing(of_photos, tmp_path):
    run, model = run_lib.load(of_photos)
    how = Preprocessing(16, 18, 1, "padded")
    export.export_saved_model(model, tmp_path / "other", labels=run.description.classes, preprocessing=how)
    with pytest.warns(UserWarning, match="makes images otherwise than the run: .*padded"):
        assert inside("compare", of_photos, tmp_path / "other", "--attack=fgsm") == 0
    export.export_saved_model(model, tmp_path / "unnamed", preprocessing=run.description.preprocessing)
    with pytest.warns(UserWarning, match="does not name its classes"):
        assert inside("compare", of_photos, tmp_path / "unnamed", "--attack=fgsm") == 0


def test_reports_are_never_overwritten(of_photos, tmp_path):
    flags = ("--attack=fgsm", f"--output={tmp_path}")
    assert inside("evaluate", of_photos, *flags) == 0
    assert inside("evaluate", of_photos, *flags, "--split=test[:50%]") == 0
    assert inside("evaluate", of_photos, *flags) == 0
    names = ["fgsm-linf-4-test-2.json", "fgsm-linf-4-test.json", "fgsm-linf-4-test_..50pct.json"]
    assert sorted(os.listdir(tmp_path / "reports")) == names
    assert (tmp_path / "report.json").resolve().name == "fgsm-linf-4-test-2.json"


def test_an_export_is_checked_against_its_labels(photos, of_photos, tmp_path):
    assert inside("export", of_photos, f"--to={tmp_path / 'saved'}") == 0
    (tmp_path / "saved" / "assets" / "labels.txt").write_text("dark\nbright\n")
    with pytest.raises(ValueError, match="other classes than the run: 'dark' in its labels.txt, 'bright' in run.json"):
        inside("compare", of_photos, tmp_path / "saved", "--attack=fgsm")
    (tmp_path / "saved" / "assets" / "labels.txt").write_text("dark\nlight\n")
    given = (f"--dataset={photos}", "--epsilon=4", "--attack=fgsm", f"--output={tmp_path / 'out'}")
    with pytest.raises(ValueError, match="does not know: 'bright' .*lacks 'light'"):
        inside("evaluate", tmp_path / "saved", *given)


def test_weights_of_the_zoo_on_a_folder(tmp_path, capsys):
    """Its classes are matched by name, as far as a folder's name can be theirs, or by number; others are refused."""
    names = data.class_names("fashion_mnist_mini")
    images, labels = next(iter(data.load("fashion_mnist_mini", "test[:60]", 60)))
    layouts = {
        "named": [name.replace("/", "_") for name in names],
        "numbered": list("0123456789"),
        "other": list("abcdefghij"),
    }
    for layout, folders in layouts.items():
        for index, (image, label) in enumerate(zip(images.numpy(), labels.numpy())):
            folder = tmp_path / layout / "test" / folders[label]
            folder.mkdir(parents=True, exist_ok=True)
            keras.utils.save_img(folder / f"{index}.png", image, scale=False)
    clean = {}
    for layout in ("named", "numbered"):
        flags = ["--model=ResNet8", "--weights=sat-fashion-mnist", f"--dataset={tmp_path / layout}", "--attack=fgsm"]
        assert inside("evaluate", *flags, f"--output={tmp_path}") == 0
        clean[layout] = json.loads((tmp_path / "report.json").read_text())["results"][0]["accuracy"]
    assert clean["named"] == clean["numbered"] > 0.7
    with pytest.raises(ValueError, match="does not know: 'a'"):
        inside("evaluate", *flags[:2], f"--dataset={tmp_path / 'other'}", "--attack=fgsm")


def test_check(photos, tmp_path, capsys):
    assert inside("check", photos) == 0
    assert "All images are 16 x 18 pixels." in capsys.readouterr().out
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "train" / "dark" / "zero.png").write_bytes(b"")
    assert inside("check", tmp_path / "photos") == 1
    assert "train/dark/zero.png: empty" in capsys.readouterr().out
    assert inside("check", "fashion_mnist_mini") == 0
    assert re.search(r"T-shirt_top +1000 +200", capsys.readouterr().out)


def test_a_damaged_file_ends_the_training_with_its_name(photos, tmp_path, monkeypatch, capfd):
    shutil.copytree(photos, tmp_path / "photos")
    bad = tmp_path / "photos" / "train" / "dark" / "cut.png"
    bad.write_bytes((photos / "train" / "dark" / "1.png").read_bytes()[:-40])
    flags = ["--image_size=16", "--channels=1", "--crop=stretch", "--epochs=1", "--batch_size=10", "--steps=1"]
    flags += [f"--dataset={tmp_path / 'photos'}", f"--output={tmp_path / 'run'}"]
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


def test_version(capsys):
    for command in ([COMMAND], [sys.executable, "-m", "keras_sat"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout.strip()) == (0, f"keras-sat {keras_sat.__version__}")


def test_all_of_an_error_is_shown_when_asked(tmp_path):
    done = run("export", tmp_path, "--traceback")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    environment = os.environ | {"KERAS_SAT_TRACEBACK": "1"}
    done = subprocess.run([COMMAND, "export", tmp_path], capture_output=True, text=True, env=environment, timeout=60)
    assert "Traceback" in done.stderr


def test_what_is_refused_is_refused_before_anything_is_written(of_photos, photos, tmp_path):
    for flags, message in (
        (["--int8=net.lite"], "ends in .tflite"),
        ([f"--int8={tmp_path}/n.tflite", "--dtype=bfloat16"], "leave out --dtype=bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            inside("export", of_photos, f"--to={tmp_path / 'saved'}", *flags)
    assert os.listdir(tmp_path) == []
    assert inside("export", of_photos, f"--to={tmp_path / 'saved'}", f"--int8={tmp_path / 'n.tflite'}") == 0
    given = (f"--dataset={photos}", "--epsilon=4", f"--output={tmp_path / 'out'}")
    with pytest.raises(ValueError, match="has no gradients, which .* needs: take --attack=square"):
        inside("evaluate", tmp_path / "n.tflite", "--attack=pgd-5", *given)
    assert not (tmp_path / "out").exists()


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
    "a misspelt flag": (
        ("train", "--output=x", "--epoch-s=3"),
        2,
        "did you mean --epochs? (see keras-sat train --help",
    ),
    "a flag of nothing": (("evaluate", "x", "--qqq"), 2, "unknown flag --qqq (see keras-sat evaluate --help"),
    "epsilon in 0..1": (("train", "--output=x", "--epsilon=8/255"), 2, "epsilon is in pixels 0..255, --epsilon=8"),
    "an unknown crop": (("train", "--output=x", "--crop=centre"), 1, "crop must be one of stretch, padded"),
    "a home folder": (("train", "--output=x", "--dataset=~/none"), 1, "There is no folder"),
    "a curve in 0..1": (("evaluate", "x", "--epsilon=2/255,8/255"), 2, "epsilon is in pixels 0..255, --epsilon=2"),
    "no number": (("evaluate", "x", "--epsilon=4,big"), 2, "argument --epsilon: epsilon must be a number"),
    "nothing to continue": (("train", "--output=x", "--continue"), 1, "holds no run to go on with"),
    "no folders of classes": (("train", "--output=x", "--dataset=."), 1, "Expected: "),
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
