"""Several attacks, and corruptions, by their names."""

import pytest

from keras_sat.attacks import FGSM, PGD, LinfBall
from keras_sat.evaluation import attack_names
from keras_sat.evaluation.corruptions import NAMES

BALL = LinfBall(4)


def test_several_names_and_how_reports_call_them():
    named = attack_names.from_names("fgsm, pgd-5,pgd-5x2", BALL)
    restarted = PGD(BALL, steps=5, restarts=2, keep="first")
    assert named == {"FGSM": FGSM(BALL), "PGD-5": PGD(BALL, steps=5, keep="first"), "PGD-5X2": restarted}
    text = "autoattack,autoattack-plus,autoattack-rand,apgd-ce,apgd-dlr,apgd-t,fab-t,square"
    labels = ["AutoAttack", "AutoAttack-plus", "AutoAttack-rand", "APGD-CE", "APGD-DLR", "APGD-T", "FAB-T", "Square"]
    assert list(attack_names.from_names(text, BALL)) == labels
    assert list(attack_names.from_names("corruptions", BALL)) == [f"{name}-3" for name in NAMES]
    assert len(attack_names.from_names("corruptions-all", BALL)) == 75


def test_an_unknown_name_is_refused_with_the_list():
    with pytest.raises(ValueError, match="one of fgsm, pgd-STEPS, .*, corruptions, corruptions-all. Received: 'pgd'"):
        attack_names.from_names("fgsm,pgd", BALL)
