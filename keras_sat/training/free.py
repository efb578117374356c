"""Free adversarial training: the gradient by the images comes with the gradient by the weights."""

import dataclasses

from keras_sat.attacks import threats


@dataclasses.dataclass(frozen=True)
class Free:
    """Free adversarial training (Shafahi et al., arXiv:1904.12843): the place of the attack in `AdversarialModel`.

    Every batch is replayed m times. Each replay is one forward and backward pass, which updates the weights, and moves
    the images as one step of PGD does:

        x' = project(x' + step_size * steepest(gradient of the loss at x'))

    So m replays cost what m plain steps cost; train for 1 / m of the epochs. Each counts as an iteration of the
    optimizer, and for its schedules. The network is in training mode while it is attacked. The authors keep the
    perturbation of a batch for the next one, of other images; here a batch starts at a random point of its ball, so
    that a run keeps no state in its attack and can be resumed.

    Args:
        ball: `LinfBall` or `L2Ball`.
        replays: m, how often each batch is used; 4 in the paper, for ImageNet.
        step_size: length of a step in the images' unit; default: epsilon, the paper's.
    """

    ball: threats.Ball
    replays: int = 4
    step_size: float | None = None

    def __post_init__(self):
        if not isinstance(self.ball, threats.Ball):
            raise ValueError(f"ball must be a LinfBall or an L2Ball, such as LinfBall(4). Received: {self.ball!r}")
        if not (isinstance(self.replays, int) and self.replays >= 1):
            raise ValueError(f"replays must be an integer >= 1. Received: {self.replays!r}")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be positive, or None for epsilon. Received: {self.step_size!r}")

    @property
    def resolved_step_size(self):
        """The length of a step, in the images' unit."""
        return self.ball.radius if self.step_size is None else self.step_size

    def __str__(self):
        return f"Free-{self.replays}"
