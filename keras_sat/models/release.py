"""Loads the authors' released checkpoints (TF1 bundles) into the models of this package.

The checkpoints are from https://github.com/cihangxie/SmoothAdversarialTraining. The variables of ResNets have the names
and layouts of tensorpack, and the variables of EfficientNets those of Google's TPU code.
"""

import os
import re

import keras
import numpy as np
import tensorflow as tf

from keras_sat import files
from keras_sat.models import classifier
from keras_sat.typing import Path

EMA = "/ExponentialMovingAverage"
# The variables of a training checkpoint that are not the network's: optimizer slots, counters, averages of the weights.
NOT_THE_NETWORK = re.compile(
    rf"(^|/)(global_step|learning_rate)$|/(Momentum|RMSProp|RMSProp_1|Adam|Adam_1)$|{re.escape(EMA)}$"
)
BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def load(model: keras.Model, prefix: Path, ema: bool = False) -> None:
    """Loads a checkpoint of the authors' release into a model.

    Every weight of the model gets a value. Every variable of the checkpoint is used, except the state of the training
    (optimizer slots, step, learning rate, moving averages). The released ResNets take BGR images, and the models of
    this package RGB images. So the input channels of the first kernel are reversed.

    Args:
        model: a ResNet-50, -101 or -152, ResNeXt or EfficientNet of this package, with the checkpoint's activation.
        prefix: path of the bundle, without `.index` or `.data-00000-of-00001`.
        ema: whether to use the moving averages of the weights, as for EfficientNet-L1-Enhanced. Default: False. If the
            checkpoint has moving averages only, they are used in any case.

    Raises:
        ValueError: if there is no readable checkpoint, or variables are missing, left over, of another shape or not
            finite. The message names them. The model is not changed.
    """
    arrays = _read(prefix, ema)
    wanted = _names(model)
    problems: dict[str, list[str]] = {"missing": [], "of another shape": [], "not finite": []}
    assignments = []
    for name, variable in wanted.items():
        if name not in arrays:
            problems["missing"].append(name)
            continue
        array = arrays.pop(name)
        array = array.reshape(-1) if array.ndim == 5 else array  # batch norms of a TPU have shape [1, 1, 1, 1, C]
        if array.shape != tuple(variable.shape):
            problems["of another shape"].append(f"{name} {array.shape}, not {tuple(variable.shape)}")
        elif not np.isfinite(array).all():
            problems["not finite"].append(name)
        assignments.append((variable, array[:, :, ::-1] if name == "conv0/W" else array))
    problems["left over"] = sorted(arrays)
    if any(problems.values()):
        raise ValueError(f"{prefix} does not fit {model.name}: {summary(problems)}. Is it this network and activation?")
    for variable, array in assignments:
        variable.assign(array)
    classifier.refresh(model)


def _read(prefix, ema):
    """Returns {name: array} of the network's variables, by names that do not depend on the hardware of the training."""
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


def summary(problems: dict[str, list[str]]) -> str:
    """Returns a line with the number of problems of each kind, and the first three names: {kind: names} -> text."""
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in problems.items()
        if names
    )


def _names(model):
    """Returns {name in a checkpoint: variable} for the weights of a model."""
    layer_names = {layer.name for layer in model.layers}
    if not layer_names & {"conv0", "stem"}:
        raise ValueError(f"The release has no network like {model.name}: it has ResNets, ResNeXts and EfficientNets.")
    name_layer = _resnet_names if "conv0" in layer_names else _efficientnet_names
    weights = {}
    for layer in model.layers:
        weights.update(zip(name_layer(layer.name, layer_names), layer.weights) if layer.weights else ())
    return weights


def _resnet_names(layer, _):
    """Returns names such as conv0/W, group0/block1/conv2/bn/mean/EMA, group0/block1/smoothrelu_beta, linear/b."""
    if layer == "linear":
        return ["linear/W", "linear/b"]
    scope = re.sub("_(bn|act)$", "", layer).replace("_", "/")
    if layer.endswith("_bn"):
        return [f"{scope}/bn/{name}" for name in ("gamma", "beta", "mean/EMA", "variance/EMA")]
    return [f"{scope}/smoothrelu_beta" if layer.endswith("_act") else f"{scope}/W"]


def _efficientnet_names(layer, layers):
    """Returns names such as stem/conv2d/kernel, blocks_1/batch_normalization_2/gamma, blocks_1/se/conv2d_1/bias."""
    if layer == "linear":
        return ["head/dense/kernel", "head/dense/bias"]
    if layer.endswith("_act"):
        return [f"{layer}/smoothrelu_beta"]  # a name of this package: no released EfficientNet has such a variable
    scope, site = re.fullmatch(r"(stem|head|blocks_\d+)_?(.*)", layer.removesuffix("_bn")).groups()
    site = site or "expand"  # the convolution of the stem or head has the name of the first convolution of a block
    if site.startswith("se_"):
        number = {"se_reduce": "", "se_excite": "_1"}[site]
        return [f"{scope}/se/conv2d{number}/{name}" for name in ("kernel", "bias")]
    # TF1 numbers the layers of a type in the order of creation. A block without expansion has one less.
    first = 0 if scope in ("stem", "head") or f"{scope}_expand" in layers else 1
    order = {"expand": (0, 0), "depthwise": (None, 1), "project": (1, 2)}[site]
    if layer.endswith("_bn"):
        return [f"{scope}/batch_normalization{_number(order[1] - first)}/{name}" for name in BATCH_NORM]
    if site == "depthwise":
        return [f"{scope}/depthwise_conv2d/depthwise_kernel"]
    return [f"{scope}/conv2d{_number(order[0] - first)}/kernel"]


def _number(index):
    return f"_{index}" if index else ""
