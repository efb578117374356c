"""What adversarial training minimises: `Objective` and its variants."""

import dataclasses
from typing import Any

import tensorflow as tf

from keras_sat import losses
from keras_sat.typing import LossFunction

_MARGIN = 1e-4  # of MART's release: keeps the logarithm finite if a wrong class has probability 1


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base class of objectives: the compiled loss, plus a penalty.

    Attributes:
        sees_clean: whether the clean images pass the network too (in training mode, before the adversarial ones).
        compiled_loss: "adversarial" or "clean": the images on which the compiled loss is computed.
        sets_attack_loss: whether the attack ascends `attack_loss` in place of its own loss.
        replays: 0, or the number of times that each batch is used (see `Free`).
    """

    sees_clean = False
    compiled_loss = "adversarial"
    sets_attack_loss = False
    replays = 0

    def attack_loss(self, clean: tf.Tensor) -> LossFunction:
        """Returns the loss that the attack ascends, for the logits of the clean images, float32 [batch, classes]."""
        raise NotImplementedError(f"{self!r} leaves the loss to the attack.")

    def penalty(self, labels: tf.Tensor, adversarial: tf.Tensor, clean: Any) -> tf.Tensor | None:
        """Returns what is added to the compiled loss, float32 [batch], or None.

        Args:
            labels: int32 [batch].
            adversarial: logits of the adversarial images, float32 [batch, classes].
            clean: logits of the clean images, float32 [batch, classes]; None if `sees_clean` is False.
        """
        return None

    def settings(self) -> dict[str, Any]:
        """Returns the configuration as plain values, for run files and cards."""
        return {"objective": type(self).__name__, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class AdversarialTraining(Objective):
    """The compiled loss on the adversarial images (Madry et al., arXiv:1706.06083)."""


@dataclasses.dataclass(frozen=True)
class TRADES(Objective):
    """TRADES (Zhang et al., arXiv:1901.08573): accurate on clean images, and the same answer on adversarial images.

        loss(y, f(x)) + beta KL(softmax f(x) || softmax f(x')),    x' = argmax of the same divergence in the ball

    The divergence has no gradient at the image itself, so the attack must start at a random point.

    Args:
        beta: weight of the divergence, > 0; 1 / lambda in the paper: 1 or 6.

    Raises:
        ValueError: if beta is not positive.
    """

    beta: float = 6.0
    sees_clean = True
    compiled_loss = "clean"
    sets_attack_loss = True

    def __post_init__(self) -> None:
        _check(self.beta)

    def attack_loss(self, clean: tf.Tensor) -> LossFunction:
        """Returns the divergence from the clean prediction, a function of labels and logits."""
        return lambda labels, logits: losses.kl(clean, logits)

    def penalty(self, labels: tf.Tensor, adversarial: tf.Tensor, clean: tf.Tensor) -> tf.Tensor:
        """Returns beta KL(softmax f(x) || softmax f(x')). See `Objective.penalty`."""
        return self.beta * losses.kl(clean, adversarial)


@dataclasses.dataclass(frozen=True)
class MART(Objective):
    """MART (Wang et al., ICLR 2020): a boosted cross entropy, and more weight for images misclassified when clean.

        loss(y, f(x')) - log(1.0001 - max_{k != y} q_k) + beta KL(p || q) (1 - p_y)
        with p = softmax f(x), q = softmax f(x')

    Args:
        beta: weight of the divergence, > 0; 5 in the paper.

    Raises:
        ValueError: if beta is not positive.
    """

    beta: float = 5.0
    sees_clean = True

    def __post_init__(self) -> None:
        _check(self.beta)

    def penalty(self, labels: tf.Tensor, adversarial: tf.Tensor, clean: tf.Tensor) -> tf.Tensor:
        """Returns the second and the third term of the formula. See `Objective.penalty`."""
        wrong = tf.reduce_max(losses.without_label(labels, tf.nn.log_softmax(adversarial)), axis=-1)
        boost = -tf.math.log(1 + _MARGIN - tf.exp(wrong))
        confidence = tf.gather(tf.nn.softmax(clean), labels, axis=-1, batch_dims=1)
        return boost + self.beta * losses.kl(clean, adversarial) * (1 - confidence)


@dataclasses.dataclass(frozen=True)
class Free(Objective):
    """Free adversarial training (Shafahi et al., arXiv:1904.12843): each batch is used several times.

        AdversarialModel(model, FGSM(LinfBall(4)), objective=Free(replays=4))

    Each replay is one forward and backward pass. It updates the weights, and moves the images by one step of PGD:

        x' = project(x' + step_size * steepest(gradient of the loss at x'))

    The ball and the step size are those of the attack: with `FGSM`, steps of epsilon, as in the paper. m replays cost
    as much as m plain steps, so train for 1 / m of the epochs. Each replay is an iteration of the optimizer, also for
    its schedules. The network is attacked in training mode. The authors keep the perturbation of a batch for the next
    batch, of other images. Here each batch starts at a random point of the ball, so that a run can be resumed.

    Args:
        replays: m, the number of times that each batch is used, >= 1; 4 in the paper, for ImageNet.

    Raises:
        ValueError: if replays is not an integer >= 1.
    """

    replays: int = 4

    def __post_init__(self) -> None:
        if not (isinstance(self.replays, int) and self.replays >= 1):
            raise ValueError(f"replays must be an integer >= 1. Received: {self.replays!r}")


def _check(beta):
    if not beta > 0:
        raise ValueError(f"beta must be positive. Received: {beta!r}")
