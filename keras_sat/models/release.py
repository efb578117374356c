"""The authors' released checkpoints (TF1 bundles) -> the models of this package.

Names and layouts are those of cihangxie/SmoothAdversarialTraining: ResNets as tensorpack names them, EfficientNets as
Google's TPU code does.
"""

import os
import re

import numpy as np
import tensorflow as tf

from keras_sat import files
from keras_sat.models import classifier

EMA = "/ExponentialMovingAverage"
# What a training checkpoint holds beside the network: the optimizer's slots, counters, and averages of the weights.
NOT_THE_NETWORK = re.compile(
    rf"(^|/)(global_step|learning_rate)$|/(Momentum|RMSProp|RMSProp_1|Adam|Adam_1)$|{re.escape(EMA)}$"
)
BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def load(model, prefix, ema=False):
    """Assigns every weight of `model` from a checkpoint of the authors' release.

    The released ResNets were fed BGR images, the models of this package take RGB: the first kernel is flipped. Every
    variable of the checkpoint is accounted for: it is a weight of the model, or belongs to the training (optimizer
    slots, step, learning rate, moving averages).

    Args:
        model: ResNet-50/101/152, a ResNeXt or an EfficientNet of this package, with the checkpoint's activation.
        prefix: path of the bundle, without `.index` or `.data-00000-of-00001`.
        ema: take the moving averages of the weights, as EfficientNet-L1-Enhanced does. A checkpoint that holds nothing
            but averages is read so in any case.

    Raises:
        ValueError: if there is no readable checkpoint, or a variable is missing, left over, of another shape or not
            finite; the message names them, and the model is left as it was.
    """
    arrays = _read(prefix, ema)
    wanted = _names(model)
    assignments, problems = [], {"missing": [], "of another shape": [], "not finite": []}
    for name, variable in wanted.items():
        if name not in arrays:
            problems["missing"].append(name)
            continue
        array = arrays.pop(name)
        array = array.reshape(-1) if array.ndim == 5 else array  # [1, 1, 1, 1, C]: batch norm on a TPU
        if array.shape != tuple(variable.shape):
            problems["of another shape"].append(f"{name} {array.shape}, not {tuple(variable.shape)}")
        elif not np.isfinite(array).all():
            problems["not finite"].append(name)
        assignments.append((variable, array[:, :, ::-1] if name == "conv0/W" else array))
    problems["left over"] = sorted(arrays)
    if any(problems.values()):
        raise ValueError(
            f"{prefix} does not fit {model.name}: {_summary(problems)}. Is it this network and activation?"
        )
    for variable, array in assignments:
        variable.assign(array)
    classifier.refresh(model)


def _read(prefix, ema):
    """Returns {name: array} of the network's variables, named alike whatever build of the authors' code wrote them."""
    try:
        folder, name = os.path.split(files.expanded(prefix))
        with files.without_wildcards(folder) as plain:
            reader = tf.train.load_checkpoint(os.path.join(plain, name))
        names = list(reader.get_variable_to_shape_map())
        averages_only = not any(_is_network(name) for name in names)
        suffix = EMA if ema or averages_only else ""
        chosen = [name for name in names if name.endswith(EMA)] if suffix else [n for n in names if _is_network(n)]
        return {_plain(name.removesuffix(suffix)): reader.get_tensor(name) for name in chosen}
    except (ValueError, RuntimeError, IndexError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"There is no readable checkpoint at {prefix}; expected {prefix}.index and {prefix}.data-00000-of-00001 "
            f"({reason})"
        ) from error


def _is_network(name):
    return not NOT_THE_NETWORK.search(name)


def _plain(name):
    return re.sub("^efficientnet-[^/]+/", "", name).replace("tpu_batch_normalization", "batch_normalization")


def _summary(problems):
    """Returns the problems in a line: for each kind how many, and the first three by name."""
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in problems.items()
        if names
    )


def _names(model):
    """Returns {the checkpoint's name: weight} for every weight of a model."""
    layer_names = {layer.name for layer in model.layers}
    if not layer_names & {"conv0", "stem"}:
        raise ValueError(f"The release has no network like {model.name}: it has ResNets, ResNeXts and EfficientNets.")
    name_layer = _resnet_names if "conv0" in layer_names else _efficientnet_names
    found = {}
    for layer in model.layers:
        found.update(zip(name_layer(layer.name, layer_names), layer.weights) if layer.weights else ())
    return found


def _resnet_names(layer, _):
    """conv0/W, group0/block1/conv2/bn/mean/EMA, group0/block1/smoothrelu_beta, linear/b ..."""
    if layer == "linear":
        return ["linear/W", "linear/b"]
    scope = re.sub("_(bn|act)$", "", layer).replace("_", "/")
    if layer.endswith("_bn"):
        return [f"{scope}/bn/{name}" for name in ("gamma", "beta", "mean/EMA", "variance/EMA")]
    return [f"{scope}/smoothrelu_beta" if layer.endswith("_act") else f"{scope}/W"]


def _efficientnet_names(layer, layers):
    """stem/conv2d/kernel, blocks_1/batch_normalization_2/gamma, blocks_1/se/conv2d_1/bias, head/dense/bias ..."""
    if layer == "linear":
        return ["head/dense/kernel", "head/dense/bias"]
    if layer.endswith("_act"):
        return [f"{layer}/smoothrelu_beta"]  # the release has no EfficientNet whose activation has a weight
    scope, site = re.fullmatch(r"(stem|head|blocks_\d+)_?(.*)", layer.removesuffix("_bn")).groups()
    site = site or "expand"  # the stem's and the head's only convolution is named as a block's first
    if site.startswith("se_"):
        number = {"se_reduce": "", "se_excite": "_1"}[site]
        return [f"{scope}/se/conv2d{number}/{name}" for name in ("kernel", "bias")]
    # TF1 numbers the layers of a kind in the order of their making; a block without expansion makes one less.
    first = 0 if scope in ("stem", "head") or f"{scope}_expand" in layers else 1
    order = {"expand": (0, 0), "depthwise": (None, 1), "project": (1, 2)}[site]
    if layer.endswith("_bn"):
        return [f"{scope}/batch_normalization{_number(order[1] - first)}/{name}" for name in BATCH_NORM]
    if site == "depthwise":
        return [f"{scope}/depthwise_conv2d/depthwise_kernel"]
    return [f"{scope}/conv2d{_number(order[0] - first)}/kernel"]


def _number(index):
    return f"_{index}" if index else ""
