"""Runs the Python code of README and docs (of docs: marked slow), and parses their commands.

test_commands.py runs the commands.
"""

import pathlib
import re
import shlex

import keras
import pytest

from keras_sat import cli

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
ONE_LINE = re.sub(r" *\\\n *", " ", f"{README}\n{DOCS}")  # a backslash ends a line of a long command
PYTHON = {
    f"{where}-{index}": pytest.param(code, marks=marks)
    for where, text, marks in (("README", README, ()), ("docs", DOCS, pytest.mark.slow))
    for index, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
}
# Trainings run on a tenth of the images; nothing else is changed.
LARGE, SMALL = '"fashion_mnist_mini", "train", ', '"fashion_mnist_mini", "train[:1000]", '
COMMANDS = re.findall(r"^ *(keras-sat .*?)(?: #.*)?$", ONE_LINE, re.MULTILINE)


def test_there_is_something_to_check():
    assert {"README-0", "docs-0"} <= set(PYTHON)
    assert README.count(LARGE) == 1
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("code", PYTHON.values(), ids=PYTHON)
def test_python_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)  # an untrained network stands for the reader's: now and then it has nothing right
    exec(compile(code.replace(LARGE, SMALL), "README.md", "exec"), {})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    assert callable(cli.parse(shlex.split(command)).run)


def test_make_targets():
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert targets == ["quickstart", "test"]
    assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in targets)
