"""The command `keras-sat convert`."""

import argparse
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_sat import files, models
from keras_sat.cli import flags, messages
from keras_sat.models import classifier, foreign, normalization

SUFFIXES = (".weights.h5", ".keras", ".safetensors")
TOLERANCE = 1e-5  # of the logits' range
_ZOO = "robustbench.model_zoo.architectures"
# The PyTorch module that loads the state dict of a form: {start of the network's name: {form: module}}.
_TORCH_MODULES = {
    "WideResNet50_2": {"torchvision": "torchvision.models.wide_resnet50_2()"},
    "WideResNet": {
        "trades": f"{_ZOO}.wide_resnet.WideResNet(depth, num_classes, widen_factor)",
        "dm": f"{_ZOO}.dm_wide_resnet.DMWideResNet(num_classes, depth, width, activation_fn, mean, std)",
    },
    "PreActResNet": {
        "plain": f"{_ZOO}.resnet.PreActResNet(PreActBlock, [2, 2, 2, 2])",
        "batch_norm": f"{_ZOO}.resnet.PreActResNet(PreActBlockV2, [2, 2, 2, 2], bn_before_fc=True)",
        "dm": f"{_ZOO}.dm_wide_resnet.DMPreActResNet(num_classes, 18, 0, activation_fn, mean, std)",
    },
    "ResNet": {
        "small": f"the ResNet of {_ZOO}.resnet",
        "torchvision": "the one of this name in torchvision.models",
    },
    "ConvNeXt": {
        "conv": f"timm.models.ConvNeXt with the stem of {_ZOO}.convstem_models",
        "patch": "timm.models.ConvNeXt",
    },
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        type=files.expanded,
        help="a file of PyTorch (.pt, .pth, .safetensors), a checkpoint of the SAT release (the path without .index or "
        ".data-...), the folder of a run, or X.weights.h5",
    )
    parser.add_argument("--model", help="network: see `keras-sat list`; a run says its own")
    flags.add_network(
        parser, "--model", "a file of PyTorch does not say its own; default: that of most networks of this form"
    )
    parser.add_argument("--classes", type=int, help="number of classes; default: as in the source")
    parser.add_argument("--channels", type=int, choices=(1, 3), help="of the images; default: as in the source")
    parser.add_argument(
        "--ema", action="store_true", help="SAT release: take the moving averages, as of EfficientNet-L1"
    )
    parser.add_argument("--unaveraged", action="store_true", help="PyTorch: take the weights that are not averaged")
    parser.add_argument("--choice", help="PyTorch: the name of the weights, such as last, if the file has several")
    parser.add_argument("--to", required=True, type=files.expanded, help=f"file to write: X{', X'.join(SUFFIXES)}")


def run(args: argparse.Namespace) -> int:
    """Converts weights between PyTorch's files, those of the SAT authors' release, runs and files of Keras.

    After writing, the file is loaded again, and its network is compared with the source.
    """
    _check_target(args)
    messages.say(f"Reading {args.source} ...")
    model, given = _network(args)
    messages.say("Writing the file, and comparing its network with the source ...")
    with files.atomic_write(args.to) as temporary:
        _write(model, temporary)
        _check_copy(model, _read(temporary, model, given), args.to)
    print(f"Written to {args.to}")
    print(_line(model, given))
    if args.to.endswith(".safetensors"):
        print(_torch_line(args.to, given))
    return 0


def _suffix(path):
    return next((suffix for suffix in SUFFIXES if path.endswith(suffix)), None)


def _check_target(args):
    """Raises ValueError if the file to write exists, or has an unknown suffix."""
    if _suffix(args.to) is None:
        raise ValueError(f"--to must end in one of {', '.join(SUFFIXES)}. Received: {args.to!r}")
    if os.path.exists(args.to):
        raise ValueError(f"{args.to} exists: choose a new file, or remove it first.")


def _network(args):
    """Returns the network of the source with its weights, and what it is: the arguments of `models.build`."""
    if not foreign.exists(args.source):
        raise ValueError(f"There is no file, folder or checkpoint at {args.source}.")
    kind = foreign.kind(args.source)
    if kind == foreign.UNKNOWN and os.path.isfile(args.source):
        kind = foreign.PYTORCH  # an old kind, or none: its reader says so
    if kind not in _SOURCES:
        raise ValueError(foreign.advice(args.source))
    _check_flags(args, kind)
    return _SOURCES[kind](args)


_FILES = (foreign.PYTORCH, foreign.BUNDLE, foreign.WEIGHTS)
_KINDS: dict[str, tuple[str, ...]] = {
    "ema": (foreign.BUNDLE,),
    "unaveraged": (foreign.PYTORCH,),
    "choice": (foreign.PYTORCH,),
}
_KINDS |= dict.fromkeys(("model", "form", "activation", "normalization", "classes", "channels"), _FILES)


def _check_flags(args, kind):
    """Raises ValueError if a flag is missing, or does not go with this kind of source."""
    for name, kinds in _KINDS.items():
        if getattr(args, name) not in (None, False) and kind not in kinds:
            raise ValueError(f"--{name} does not go with {args.source}, which is {_SHOWN[kind]}: leave it out.")
    if kind != foreign.RUN and not args.model:
        raise ValueError(f"{args.source} is {_SHOWN[kind]}: say its network, --model (see `keras-sat list`).")
    if kind in (foreign.PYTORCH, foreign.WEIGHTS) and args.activation is None:
        _check_activation(args)


