"""What all commands have in common."""

import os
import subprocess
import sys

import pytest

import keras_sat
from keras_sat import cli

COMMAND = os.path.join(os.path.dirname(sys.executable), "keras-sat")


def test_version(capsys):
    for command in ([COMMAND], [sys.executable, "-m", "keras_sat"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout.strip()) == (0, f"keras-sat {keras_sat.__version__}")


def test_shell_completion_knows_commands_and_flags(capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as left:
        cli.parse(["keras-sat", "--print-completion", "bash"])
    assert left.value.code == 0
    script = capsys.readouterr().out
    for word in ("quickstart", "certify", "--rest_port", "--batch_size", "--epsilon"):
        assert word in script
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_imports_neither_runs_nor_servers():
    code = """
import contextlib, sys
from keras_sat import cli
for words in (["--help"], ["serve", "--help"]):
    with contextlib.suppress(SystemExit):
        cli.parse(["keras-sat", *words])
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "Serves a SavedModel" in done.stdout
    modules = set(done.stdout.splitlines()[-1].split())
    assert "keras_sat.cli.serve" in modules
    assert not modules & {"keras_sat.run", "keras_sat.serving", "tensorflow_datasets", "waitress"}


def test_all_of_an_error_is_shown_when_asked(run, tmp_path):
    done = run("export", tmp_path, "--traceback")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    environment = os.environ | {"KERAS_SAT_TRACEBACK": "1"}
    done = subprocess.run([COMMAND, "export", tmp_path], capture_output=True, text=True, env=environment, timeout=60)
    assert "Traceback" in done.stderr


def test_ctrl_c_in_a_destructor_is_not_lost():
    code = """
import signal, sys, time
from keras_sat import cli
from keras_sat.cli import list as command

class Rubbish:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # raised at once; Python ignores the exception here

def run(args):
    \'\'\'Lists nothing.\'\'\'
    Rubbish()
    time.sleep(60)
    return 0

signal.signal(signal.SIGINT, signal.default_int_handler)
command.run = run
sys.argv = ["keras-sat", "list"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "keras-sat: interrupted")


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
    "nothing to continue": (("train", "--output=x", "--continue"), 1, "contains no run to continue"),
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
        "There is no file, folder or checkpoint at none",
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
    reads = ("Reading ", "Loading ")  # what the command did before it failed
    assert all(line.startswith(reads) for line in output.splitlines())
    assert os.listdir(tmp_path) == []
