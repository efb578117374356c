"""The objectives that adversarial training minimises: `Objective` and its subclasses."""

import dataclasses
from typing import Any

import tensorflow as tf

from keras_sat import losses
from keras_sat.typing import LossFunction

_MARGIN = 1e-4  # of MART's release: keeps the logarithm finite if a wrong class has probability 1


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base class of objectives: the loss that was given to `compile`, plus a penalty.

    Attributes:
        sees_clean: whether the clean images pass through the network too (in training mode, before the adversarial
            images).
        compiled_loss: "adversarial" or "clean": the images on which the loss of `compile` is computed.
        clean_statistics: whether the clean images update the moving statistics of batch norms. They pass through the
            network with the statistics of their batch in either case.
        clean_passes: how often the clean images pass through the network: 1, or 2, once before and once after the
            adversarial images. The second pass only updates the moving statistics of batch norms.
        sets_attack_loss: whether the attack ascends `attack_loss` in place of its own loss.
        needs_random_start: whether the attack's loss has no gradient at the image itself.
        replays: 0, or the number of times that each batch is used (see `Free`).
    """

    sees_clean = False
    compiled_loss = "adversarial"
    clean_statistics = True
    clean_passes = 1
    sets_attack_loss = False
    needs_random_start = False
    replays = 0

    def attack_loss(self, labels: tf.Tensor, clean: tf.Tensor) -> LossFunction:
        """Returns the loss that the attack ascends, a function of labels [batch] and logits [batch, classes].

        Args:
            labels: the labels of the batch as probabilities, float32 [batch, classes]: one-hot, smoothed or mixed.
            clean: logits of the clean images, float32 [batch, classes].

        Raises:
            NotImplementedError: if `sets_attack_loss` is False.
        """
        raise NotImplementedError(f"{self!r} leaves the loss to the attack.")

    def penalty(self, labels: tf.Tensor, adversarial: tf.Tensor, clean: Any) -> tf.Tensor | None:
        """Returns the penalty that is added to the compiled loss, float32 [batch], or None for no penalty.

        Args:
            labels: int32 [batch].
            adversarial: logits of the adversarial images, float32 [batch, classes].
            clean: logits of the clean images, float32 [batch, classes]; None if `sees_clean` is False.
        """
        return None

    def settings(self) -> dict[str, Any]:
        """Returns the configuration as plain values, for files of runs and robustness cards."""
        return {"objective": type(self).__name__, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class AdversarialTraining(Objective):
    """The compiled loss on the adversarial images (Madry et al., arXiv:1706.06083)."""


@dataclasses.dataclass(frozen=True)
class TRADES(Objective):
    """TRADES (Zhang et al., arXiv:1901.08573): a loss on clean images, and a penalty if adversarial images change f.

        loss(y, f(x)) + beta KL(softmax f(x) || softmax f(x')),    x' = argmax of the same divergence in the ball

    The gradient of the divergence is 0 at the image itself, so the attack must start at a random point.

    Args:
        beta: weight of the divergence, > 0, 6 by default. It is 1 / lambda in the paper, which uses 1 and 6.
        attack_labels: True lets the attack ascend the cross entropy to the labels of the batch, which may be smoothed
            or mixed, in place of the divergence. Rebuffi et al. (arXiv:2103.01946) do so with CutMix. Default: False.
        clean_statistics: False lets the clean images pass through the network without updating the moving statistics
            of batch norms, as in DeepMind's code (Gowal et al., arXiv:2010.03593). The adversarial images then draw the
            same dropout. Default: True, as in the authors' code.
        clean_passes: 2 passes the clean images through the network again, after the adversarial images, as in the
            authors' code. They then weigh more in the moving statistics of batch norms: 67 % in place of 47 % with a
            momentum of 0.9. It costs a forward pass. Default: 1.

    Raises:
        ValueError: if beta is not positive, or clean_passes is neither 1 nor 2, or 2 without clean_statistics.
    """

    beta: float = 6.0
    attack_labels: bool = False
    clean_statistics: bool = True
    clean_passes: int = 1
    sees_clean = True
    compiled_loss = "clean"
    sets_attack_loss = True

    def __post_init__(self) -> None:
        _check(self.beta)
        if self.clean_passes not in ((1, 2) if self.clean_statistics else (1,)):
            raise ValueError(f"clean_passes must be 1, or 2 with clean_statistics. Received: {self.clean_passes!r}")

    @property
    def needs_random_start(self) -> bool:  # type: ignore[override]
        """Whether the attack's loss has no gradient at the image itself: the divergence has none."""
        return not self.attack_labels

    def attack_loss(self, labels: tf.Tensor, clean: tf.Tensor) -> LossFunction:
        """Returns the divergence from the clean prediction, or the cross entropy to `labels`. See `Objective`."""
        if self.attack_labels:
            return lambda _, logits: losses.soft_cross_entropy(labels, logits)
        return lambda _, logits: losses.kl(clean, logits)

    def penalty(self, labels: tf.Tensor, adversarial: tf.Tensor, clean: tf.Tensor) -> tf.Tensor:
        """Returns beta KL(softmax f(x) || softmax f(x')). See `Objective.penalty`."""
        return self.beta * losses.kl(clean, adversarial)


@dataclasses.dataclass(frozen=True)
class MART(Objective):
    """MART (Wang et al., ICLR 2020): a boosted cross entropy, and more weight for images misclassified when clean.

        loss(y, f(x')) - log(1.0001 - max_{k != y} q_k) + beta KL(p || q) (1 - p_y)
        with p = softmax f(x), q = softmax f(x')

    Args:
        beta: weight of the divergence, > 0, 5 by default and in the paper.

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

    The attack gives the ball and the step size; its other settings are not used. With `FGSM`, the step size is epsilon,
    as in the paper. m replays cost as much as m steps of plain training, so train for 1 / m of the epochs. Each replay
    is an iteration of the optimizer, also for its schedules. The network is attacked in training mode. The authors
    start a batch with the perturbation of the batch before. Here each batch starts at a random point of the ball, so
    that a run can be resumed.

    Args:
        replays: m, the number of times that each batch is used, >= 1; 4 by default, as in the paper for ImageNet.

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
