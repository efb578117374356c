"""The attacks of an evaluation by their names, and the stages of each attack, which run one after the other."""

import dataclasses
from typing import Any

from keras_sat.attacks import gradients
from keras_sat.attacks.attack import Attack
from keras_sat.typing import LogitsFunction


def by_name(attacks: Any) -> dict[str, Attack]:
    """Returns {name: attack}.

    Args:
        attacks: an attack, a list of attacks, or a dict {name: attack}.

    Raises:
        ValueError: for objects that are not attacks, several attacks with the same name, or the name "clean".
    """
    if isinstance(attacks, dict):
        named = attacks
    else:
        attacks = list(attacks) if isinstance(attacks, (list, tuple)) else [attacks]
        named = {str(attack): attack for attack in attacks}
        if len(named) < len(attacks):
            raise ValueError(f"Several attacks have one name: pass a dict from names to attacks. Received: {attacks}")
    for attack in named.values():
        if not isinstance(attack, Attack):
            raise ValueError(f"An attack is a configuration, such as AutoAttack(LinfBall(4)). Received: {attack!r}")
    if "clean" in named:
        raise ValueError('"clean" is the row of the images without an attack: give the attack another name.')
    return named


def can_attack(attack: Attack, network: LogitsFunction) -> bool:
    """Returns whether an attack can attack a network: a quantized one, for example, has no gradients."""
    return not attack.needs_gradients or getattr(network, "has_gradients", True)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One attack on one network.

    Attributes:
        name: name of the stage in reports, which list how many examples each stage broke.
        attack: the attack.
        logits_fn: the network that it attacks: the model, a copy of it, or the surrogate of a `Transfer`.
    """

    name: str
    attack: Attack
    logits_fn: LogitsFunction


def stages_of(attack: Attack, model: LogitsFunction, low: LogitsFunction | None = None) -> list[Stage]:
    """Returns the stages of an attack on a model, each of which runs on the examples that are still robust.

    Args:
        attack: an attack; `AutoAttack` has several stages.
        model: the network.
        low: a copy of the network in low precision, or None. With a copy, all stages run on the copy first, then on the
            model. (Corruptions and transferred attacks do not depend on the network, and run once.)
    """
    stages = [stage_of(part, model) for part in attack.stages]
    if low is None or attack.ball is None:
        return stages
    on_model = [stage for stage in stages if stage.logits_fn is model]
    return [Stage(f"{stage.name}, low precision", stage.attack, low) for stage in on_model] + stages


def stage_of(attack: Attack, model: LogitsFunction) -> Stage:
    """Returns an attack that is a single one as a stage.

    A surrogate becomes a function of its own, see `gradients.inference`.
    """
    runs, network = attack.runs_on(model)
    return Stage(str(attack), runs, model if network is model else gradients.inference(network))
