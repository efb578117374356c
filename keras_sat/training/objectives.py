"""What adversarial training minimises.

An objective is a frozen configuration with four members, all that `AdversarialModel` asks of it:

    sees_clean          whether the clean images pass the network too (in training mode, before the adversarial ones)
    compiled_loss       "adversarial" or "clean": the images whose logits the compiled loss is given
    attack_loss         None: the attack ascends its own loss; or a function of the clean images' logits that returns
                        the loss to ascend, a function of labels and logits
    penalty(labels, adversarial, clean)     what is added to the compiled loss, [batch], of two tensors of logits
"""

import dataclasses

import tensorflow as tf

from keras_sat import losses

_MARGIN = 1e-4  # the largest wrong probability may be 1; the value is of MART's release


@dataclasses.dataclass(frozen=True)
class AdversarialTraining:
    """The compiled loss on the adversarial images (Madry et al., arXiv:1706.06083)."""

    sees_clean = False
    compiled_loss = "adversarial"
    attack_loss = None

    def penalty(self, labels, adversarial, clean):
        return None


@dataclasses.dataclass(frozen=True)
class TRADES:
    """TRADES (Zhang et al., arXiv:1901.08573): accuracy on clean images, and the same answer on adversarial ones.

        loss(y, f(x)) + beta KL(softmax f(x) || softmax f(x')),    x' = argmax over the ball of the same divergence

    The divergence has no gradient at the image itself: the attack must start at random.

    Args:
        beta: weight of the divergence, > 0; the paper's 1 / lambda: 1 or 6.
    """

    beta: float = 6.0
    sees_clean = True
    compiled_loss = "clean"

    def __post_init__(self):
        _check(self)

    def attack_loss(self, clean):
        return lambda labels, logits: losses.kl(clean, logits)

    def penalty(self, labels, adversarial, clean):
        return self.beta * losses.kl(clean, adversarial)


@dataclasses.dataclass(frozen=True)
class MART:
    """MART (Wang et al., ICLR 2020): a boosted cross entropy, and more weight for what is misclassified when clean.

        loss(y, f(x')) - log(1.0001 - max_{k != y} q_k) + beta KL(p || q) (1 - p_y)
        with p = softmax f(x), q = softmax f(x')

    Args:
        beta: weight of the divergence, > 0; 5 in the paper.
    """

    beta: float = 5.0
    sees_clean = True
    compiled_loss = "adversarial"
    attack_loss = None

    def __post_init__(self):
        _check(self)

    def penalty(self, labels, adversarial, clean):
        wrong = tf.reduce_max(losses.without_label(labels, tf.nn.log_softmax(adversarial)), axis=-1)
        boost = -tf.math.log(1 + _MARGIN - tf.exp(wrong))
        sure = tf.gather(tf.nn.softmax(clean), labels, axis=-1, batch_dims=1)
        return boost + self.beta * losses.kl(clean, adversarial) * (1 - sure)


def _check(objective):
    if not objective.beta > 0:
        raise ValueError(f"beta must be positive. Received: {objective.beta!r}")