def _default_activation(args):
    """Returns the activation of most published checkpoints of a form; for the SAT release's form, the builder's own."""
    build = models.builder(args.model)
    form = args.form or build.form
    return build.activation if form == "sat" or form not in build.forms else build.forms[form].activation


def _check_activation(args):
    """Warns that the source does not say its activation. If the file to write contains it, raises ValueError."""
    if args.to.endswith(".keras"):
        raise ValueError(f"{args.source} does not say its activation: say it, such as --activation=relu.")
    default = _default_activation(args)
    warnings.warn(
        f"{args.source} does not say its activation: {default} is used. If it was trained with another one, give "
        "it: --activation=NAME.",
        stacklevel=2,
    )


_SHOWN = {
    foreign.PYTORCH: "a file of PyTorch",
    foreign.BUNDLE: "a checkpoint of TensorFlow 1, as of the SAT release",
    foreign.WEIGHTS: "a file of weights",
    foreign.RUN: "the folder of a run",
}


def _given(args):
    """Returns the arguments of `models.build` that the flags give."""
    given = {"name": args.model, "form": args.form, "normalization": args.normalization or normalization.PUBLISHED}
    models.check_variant(*given.values(), args.channels)
    given["activation"] = args.activation or _default_activation(args)
    return given | ({"classes": args.classes} if args.classes else {})


def _shape_of(args, channels=None):
    """Returns the argument input_shape for `models.build`, for images of any size; {} if the channels are not known."""
    channels = args.channels or channels
    return {"input_shape": (None, None, channels)} if channels else {}


def _of_pytorch(args):
    given = _given(args)
    build, activation = models.builder(args.model), given["activation"]
    options = _shape_of(args) | ({"classes": args.classes} if args.classes else {})
    if args.form is not None:
        options[build.variant] = args.form
    if given["normalization"] != normalization.PUBLISHED:  # else the file's, if it says one
        options["normalization"] = None if given["normalization"] == "none" else given["normalization"]
    model = models.pytorch.build(build, args.source, not args.unaveraged, args.choice, activation=activation, **options)
    used = normalization.shortest(*normalization.of_model(model))
    return model, given | {"normalization": "none" if used is None else used}


def _of_release(args):
    given = _given(args)
    model = models.build(**given, **_shape_of(args, 3))
    models.release.load(model, args.source, args.ema)
    return model, given


def _of_weights(args):
    given = _given(args)
    return models.build(**given, **_shape_of(args), weights=args.source), given


def _of_run(args):
    from keras_sat import run as run_lib

    run, model = run_lib.load(args.source)
    given = {
        "name": run.model,
        "form": run.form,
        "normalization": run.normalization or normalization.PUBLISHED,
        "activation": run.activation,
    }
    return classifier.in_precision(model, "float32"), given


_SOURCES: dict[str, Callable[[argparse.Namespace], tuple[keras.Model, dict[str, Any]]]] = {
    foreign.PYTORCH: _of_pytorch,
    foreign.BUNDLE: _of_release,
    foreign.WEIGHTS: _of_weights,
    foreign.RUN: _of_run,
}


def _write(model, path):
    if path.endswith(".safetensors"):
        models.pytorch.save(model, path)
    elif path.endswith(".keras"):
        model.save(path)
    else:
        models.weights.save_file(model, path)


def _read(path, model, given):
    """Returns the network in a file that `_write` wrote."""
    if path.endswith(".keras"):
        return keras.saving.load_model(path)
    options = given | {"input_shape": model.input_shape[1:], "classes": model.output_shape[-1]}
    if path.endswith(".weights.h5"):
        return models.build(**options, weights=path)
    network = models.build(**options)
    models.pytorch.load(network, path)
    return network


def _check_copy(model, copy, path):
    """Raises OSError if a network that was written and loaded again gives other logits than before."""
    images = classifier.some_inputs(model)
    expected, logits = (np.asarray(network(images, training=False)) for network in (model, copy))
    if not np.abs(logits - expected).max() <= TOLERANCE * np.ptp(expected):
        raise OSError(f"{path} was not written: loaded again, its network gives other logits than the source.")


def _line(model, given):
    """Returns a line that says which network was written."""
    facts = models.describe(model, given["name"], given["form"], given["activation"])
    shown = [f"{name} {json.dumps(facts[name])}".replace('"', "") for name in ("form", "activation", "normalization")]
    shape = f"{model.output_shape[-1]} classes, {'grey' if model.input_shape[-1] == 1 else 'RGB'} images"
    return f"{facts['name']}, {', '.join(shown)}, {shape}. Verified: its logits are those of the source."


def _torch_line(path, given):
    """Returns a line that says how PyTorch loads a file."""
    name = given["name"]
    form = given["form"] or models.builder(name).form
    family = next(family for family in _TORCH_MODULES if name.startswith(family))
    normalizes = "which normalizes images in 0..1 itself" if form == "dm" else "on images in 0..1, normalized like this"
    return (
        f"In PyTorch: model.load_state_dict(safetensors.torch.load_file({path!r})), where model is "
        f"{_TORCH_MODULES[family][form]}, with this activation, {normalizes}."
    )
