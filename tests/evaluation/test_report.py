import json
import os

import pytest

from keras_sat.evaluation import AttackResult, RobustnessReport


def report():
    settings = {"norm": "linf", "epsilon": 25.5}
    rows = [
        AttackResult.of("clean", 2000, 1503, 0.3, {}),
        AttackResult.of("PGD-50", 2000, 1111, 9, settings),
    ]
    return RobustnessReport(rows, {"seed": 0})


def test_table():
    assert report().table().splitlines() == [
        "attack  norm  epsilon  images  accuracy  95 % interval  seconds",
        "clean   -     -        2000    75.1 %    73.2 .. 77.0   0.3",
        "PGD-50  linf  25.5     2000    55.5 %    53.4 .. 57.7   9.0",
    ]


def test_json_holds_it_all(tmp_path):
    text = report().to_json(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text() == text
    rows = json.loads(text)["results"]
    assert rows[1]["correct"] == 1111
    assert rows[1]["settings"]["epsilon"] == 25.5
    assert os.listdir(tmp_path) == ["report.json"]


def test_rows_by_name():
    assert report()["PGD-50"].accuracy == 1111 / 2000
    with pytest.raises(KeyError, match="it has.*clean"):
        report()["PGD-5"]
