"""Attacks by their names."""

import pytest

from keras_sat import attacks, losses
from keras_sat.attacks import APGD, FGSM, PGD, AutoAttack, LinfBall

BALL = LinfBall(4)


@pytest.mark.parametrize("name", attacks.names())
def test_every_name_is_an_attack(name):
    attack = attacks.from_name(name.replace("STEPS", "5").replace("RESTARTS", "2"), BALL)
    assert attack.ball == BALL


def test_what_names_mean():
    expected = {
        "fgsm": FGSM(BALL),
        "pgd-50": PGD(BALL, steps=50, keep="first"),
        "pgd-50x10": PGD(BALL, steps=50, restarts=10, keep="first"),
        "autoattack-rand": AutoAttack(BALL, "rand"),
        "autoattack-short": AutoAttack(BALL, "short"),
        "apgd-ce-200": APGD(BALL, 200),
        "apgd-dlr": APGD(BALL, loss=losses.dlr),
        "apgd-dlr-50x5": APGD(BALL, 50, 5, loss=losses.dlr),
        "apgd-t-50x5": APGD(BALL, 50, 5, targets=9),
        "apgd-t": APGD(BALL, targets=9),
    }
    assert {name: attacks.from_name(name, BALL) for name in expected} == expected


@pytest.mark.parametrize("name", ["pgd", "pgd-fifty", "pgd-0", "pgd-5x", "pgd-5x0", "autoatack", "FGSM", ""])
def test_an_unknown_name_is_refused_with_the_list(name):
    with pytest.raises(ValueError, match="attack must be one of fgsm, pgd-STEPS, pgd-STEPSxRESTARTS, autoattack, .*"):
        attacks.from_name(name, BALL)
