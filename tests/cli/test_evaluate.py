"""The command `keras-sat evaluate`."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import warnings

import keras
import pytest

from keras_sat import data, models
from keras_sat.models import normalization

COMMAND = os.path.join(os.path.dirname(sys.executable), "keras-sat")


def test_evaluate_with_all_its_flags(inside, folder, tmp_path, capsys):
    """Several attacks, corruptions, an audit and the HTML report; then shards, a curve, and an export."""
    flags = ("--split=test[:12]", "--batch_size=12", f"--output={tmp_path}")
    assert (
        inside("evaluate", folder, "--attack=apgd-ce,pgd-3x2,corruptions", "--worst_case", "--audit", "--html", *flags)
        == 0
    )
    rows = json.loads((tmp_path / "report.json").read_text())["results"]
    assert [row["name"] for row in rows[:4]] == ["clean", "APGD-CE", "PGD-3X2", "gaussian_noise-3"]
    assert (len(rows), rows[-1]["name"]) == (3 + 15 + 1, "worst case")
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


def test_bad_flags_of_evaluate(inside, folder, tmp_path):
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
        ("--activation=relu", "Say --activation with --model and --weights only: a folder says its own"),
        ("--norm=l2", "The known epsilon, 10, is for --norm=linf: say --epsilon for --norm=l2 too"),
    ):
        with pytest.raises(ValueError, match=message):
            inside("evaluate", folder, flag)


@pytest.mark.parametrize("size", ["0", "-3", "two"])
def test_a_batch_has_images(inside, folder, size, capsys):
    with pytest.raises(SystemExit):
        inside("evaluate", folder, f"--batch_size={size}")
    assert f"an integer >= 1 was expected. Received: '{size}'" in capsys.readouterr().err


def test_a_killed_evaluation_goes_on(run, folder, tmp_path):
    command = [COMMAND, "evaluate", str(folder), "--attack=pgd-100", "--split=test[:100]", "--batch_size=20"]
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
    assert re.search(r"^Continuing an interrupted evaluation of 100 images: clean", done.stdout, re.MULTILINE)
    assert not re.search("^clean: ", done.stdout, re.MULTILINE)  # that pass was done before the kill
    assert (tmp_path / "report.json").exists()


def test_what_changed_since_the_training_is_said(inside, of_photos, photos, tmp_path):
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


def test_reports_are_never_overwritten(inside, of_photos, tmp_path):
    flags = ("--attack=fgsm", f"--output={tmp_path}")
    assert inside("evaluate", of_photos, *flags) == 0
    assert inside("evaluate", of_photos, *flags, "--split=test[:50%]") == 0
    assert inside("evaluate", of_photos, *flags) == 0
    names = ["fgsm-linf-4-test-2.json", "fgsm-linf-4-test.json", "fgsm-linf-4-test_..50pct.json"]
    assert sorted(os.listdir(tmp_path / "reports")) == names
    assert (tmp_path / "report.json").resolve().name == "fgsm-linf-4-test-2.json"


def test_weights_of_the_zoo_on_a_folder(inside, tmp_path, capsys):
    """The classes of the folder are matched by name (as far as a folder can have it) or number. Others are errors."""
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


def test_weights_of_a_file(inside, photos, tmp_path, monkeypatch, capsys):
    """Classes and channels are those of the file; the images keep their size unless it is said."""
    path = tmp_path / "net.weights.h5"
    options = {"activation": "relu", "normalization": "cifar10", "form": "dm"}
    models.WideResNet(10, 1, input_shape=(16, 18, 1), classes=2, **options).save_weights(path)
    monkeypatch.chdir(tmp_path)
    flags = ["--model=WideResNet10_1", "--form=dm", f"--weights={path}", "--activation=relu", f"--dataset={photos}"]
    flags += ["--normalization=cifar10", "--attack=fgsm"]
    with pytest.warns(UserWarning, match="used in their order, bright, dark"):
        assert inside("evaluate", *flags, "--epsilon=4") == 0
    context = json.loads((tmp_path / "WideResNet10_1-relu-net" / "report.json").read_text())["context"]
    mean, std = normalization.statistics("cifar10", 1)
    assert context["network"] == {
        "name": "WideResNet10_1",
        "form": "dm",
        "activation": "relu",
        "normalization": [mean, std],
    }
    assert context["weights"] == str(path)
    assert (context["preprocessing"]["height"], context["preprocessing"]["width"]) == (16, 18)
    with pytest.warns(UserWarning):
        assert inside("evaluate", *flags, "--epsilon=4", "--image_size=12", "--crop=shortest_edge") == 0
    context = json.loads((tmp_path / "WideResNet10_1-relu-net" / "report.json").read_text())["context"]
    assert (context["preprocessing"]["height"], context["preprocessing"]["crop"]) == (12, "shortest_edge")
    without = {name: [flag for flag in flags if not flag.startswith(f"--{name}")] for name in ("activation", "dataset")}
    for wrong, message in (
        (flags, "say --epsilon"),
        ([*without["activation"], "--epsilon=4"], "say --activation and --dataset"),
        ([*without["dataset"], "--epsilon=4"], "say --activation and --dataset"),
        ([*flags, "--epsilon=4", "--form=trades"], "not of WideResNet10_1 in the form trades: it has no"),
        ([*flags, "--epsilon=4", "--normalization=none"], "another mean"),
        ([str(tmp_path), "--form=dm"], "Say --form with --model and --weights only"),
        (["--model=ResNet8", "--weights=sat-fashion-mnist", "--image_size=9"], "have their own image size"),
    ):
        with pytest.raises(ValueError, match=message), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inside("evaluate", *wrong)


def test_unreadable_weights(run, folder, tmp_path):
    (tmp_path / "run.json").write_bytes((folder / "run.json").read_bytes())
    (tmp_path / "model.weights.h5").write_bytes(b"<html>")
    done = run("evaluate", tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "model.weights.h5 is damaged" in done.stderr
