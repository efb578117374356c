"""The site builds without a warning; its notebook runs as it is built: marked slow."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
def test_the_site_and_its_notebook(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    environment = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1"}
    done = subprocess.run([*command, ROOT / "docs", tmp_path / "html"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    notebook = (tmp_path / "html" / "robust_network.html").read_text()
    assert notebook.count("<img") >= 2  # the grid and the curves
    assert "of 100 clean" in notebook
    reference = (tmp_path / "html" / "api.html").read_text()
    for name in ("attacks.AutoAttack", "training.AdversarialModel", "evaluation.evaluate", "export.export_saved_model"):
        assert f'id="keras_sat.{name}"' in reference
