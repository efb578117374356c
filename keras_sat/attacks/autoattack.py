"""AutoAttack: the ensemble whose figures can be compared."""

import dataclasses

import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import apgd, fab, gradients, inputs, randomness, square, survivors, threats

VERSIONS = ("standard", "plus", "rand")


@dataclasses.dataclass(frozen=True)
class AutoAttack:
    """AutoAttack (Croce and Hein 2020, arXiv:2003.01690): attacks in turn, each on what the ones before left standing.

    | version    | attacks, with 100 steps |
    |------------|---|
    | "standard" | APGD-CE; APGD-T and FAB-T, 9 targets each; Square, 5000 queries |
    | "plus"     | APGD-CE, APGD-DLR and FAB, 5 restarts each; Square; APGD-T, FAB-T |
    | "rand"     | APGD-CE and APGD-DLR, each gradient a mean over 20: for networks whose output is random |

    Args:
        ball: `LinfBall` or `L2Ball`.
        version: "standard", whose figures are those of RobustBench, "plus" or "rand".
        steps: gradient steps of each attack; published figures are with 100.
        queries: of Square; published figures are with 5000.
        survivors: "compact" takes examples that are done out of the batch; "mask" keeps the shapes, for XLA and TPU.

    Raises:
        ValueError: for a configuration that cannot be run.
    """

    ball: threats.Ball
    version: str = "standard"
    steps: int = 100
    queries: int = 5000
    survivors: str = "compact"

    def __post_init__(self):
        inputs.check_fields(self, positive=("steps", "queries"))
        if self.version not in VERSIONS:
            raise ValueError(f"version must be one of {VERSIONS}. Received: {self.version!r}")

    def __str__(self):
        return "AutoAttack" if self.version == "standard" else f"AutoAttack-{self.version}"

    def settings(self):
        """Returns the configuration as plain values for a report."""
        return inputs.settings(self) | {"stages": [str(stage) for stage in self.stages]}

    @property
    def passes(self):
        """Forward passes that an example costs at most; a gradient counts as two."""
        return sum(stage.passes for stage in self.stages)

    @property
    def stages(self):
        """The attacks, in their order."""
        restarts = 5 if self.version == "plus" else 1
        eot = 20 if self.version == "rand" else 1
        gradient = {"ball": self.ball, "steps": self.steps, "survivors": self.survivors}
        ce = apgd.APGD(**gradient, restarts=restarts, eot=eot)
        dlr = dataclasses.replace(ce, loss=losses.dlr)
        if self.version == "rand":
            return [ce, dlr]
        apgd_t, fab_t = apgd.APGD(**gradient, targets=9), fab.FAB(**gradient, targets=9)
        black_box = square.Square(self.ball, self.queries, survivors=self.survivors)
        if self.version == "plus":
            return [ce, dlr, fab.FAB(**gradient, targets=0, restarts=restarts), black_box, apgd_t, fab_t]
        return [ce, apgd_t, fab_t, black_box]

    def __call__(self, logits_fn, images, labels, seed=0):
        """Returns adversarial images: as `PGD`, which see. Where none was found, what the last attack came to."""
        return inputs.run(self, logits_fn, images, labels, seed)

    def perturb(self, logits_fn, images, labels, seed):
        """The attack itself, on float32 images, int labels and a seed of shape [2] or [batch, 2] that were checked."""

        def run(number, stage, state):
            seeds = randomness.fold(state["seeds"], number)
            result = stage.perturb(logits_fn, state["images"], state["labels"], seeds)
            broken = losses.is_broken(state["labels"], gradients.logits(logits_fn, result))
            return {**state, "result": result, "broken": broken}

        def step(number, state):
            branches = [lambda n=n, stage=stage: run(n, stage, state) for n, stage in enumerate(self.stages)]
            return tf.switch_case(number, branches)

        state = inputs.initial_state(images, labels, seed)
        return survivors.loop(step, state, len(self.stages), self.survivors)[0]
