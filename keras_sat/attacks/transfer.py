"""Transfer: adversarial images that are made for another network."""

import dataclasses
from typing import Any

import tensorflow as tf

from keras_sat import provenance
from keras_sat.attacks import gradients, threats, validation
from keras_sat.attacks.attack import Attack
from keras_sat.typing import LogitsFunction, LossFunction


@dataclasses.dataclass(frozen=True)
class Transfer(Attack):
    """An attack on another network, whose images are then shown to the network under attack (arXiv:1605.07277).

        evaluate(model, test, {"PGD-50": pgd, "from the undefended": Transfer(undefended, pgd)})

    It needs no gradient of the network under attack. If it breaks images that attacks on the network itself do not,
    the gradients of the network are masked.

    Args:
        surrogate: the other network, for the same images and classes: a Keras model or a function to logits.
        attack: the attack on the surrogate. Its variant `attack.for_transfer()` runs.

    Raises:
        ValueError: when it is called, or before an evaluation begins, if the networks differ in the size of their
            images or in their number of classes, or if the surrogate returns probabilities.
    """

    ball: threats.Ball = dataclasses.field(init=False)
    surrogate: LogitsFunction
    attack: Attack

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack) or self.attack.ball is None:
            raise ValueError(f"attack must be an attack with a ball, such as PGD(ball). Received: {self.attack!r}")
        if not callable(self.surrogate):
            raise ValueError(f"surrogate must be a network or a function to logits. Received: {self.surrogate!r}")
        object.__setattr__(self, "ball", self.attack.ball)

    def __str__(self) -> str:
        return f"{self.attack} from {provenance.name(self.surrogate)}"

    def settings(self) -> dict[str, Any]:
        """Returns the configuration as plain values for a report: the attack's, and which network the surrogate is."""
        sha256 = provenance.weights_sha256(self.surrogate)
        surrogate = {"model": provenance.name(self.surrogate), "weights_sha256": sha256}
        return self.attack.for_transfer().settings() | {"surrogate": surrogate}

    @property
    def max_forward_passes(self) -> int:
        """Forward passes of one example at most, of the surrogate. A gradient counts as two."""
        return self.attack.max_forward_passes

    @property
    def needs_gradients(self) -> bool:
        """Whether the attack uses gradients of the network under attack: no."""
        return False

    @property
    def random_start(self) -> bool:
        """Whether the attack starts at a random point, and not at the image itself."""
        return self.attack.random_start

    @property
    def targeted(self) -> bool:
        """Whether the labels are the classes to reach. Otherwise they are the classes to leave."""
        return self.attack.targeted

    def runs_on(self, logits_fn: LogitsFunction) -> tuple[Attack, LogitsFunction]:
        """Returns the attack on the surrogate, and the surrogate. See `Attack.runs_on`."""
        return self.attack.for_transfer(), self.surrogate

    def for_evaluation(self) -> "Transfer":
        """Returns the attack without options that are for training only."""
        return dataclasses.replace(self, attack=self.attack.for_evaluation())

    def with_radius(self, radius: float) -> "Transfer":
        """Returns the attack with another epsilon. See `Attack.with_radius`."""
        return dataclasses.replace(self, attack=self.attack.with_radius(radius))

    def with_loss(self, loss: LossFunction) -> "Transfer":
        """Returns the attack with another loss to ascend. See `Attack.with_loss`."""
        return dataclasses.replace(self, attack=self.attack.with_loss(loss))

    def check_network(self, logits_fn: LogitsFunction, images: tf.Tensor, labels: tf.Tensor) -> None:
        """Raises ValueError if one of the networks returns no logits, or if their images or classes differ."""
        validation.check_logits(logits_fn, images, labels)
        shape = getattr(self.surrogate, "input_shape", None)
        if isinstance(shape, tuple) and not tf.TensorShape(shape).is_compatible_with(images.shape):
            raise ValueError(f"The surrogate takes images of shape {shape[1:]}. Received: {tuple(images.shape[1:])}")
        validation.check_logits(self.surrogate, images, labels)
        own, other = (gradients.logits(network, images[:1]).shape[-1] for network in (logits_fn, self.surrogate))
        if own != other:
            raise ValueError(f"The surrogate has {other} classes, the network {own}: both need the same classes.")

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
        attack, surrogate = self.runs_on(logits_fn)
        return attack.perturb(surrogate, images, labels, seed, static_shapes=static_shapes)
