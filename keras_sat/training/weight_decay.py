"""Weight decay: which weights decay, and how."""

import keras

from keras_sat import internals

_NORMALIZATIONS = (keras.layers.LayerNormalization, keras.layers.GroupNormalization)
KINDS = ("kernels", "all", "all_but_batch_norm", "all_but_biases")


def decay_weights(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, weight_decay: float, on: str = "kernels"
) -> None:
    """Lets weights of a model decay, as torch.optim does with the optimizer of the same name.

    With AdamW, the decay is decoupled: w -= learning_rate * weight_decay * w before each step (arXiv:1711.05101). With
    any other optimizer, it is coupled: the gradient of w becomes g + weight_decay * w, through the L2 penalty
    weight_decay / 2 ||w||^2 in the loss. The loss that `fit` shows contains this penalty.

    Call it before the first step, after weights are frozen: only trainable weights decay.

    Args:
        model: the model. With a coupled decay, the L2 penalty replaces the regularizers of the weights that decay.
        optimizer: the optimizer, not built yet, with no `weight_decay` of its own unless it is AdamW.
        weight_decay: >= 0.
        on: "kernels" (default): weights of two or more dimensions, which are the kernels of convolutions (depthwise
            ones too) and dense layers; not biases, not the scale and shift of normalizations, not the layer scale of
            ConvNeXt. This is the rule of timm. "all": every trainable weight, as with torch's SGD(model.parameters()).
            "all_but_batch_norm": every trainable weight but those of batch norms, as in DeepMind's code for
            arXiv:2010.03593 and Wang et al.'s for arXiv:2302.04638. "all_but_biases": every trainable weight but those
            of batch norms, biases, and the shift of other normalizations, as in Singh et al.'s code for
            arXiv:2303.01870.

    Raises:
        ValueError: for another `on`, a negative `weight_decay`, an optimizer that was built before, or one that decays
            weights already.
    """
    if on not in KINDS:
        raise ValueError(f"on must be one of {', '.join(KINDS)}. Received: {on!r}")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be >= 0. Received: {weight_decay!r}")
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    if inner.built:
        raise ValueError(f"{inner.name} was built before: weights decay from the first step on.")
    decaying = _decaying(model, on)
    if isinstance(inner, keras.optimizers.AdamW):
        inner.weight_decay = weight_decay
        inner.exclude_from_weight_decay([v for v in model.trainable_variables if id(v) not in decaying])
        return
    if inner.weight_decay:
        raise ValueError(f"{inner.name} decays weights already. Received: weight_decay={inner.weight_decay!r}")
    for variable in model.trainable_variables:
        if id(variable) in decaying:
            variable.regularizer = keras.regularizers.L2(weight_decay / 2) if weight_decay else None


def _decaying(model, on):
    """Returns the ids of the trainable variables that decay."""
    variables = model.trainable_variables
    if on == "kernels":
        variables = [variable for variable in variables if len(variable.shape) > 1]
    ids = {id(variable) for variable in variables}
    if on.startswith("all_but"):
        layers = internals.all_layers(model)
        norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
        ids -= {id(variable) for norm in norms for variable in norm.trainable_variables}
    if on == "all_but_biases":
        shifts = [norm.beta for norm in layers if isinstance(norm, _NORMALIZATIONS) and norm.beta is not None]
        ids -= {id(variable) for variable in [*shifts, *(one for one in variables if one.name == "bias")]}
    return ids
