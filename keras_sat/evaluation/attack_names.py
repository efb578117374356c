"""Several attacks, and corruptions, from a list of names, as in the flag --attack=fgsm,pgd-50."""

from keras_sat import attacks
from keras_sat.attacks import Attack, Ball
from keras_sat.evaluation.corruptions import SEVERITIES, Corruption

CORRUPTIONS = "corruptions"


def names() -> list[str]:
    """Returns the names that `from_names` accepts: the names of `attacks.names`, and "corruptions"."""
    return [*attacks.names(), CORRUPTIONS]


def from_names(text: str, ball: Ball) -> dict[str, Attack]:
    """Returns the attacks with the given names, as an argument for `evaluate`.

    Args:
        text: names, separated by commas, such as "fgsm,pgd-50x10". "corruptions" means all corruptions of this package,
            at severity 3.
        ball: `LinfBall`, `L2Ball` or `L1Ball`: the threat model of all attacks.

    Returns:
        A dict from the names in a report, such as "FGSM" and "PGD-50X10", to the attacks.

    Raises:
        ValueError: if a name is unknown; the message lists all names.
    """
    return {label: attack for name in text.split(",") for label, attack in _labelled(name.strip(), ball).items()}


def _labelled(name, ball):
    if name == CORRUPTIONS:
        return {str(corruption): corruption for corruption in map(Corruption, SEVERITIES)}
    try:
        attack = attacks.from_name(name, ball)
    except ValueError:
        raise ValueError(f"attack must be one of {', '.join(names())}. Received: {name!r}") from None
    # str(attack) leaves out restarts, and calls FGSM "PGD-1".
    label = str(attack) if str(attack).lower() == name else name.upper()
    return {label: attack}
