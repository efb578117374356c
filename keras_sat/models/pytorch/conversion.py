"""Weights between PyTorch's files and the networks of this package: `load`, `build` and `save`.

The layers of a published form have the names of its PyTorch modules. So the name of an entry in the state dict is the
name of the layer and PyTorch's name of the variable: block1.layer.0.bn1 and moving_mean are
block1.layer.0.bn1.running_mean.
"""

import json
from collections.abc import Callable
from typing import Any

import keras
import ml_dtypes
import numpy as np

from keras_sat import extras, files, internals
from keras_sat.models import classifier, normalization, release
from keras_sat.models.pytorch import reader, wrappers
from keras_sat.typing import Path

_NORMS = (keras.layers.BatchNormalization, keras.layers.LayerNormalization)
_NAMES = {"kernel": "weight", "bias": "bias"}
_NORM_NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def load(model: keras.Model, path: Path, averaged: bool = True, choice: str | None = None) -> None:
    """Loads a PyTorch checkpoint into a network. PyTorch is not needed, and no code of the file runs.

    Every weight of the model gets a value, and every entry of the checkpoint is used. The exceptions are counters of
    batch norms (num_batches_tracked) and of averages (n_averaged), and the blocks sub_block1 of TRADES' WideResNet,
    which no forward pass uses. If the checkpoint says how images are normalized, the model must normalize them in the
    same way.

    A checkpoint does not say its activation, and seldom its normalization. With others, the same weights fit, and the
    logits are wrong. So build the model with those of the training: `activation="relu"` for most networks of PyTorch.

    Args:
        model: a network of this package in a form that PyTorch has too, such as `WideResNet28_10(form="dm")`.
        path: a file of torch.save (.pt, .pth) or of safetensors.
        averaged: which weights to load from a checkpoint with `model_state_dict` and `unaveraged_model_state_dict`.
            Default: True, the averaged ones.
        choice: name of the state dict, such as "last" or "best", if the checkpoint has several.

    Raises:
        ValueError: if the file cannot be read or is refused; if it has several state dicts and `choice` names none of
            them; or if entries are missing, left over, of another shape, or not finite. The message names them. The
            model is not changed.
        ImportError: if a safetensors file is given and the safetensors library is missing.
    """
    _assign(model, path, *_read(model, path, wrappers.state_dict(reader.read(path), averaged, choice)))


def build(
    builder: Callable[..., keras.Model],
    path: Path,
    averaged: bool = True,
    choice: str | None = None,
    *,
    activation: Any,
    **options: Any,
) -> keras.Model:
    """Returns the network of a PyTorch checkpoint, with the checkpoint's weights, classes and channels.

    Args:
        builder: a builder of this package, such as `models.WideResNet28_10`.
        path: see `load`.
        averaged: see `load`.
        choice: see `load`.
        activation: activation of the network: that of the training, which the checkpoint does not say.
        options: further arguments of the builder, such as `form` and `normalization`. Default: `classes` and the
            channels of `input_shape` are those of the checkpoint, and `normalization` too if the checkpoint says it.

    Raises:
        ValueError: see `load`.
        ImportError: see `load`.
    """
    entries = wrappers.state_dict(reader.read(path), averaged, choice)
    # The layers have the same names with any normalization, which may not fit the default number of channels.
    template = internals.without_weights(lambda: builder(activation=activation, **options | {"normalization": None}))
    found, statistics = _read(template, path, entries)
    first, head = (found.get(f"{layer.name}.weight") for layer in _first_and_last(template))
    if head is not None and head.ndim == 2:
        options.setdefault("classes", head.shape[0])
    if first is not None and first.ndim == 4:
        options.setdefault("input_shape", (*template.input_shape[1:3], first.shape[1]))
    if statistics is not None:
        options.setdefault("normalization", normalization.shortest(*statistics))
    model = builder(activation=activation, **options)
    _assign(model, path, *_read(model, path, entries))
    return model


def save(model: keras.Model, path: Path) -> None:
    """Writes the weights of a network as a safetensors file, under the names of PyTorch's state dict.

    In PyTorch: `model.load_state_dict(safetensors.torch.load_file(path))`, with the class that the form is from. The
    file's metadata hold mean and std of the normalization, which is not part of these classes.

    Args:
        model: a network of this package in a form that PyTorch has too, such as `WideResNet28_10(form="dm")`.
        path: the file to write, such as "model.safetensors".

    Raises:
        ValueError: if PyTorch has no such form, a weight is not finite, or the path does not end in .safetensors.
        ImportError: if the safetensors library is missing.
    """
    path = files.expanded(path)
    if not path.endswith(".safetensors"):
        raise ValueError(f"The file must end in .safetensors. Received: {path!r}")
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ImportError(f"{path} is written by the safetensors library: {extras.install('pytorch')}") from error
    arrays = {
        name: np.ascontiguousarray(_to_torch(layer, variable.numpy()))
        for name, (layer, variable) in _variables(model).items()
    }
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise ValueError(f"{model.name} cannot be saved: {release.summary({'not finite': broken})}.")
    metadata = {"format": "pt", "network": model.name, "normalization": json.dumps(normalization.of_model(model))}
    with files.atomic_write(path) as temporary:
        save_file(arrays, temporary, metadata)
        again = reader.read(temporary)
        if any(not np.array_equal(again[name], array) for name, array in arrays.items()):
            raise OSError(f"{path} was not written as it should be: the disk or its memory may be damaged.")


