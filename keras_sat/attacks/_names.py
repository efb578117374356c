"""Attacks by the names that the command line and scripts give them, such as "pgd-50" or "autoattack"."""

import re
from collections.abc import Callable

from keras_sat import losses
from keras_sat.attacks.apgd import APGD
from keras_sat.attacks.attack import Attack
from keras_sat.attacks.autoattack import AutoAttack
from keras_sat.attacks.fab import FAB
from keras_sat.attacks.pgd import FGSM, PGD
from keras_sat.attacks.square import Square
from keras_sat.attacks.threats import Ball


def _pgd(ball: Ball, steps: int, restarts: int = 1) -> PGD:
    return PGD(ball, steps=steps, restarts=restarts, keep="first")


def _apgd_dlr(ball: Ball, steps: int = 100, restarts: int = 1) -> APGD:
    return APGD(ball, steps, restarts, loss=losses.dlr)


def _apgd_t(ball: Ball, steps: int = 100, restarts: int = 1) -> APGD:
    return APGD(ball, steps, restarts, targets=9)


# A name, where STEPS and RESTARTS are positive integers -> a function of the ball and these integers.
_ATTACKS: dict[str, Callable[..., Attack]] = {
    "fgsm": FGSM,
    "pgd-STEPS": _pgd,
    "pgd-STEPSxRESTARTS": _pgd,
    "autoattack": AutoAttack,
    "autoattack-plus": lambda ball: AutoAttack(ball, "plus"),
    "autoattack-rand": lambda ball: AutoAttack(ball, "rand"),
    "autoattack-short": lambda ball: AutoAttack(ball, "short"),
    "apgd-ce": APGD,
    "apgd-ce-STEPS": APGD,
    "apgd-ce-STEPSxRESTARTS": APGD,
    "apgd-dlr": _apgd_dlr,
    "apgd-dlr-STEPS": _apgd_dlr,
    "apgd-dlr-STEPSxRESTARTS": _apgd_dlr,
    "apgd-t": _apgd_t,
    "apgd-t-STEPS": _apgd_t,
    "apgd-t-STEPSxRESTARTS": _apgd_t,
    "fab-t": FAB,
    "square": Square,
}


def names() -> list[str]:
    """Returns the names that `from_name` takes; STEPS and RESTARTS are placeholders for positive integers."""
    return list(_ATTACKS)


def from_name(name: str, ball: Ball) -> Attack:
    """Returns the attack of a name: `from_name("pgd-50x10", LinfBall(4))`.

    Args:
        name: one of `names()`, with numbers in place of STEPS and RESTARTS. "pgd-50x10" is PGD with 50 steps and 10
            restarts that stops at the first misclassified iterate of an image.
        ball: `LinfBall`, `L2Ball` or `L1Ball`: the threat model of the attack.

    Returns:
        An attack with its default settings, such as `PGD` or `AutoAttack`.

    Raises:
        ValueError: if the name is unknown; the message lists all names.
    """
    for template, attack in _ATTACKS.items():
        match = re.fullmatch(re.sub("STEPS|RESTARTS", r"([1-9][0-9]*)", template), name)
        if match:
            return attack(ball, *map(int, match.groups()))
    raise ValueError(f"attack must be one of {', '.join(names())}. Received: {name!r}")
