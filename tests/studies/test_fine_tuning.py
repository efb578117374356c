"""The study of docs/fine_tuning.md."""

import dataclasses
import pathlib
import sys

import pytest

from keras_sat.run import Run

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def fine_tuning(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "studies")
    import fine_tuning

    yield fine_tuning
    del sys.modules["fine_tuning"]


def test_the_flags_are_settings_of_a_run(fine_tuning):
    run = Run(**fine_tuning.FLAGS)
    assert (run.validation_attack().steps, run.chooses) == (10, False)
    for weights in fine_tuning.START.values():
        assert dataclasses.replace(run, weights=weights).activation == "silu"


def test_the_table_is_of_means(fine_tuning):
    runs = {
        (start, seed): {measure: [float(seed + epoch) for epoch in range(10)] for measure in fine_tuning.MEASURED}
        for start in fine_tuning.START
        for seed in (0, 1)
    }
    lines = fine_tuning.table(runs).splitlines()
    assert lines[0] == "| after epoch | 1 | 3 | 5 | 10 |"
    assert lines[3] == "| from random weights: PGD-10 | 0.5 % | 2.5 % | 4.5 % | 9.5 % |"
    assert len(lines) == 6
