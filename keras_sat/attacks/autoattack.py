"""AutoAttack: the ensemble of attacks by which published networks are compared."""

import dataclasses
from typing import Any

import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients, randomness, survivors, validation
from keras_sat.attacks.apgd import APGD
from keras_sat.attacks.attack import Attack
from keras_sat.attacks.fab import FAB
from keras_sat.attacks.square import Square
from keras_sat.typing import LogitsFunction

VERSIONS = ("standard", "plus", "rand", "short")


@dataclasses.dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack (Croce and Hein 2020, arXiv:2003.01690): several attacks, each on the examples that are still robust.

    | version    | attacks, with 100 steps |
    |------------|---|
    | "standard" | APGD-CE; APGD-T and FAB-T, 9 targets each; Square, 5000 queries |
    | "plus"     | APGD-CE, APGD-DLR and FAB, 5 restarts each; Square; APGD-T, FAB-T |
    | "short"    | APGD-CE and APGD-T of "standard": a first look, at a fifth of the passes; not a figure to publish |
    | "rand"     | APGD-CE and APGD-DLR, each gradient a mean over 20: for networks whose output is random |

    In an `L1Ball`, as in the authors' code, "standard" and "short" have 5 restarts of APGD-CE, and 5 targets of APGD-T.

    An example that no attack breaks returns the result of the last attack.

    Args:
        ball: `LinfBall`, `L2Ball` or `L1Ball`.
        version: "standard", which RobustBench reports, "plus", "rand" or "short".
        steps: gradient steps of each attack, >= 1; 100 in published figures.
        queries: queries of `Square`, >= 1; 5000 in published figures.

    Raises:
        ValueError: for a field with an invalid value.
    """

    version: str = "standard"
    steps: int = 100
    queries: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.check_integers(self, positive=("steps", "queries"))
        if self.version not in VERSIONS:
            raise ValueError(f"version must be one of {VERSIONS}. Received: {self.version!r}")

    def __str__(self) -> str:
        return "AutoAttack" if self.version == "standard" else f"AutoAttack-{self.version}"

    def settings(self) -> dict[str, Any]:
        """Returns the configuration as plain values for a report, with the names of the stages."""
        return super().settings() | {"stages": [str(stage) for stage in self.stages]}

    @property
    def max_forward_passes(self) -> int:
        """Forward passes of one example at most. A gradient counts as two."""
        return sum(stage.max_forward_passes for stage in self.stages)

    @property
    def stages(self) -> list[Attack]:
        """The attacks in their order."""
        is_l1 = self.ball.norm == "l1" and self.version in ("standard", "short")
        restarts = 5 if self.version == "plus" or is_l1 else 1
        samples = 20 if self.version == "rand" else 1
        ce = APGD(self.ball, self.steps, restarts, samples=samples)
        dlr = dataclasses.replace(ce, loss=losses.dlr)
        if self.version == "rand":
            return [ce, dlr]
        apgd_t = APGD(self.ball, self.steps, targets=5 if is_l1 else 9)
        fab_t = FAB(self.ball, self.steps, targets=9)
        if self.version == "short":
            return [ce, apgd_t]
        black_box = Square(self.ball, self.queries)
        if self.version == "plus":
            return [ce, dlr, FAB(self.ball, self.steps, restarts, targets=0), black_box, apgd_t, fab_t]
        return [ce, apgd_t, fab_t, black_box]

    def perturb(
        self,
        logits_fn: LogitsFunction,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        start: tf.Tensor | None = None,
        *,
        static_shapes: bool = False,
    ) -> tf.Tensor:
        """Runs the algorithm. See `Attack.perturb`."""

        def run(number, stage, state):
            seeds = randomness.fold(state["seeds"], number)
            result = stage.perturb(logits_fn, state["images"], state["labels"], seeds, static_shapes=static_shapes)
            broken = losses.is_broken(state["labels"], gradients.logits(logits_fn, result))
            return {**state, "result": result, "broken": broken}

        def step(number, state):
            branches = [lambda n=n, stage=stage: run(n, stage, state) for n, stage in enumerate(self.stages)]
            return tf.switch_case(number, branches)

        state = survivors.initial_state(images, labels, seed)
        return survivors.loop(step, state, len(self.stages), static_shapes)[0]
