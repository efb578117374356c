import subprocess
import sys

import pytest

from keras_sat import extras


def test_the_hint_installs_from_the_clone_with_this_environments_pip():
    command = extras.install("serve")
    assert command.startswith(f"{sys.executable} -m pip install ")
    assert command.endswith("[serve]'")
    done = subprocess.run(f"{command} --dry-run --no-deps --no-build-isolation -q", shell=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", [None, "{}", '{"url": "file:///nowhere/keras_sat"}', '{"url": "https://host/x.whl"}'])
def test_elsewhere_it_names_the_package(text, monkeypatch):
    class Installed:
        def read_text(self, _):
            return text

    monkeypatch.setattr(extras.importlib.metadata, "distribution", lambda _: Installed())
    assert extras.install("report").endswith("-m pip install 'keras-sat[report]'")