def _variables(model):
    """Returns {entry of PyTorch's state dict: (layer, variable)} for the weights of a network.

    Raises:
        ValueError: if it is no network in a form that PyTorch has.
    """
    names = {layer.name for layer in model.layers if layer.weights}
    if names & {"conv0", "stem"} or not any("." in name for name in names):
        raise ValueError(
            f"{model.name} is in a form that PyTorch's checkpoints do not have. Build it in one that they have, such "
            'as models.ResNet50(form="torchvision") or models.WideResNet28_10(form="dm").'
        )
    return {
        f"{layer.name}.{_torch_name(layer, variable)}": (layer, variable)
        for layer in model.layers
        for variable in layer.weights
    }


def _torch_name(layer, variable):
    names = _NORM_NAMES if isinstance(layer, _NORMS) else _NAMES
    return names.get(variable.name, variable.name)


def _first_and_last(model):
    """Returns the first convolution and the last dense layer of a network."""
    layers = [layer for layer in model.layers if layer.weights]
    return layers[0], layers[-1]


def _read(model, path, entries):
    """Returns the entries of a checkpoint under the network's names, and how the checkpoint normalizes images."""
    wanted = _variables(model)
    found, statistics = wrappers.fit(entries, wanted)
    used = {name: array for name, array in found.items() if name in wanted or not _is_unused(name, wanted)}
    if statistics is None and (said := reader.metadata(path).get("normalization")):
        statistics = json.loads(said)
    return used, statistics


def _is_unused(name, wanted):
    """Returns whether an entry is one that no forward pass uses."""
    if name == "n_averaged":  # torch.optim.swa_utils.AveragedModel
        return True
    if name.endswith(".num_batches_tracked"):
        return name.replace("num_batches_tracked", "running_mean") in wanted or name.startswith("sub_block1.")
    return name.startswith("sub_block1.") and name.replace("sub_block1", "block1") in wanted


def _assign(model, path, entries, statistics):
    """Assigns a checkpoint's entries to the weights of a network: all, or none and a ValueError."""
    entries, values = dict(entries), []
    problems = {kind: [] for kind in ("missing", "of another type", "of another shape", "not finite")}
    for name, (layer, variable) in _variables(model).items():
        array = entries.pop(name, None)
        kind, detail = _problem(layer, variable, array)
        if kind:
            problems[kind].append(name + detail)
        else:
            values.append((variable, _from_torch(layer, array)))
    problems["left over"] = sorted(entries)
    if any(problems.values()):
        question = " Is it this network, form and number of classes?" if entries or problems["missing"] else ""
        raise ValueError(f"{path} does not fit {model.name}: {release.summary(problems)}.{question}")
    _check_normalization(model, path, statistics)
    for variable, value in values:
        variable.assign(value)
    classifier.refresh(model)


def _problem(layer, variable, array):
    """Returns what is wrong with an entry (None: nothing), and details of it."""
    if array is None:
        return "missing", ""
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
        return "of another type", f": {array.dtype}"
    wanted = tuple(variable.shape[axis] for axis in np.argsort(_axes(layer, len(variable.shape))))
    if array.shape != wanted:
        return "of another shape", f": {array.shape}, not {wanted}"
    return (None, "") if np.isfinite(_from_torch(layer, array)).all() else ("not finite", "")


def _check_normalization(model, path, statistics):
    own = normalization.of_model(model)
    if statistics is None or (own and all(map(normalization.same, own, statistics))):
        return
    ours, theirs = (pair and normalization.shortest(*pair) for pair in (own, statistics))
    raise ValueError(
        f"{path} is of a network that normalizes images with {theirs}; {model.name} normalizes them with {ours}: build "
        f"it with normalization={theirs}."
    )


def _from_torch(layer, array):
    """Returns an array of PyTorch in the layout of a layer's variable, in float32."""
    axes = _axes(layer, array.ndim)
    with np.errstate(over="ignore"):  # float64 may become infinite, which is found later
        return array.astype(np.float32).transpose(axes)


def _to_torch(layer, array):
    """Returns the value of a layer's variable in PyTorch's layout."""
    return array.transpose(np.argsort(_axes(layer, array.ndim)))


def _axes(layer, rank):
    """Returns the order of PyTorch's axes in Keras: of kernels [out, in, height, width] and [out, in]."""
    if rank == 4:
        return (2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (2, 3, 1, 0)
    return tuple(reversed(range(rank)))
