import numpy as np

from keras_sat.attacks import PGD, AutoAttack, LinfBall
from keras_sat.evaluation.progress import Progress
from keras_sat.evaluation.stages import stages_of
from keras_sat.evaluation.state import Row, State


def test_a_file_gets_few_lines(capsys):
    """If the output is not a terminal, updates do not replace each other."""
    attack = PGD(LinfBall(4), steps=5)
    stages = stages_of(attack, None)
    bar = Progress(True)
    bar.stages = {"PGD": stages}
    bar.prepare()
    for _ in range(3000):
        bar.clean(1, 1)
    row = Row(np.repeat([0, 1], [1500, 1500]).astype(np.int8), np.zeros(3000))
    bar.begin("PGD", stages[0], row, 3000)
    for _ in range(3000):
        bar.update(1, 1)
    bar.close()
    written = capsys.readouterr()
    assert written.err == ""
    preparing, *lines = written.out.splitlines()
    assert preparing.startswith("Preparing the attacks")
    assert lines == [
        "clean: 3000 images, 100.0 % correct",
        "PGD: PGD-5: attacking 3000 images, compiling the attack first",
        "PGD: PGD-5: 3000 of 3000 attacked, 50.0 % of all images still correct",
    ]


def test_disabled_it_writes_nothing(capsys):
    bar = Progress(False)
    bar.prepare()
    bar.clean(1, 1)
    bar.close()
    assert capsys.readouterr().out == ""


def test_the_time_left_counts_the_later_attacks(monkeypatch):
    """Ten images took one second for ten passes each, which gives the time of a pass of later attacks."""
    one, two = PGD(LinfBall(4), steps=5), PGD(LinfBall(4), steps=50)
    stages = {"one": stages_of(one, None), "two": stages_of(two, None)}
    bar, row = Progress(False), Row(np.array([0] * 20 + [1] * 5, np.int8), np.zeros(25))
    bar.stages = stages
    monkeypatch.setattr("time.perf_counter", lambda: 1000.0)
    bar.begin("one", stages["one"][0], row, 20)
    assert bar._time_left() == ""
    monkeypatch.setattr("time.perf_counter", lambda: 1001.0)
    bar.update(10, 10)
    assert bar._time_left() == ", at most 26 s left"  # (10 images x 10 passes + 25 images x 100 passes) / 100 a second


def test_what_was_done_before_an_interruption(capsys):
    attacks = {"one": PGD(LinfBall(4), steps=5), "two": AutoAttack(LinfBall(4)), "three": PGD(LinfBall(1), steps=5)}
    bar, state = Progress(True), State(None, {})
    bar.stages = {name: stages_of(attack, None) for name, attack in attacks.items()}
    bar.resume(state)
    assert capsys.readouterr().out == ""
    state.add_examples(np.arange(25), np.zeros(25, int), np.zeros(25, np.uint32), np.ones(25, bool), np.zeros(25))
    state.row("one").stage = 1
    state.row("two").stage, state.row("two").done = 2, 10
    bar.resume(state)
    done = "clean, one, 10 images of two in stage 3 of 4 done"
    assert capsys.readouterr().out == f"Continuing an interrupted evaluation of 25 images: {done}.\n"
    bar.begin("two", bar.stages["two"][2], state.rows["two"], 5)
    bar.update(5, 5)
    bar.close()
    assert "two: FAB-T: 15 of 15 attacked" in capsys.readouterr().out
