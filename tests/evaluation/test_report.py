import json
import os

import numpy as np
import pytest

from keras_sat import evaluation
from keras_sat.attacks import PGD, L2Ball, LinfBall
from keras_sat.evaluation import AttackResult, RobustnessReport
from keras_sat.evaluation.report import from_json


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


def test_numbers_that_contradict_each_other_are_refused(tiny_model, images, tmp_path):
    labels = np.argmax(tiny_model()(images), -1)
    evaluation.evaluate(tiny_model(), (images, labels), PGD(LinfBall(4), steps=1), progress=False).to_json(
        path := tmp_path / "report.json"
    )
    fields = json.loads(path.read_text())
    row = fields["results"][1]
    for changes, message in (
        ({"correct": 1, "accuracy": 0.5}, "1 of 8 images are not 0.5"),
        ({"interval": [0.9, 1.0]}, "is not the interval"),
        (vars(AttackResult.of("PGD-1", 8, 8 - row["correct"] // 2, 1, {})), "but [0-9]+ of the examples"),
    ):
        path.write_text(json.dumps(fields | {"results": [fields["results"][0], row | changes]}))
        with pytest.raises(ValueError, match=message):
            from_json(path)


def test_rows_by_name():
    assert report()["PGD-50"].accuracy == 1111 / 2000
    with pytest.raises(KeyError, match="it has.*clean"):
        report()["PGD-5"]


def test_the_worst_case_of_several_rows(tiny_model, tmp_path):
    model = tiny_model()
    images = np.random.default_rng(7).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    labels = np.argmax(model(images), -1)
    labels[:5] = (labels[:5] + 1) % 4  # misclassified as they are
    attacks = {"linf": PGD(LinfBall(6), steps=3), "l2": PGD(L2Ball(50), steps=3)}
    one = evaluation.evaluate(model, (images, labels), attacks, progress=False)
    both = one.worst_of(["linf", "l2"])
    broken = [[stage != "" for stage in one.examples["attacks"][name]["broken_by"]] for name in attacks]
    row = both["worst case"]
    assert row.correct == 40 - np.count_nonzero(np.any(broken, axis=0))
    assert row.correct <= min(one[name].correct for name in attacks)
    assert sum(row.broken_by.values()) == one["clean"].correct - row.correct
    assert both.to_json(tmp_path / "report.json") == from_json(tmp_path / "report.json").to_json()
    assert one.worst_of() == both
    corrupted = evaluation.evaluate(model, (images, labels), attacks | {"fog": evaluation.Corruption("fog", 5)})
    assert corrupted.worst_of()["worst case"].broken_by == row.broken_by  # a corruption is in no ball
    with pytest.raises(KeyError, match="no row 'l1'"):
        one.worst_of(["l1"])
    with pytest.raises(ValueError, match="has a row 'linf' already"):
        one.worst_of(name="linf")
    with pytest.raises(ValueError, match="at least one row"):
        one.worst_of([])
