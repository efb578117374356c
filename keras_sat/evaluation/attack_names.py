"""Several attacks, and corruptions, from a list of names, as in the flag --attack=fgsm,pgd-50."""

from keras_sat import attacks
from keras_sat.attacks import Attack, Ball
from keras_sat.evaluation.corruptions import all_of

CORRUPTIONS = {"corruptions": [each for each in all_of() if each.severity == 3], "corruptions-all": all_of()}


def names() -> list[str]:
    """Returns the names that `from_names` accepts: those of `attacks.names`, "corruptions" and "corruptions-all"."""
    return [*attacks.names(), *CORRUPTIONS]


def from_names(text: str, ball: Ball) -> dict[str, Attack]:
    """Returns the attacks with the given names, as an argument for `evaluate`.

    Args:
        text: names, separated by commas, such as "fgsm,pgd-50x10". "corruptions" means the fifteen of ImageNet-C and
            CIFAR-10-C at severity 3, "corruptions-all" means them at severities 1..5.
        ball: `LinfBall`, `L2Ball` or `L1Ball`: the threat model of all attacks.

    Returns:
        A dict from the names in a report, such as "FGSM" and "PGD-50X10", to the attacks.

    Raises:
        ValueError: if a name is unknown; the message lists all names.
    """
    return {label: attack for name in text.split(",") for label, attack in _labelled(name.strip(), ball).items()}


def _labelled(name, ball):
    if name in CORRUPTIONS:
        return {str(corruption): corruption for corruption in CORRUPTIONS[name]}
    try:
        attack = attacks.from_name(name, ball)
    except ValueError:
        raise ValueError(f"attack must be one of {', '.join(names())}. Received: {name!r}") from None
    # str(attack) leaves out restarts, and calls FGSM "PGD-1".
    label = str(attack) if str(attack).lower() == name else name.upper()
    return {label: attack}
