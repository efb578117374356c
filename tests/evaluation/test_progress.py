import numpy as np

from keras_sat.attacks import PGD, LinfBall
from keras_sat.evaluation.progress import Progress
from keras_sat.evaluation.stages import stages_of
from keras_sat.evaluation.state import Row


def test_a_file_gets_few_lines(capsys):
    """If the output is not a terminal, updates do not replace each other."""
    attack = PGD(LinfBall(4), steps=5)
    stages = stages_of(attack, None)
    bar = Progress(True, {"PGD": stages})
    for _ in range(3000):
        bar.clean(1, 1)
    bar.begin("PGD", stages[0], Row(np.zeros(3000, np.int8), np.zeros(3000)), 3000)
    for _ in range(3000):
        bar.update(1, 1)
    bar.close()
    written = capsys.readouterr()
    assert written.err == ""
    lines = written.out.splitlines()
    assert len(lines) < 10
    assert "clean: 3000 images, 100.0 % correct" in lines
    assert lines[-1].strip() == "PGD: PGD-5: 3000/3000 images, 100.0 % robust, 0 s left at most"


def test_disabled_it_writes_nothing(capsys):
    bar = Progress(False, {})
    bar.clean(1, 1)
    bar.close()
    assert capsys.readouterr().out == ""


def test_the_time_left_counts_the_later_attacks(monkeypatch):
    """Ten images took one second for ten passes each, which gives the time of a pass of later attacks."""
    one, two = PGD(LinfBall(4), steps=5), PGD(LinfBall(4), steps=50)
    stages = {"one": stages_of(one, None), "two": stages_of(two, None)}
    bar, row = Progress(False, stages), Row(np.array([0] * 20 + [1] * 5, np.int8), np.zeros(25))
    monkeypatch.setattr("time.perf_counter", lambda: 1000.0)
    bar.begin("one", stages["one"][0], row, 20)
    assert bar._time_left(20) == "time left unknown"
    monkeypatch.setattr("time.perf_counter", lambda: 1001.0)
    bar.update(10, 10)
    assert bar._time_left(10) == "26 s left at most"  # (10 images x 10 passes + 25 images x 100 passes) / 100 a second
