"""Pretrained weights, for the argument `weights=` of the builders: registry (weights.json), downloads and files."""

import difflib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import filelock
import h5py
import keras

from keras_sat import activations, extras, files
from keras_sat.models import classifier, foreign, pytorch, release
from keras_sat.models import normalization as normalization_lib
from keras_sat.models.normalization import PUBLISHED, Normalization
from keras_sat.typing import Path

Entry: TypeAlias = dict[str, Any]  # the facts about one checkpoint in the registry

REGISTRY = os.path.join(os.path.dirname(__file__), "weights.json")
ACTIVATIONS = "keras_sat_activations"  # the attribute of a file of weights that notes the activations
_NOT_THE_FUNCTION = (  # what a layer's configuration says of other things; the alpha of PReLU is a weight
    *("name", "dtype", "trainable"),
    *("alpha_initializer", "alpha_regularizer", "alpha_constraint"),
)
_LAYERS = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU, keras.layers.PReLU)
ROBUSTBENCH = "robustbench/"  # how the tags of RobustBench's networks begin
SAT_FORM = "sat"  # the argument `form` of the networks whose entry names none


def resolve(
    weights: Path | None,
    architecture: str,
    activation: Any,
    input_shape: tuple[int | None, ...] | None = None,
    form: str | None = None,
    normalization: Normalization = PUBLISHED,
) -> Entry | str | None:
    """Returns what the argument `weights` of a builder refers to. It builds and downloads nothing.

    Args:
        weights: None; a tag such as "sat-imagenet", "sat-imagenet-380", "sat-fashion-mnist" or
            "robustbench/Carmon2019Unlabeled"; or the path of a `.weights.h5` file.
        architecture: name of the builder.
        activation: activation of the network; see `activations.layer`.
        input_shape: (height, width, channels) of the network; None for the input shape of the weights.
        form: form or stem of the network; see `find`.
        normalization: normalization of the network; see `find`.

    Returns:
        None, an entry of the registry, or the path.

    Raises:
        ValueError: if there are no such weights for this network, activation, form, normalization and input shape.
    """
    if weights is None:
        return None
    if not is_tag(weights):
        return _existing_file(files.expanded(weights), foreign.network_flags(architecture, activation, form))
    image_size = input_shape[0] if input_shape else None
    entry = find(architecture, activation, str(weights), image_size, form, normalization)
    if input_shape and input_shape[-1] != entry["channels"]:
        kind = {1: "grey images (1 channel)", 3: "RGB images (3 channels)"}[entry["channels"]]
        raise ValueError(f"The weights {entry['id']} take {kind}. Received input shape: {input_shape}")
    return entry


def is_tag(weights: Path) -> bool:
    """Returns whether the argument `weights` is meant as a tag, which may not exist, and not as a path."""
    text = str(weights)
    looks = text.startswith(("sat-", ROBUSTBENCH)) and not text.endswith(".h5")
    return looks and not os.path.isfile(files.expanded(weights))


def shape_and_classes(entry: Entry) -> tuple[tuple[int, int, int], int]:
    """Returns the input shape (height, width, channels) and the number of classes of an entry's network."""
    return (entry["image_size"], entry["image_size"], entry["channels"]), entry["classes"]


def channels_and_classes(path: Path, head: str) -> tuple[int | None, int | None]:
    """Returns the number of channels and of classes of the network in a `.weights.h5` file, as its kernels show them.

    Args:
        path: the file.
        head: name of the network's last dense layer.

    Returns:
        (channels, classes). None: the file does not show it, or is damaged.
    """
    channels = classes = None
    try:
        with h5py.File(path) as file:
            for name, group in file["layers"].items():
                stored = group["vars"]
                if name == "conv2d":  # Keras counts: this is the first convolution, which takes the images
                    channels = int(stored["0"].shape[2])
                elif stored.attrs.get("name") == head:
                    classes = int(stored["0"].shape[1])
    except (OSError, KeyError, AttributeError, IndexError):  # `load_file` says what is wrong with it
        return None, None
    return (channels if channels in (1, 3) else None), classes


def load(model: keras.Model, source: Entry | str | None, build_network: Callable[..., keras.Model]) -> None:
    """Loads weights into a model that was just built.

    The model may differ from the network of a registered checkpoint: it may have no head, another number of classes, or
    other layers before the network. Then the whole network is built too, and the layers of the model get the weights of
    its layers of the same name.

    Args:
        model: the keras.Model.
        source: the result of `resolve`.
        build_network: function that builds the whole network, with the arguments `input_shape` and `classes`.

    Raises:
        ValueError: if the weights cannot be downloaded, are damaged, or belong to another network.
    """
    if isinstance(source, dict):
        network = model if _is_network_of(source, model) else _network(source, build_network)
        load_file(network, fetch(source, network))
        if network is not model:
            _copy(network, model)
    elif source is not None:
        load_file(model, source)


def _is_network_of(entry, model):
    """Returns whether a model with an entry's architecture is exactly the network of the entry.

    Another head, or other layers before the network, change the number of trainable parameters. The exception is a
    layer such as Normalization, whose weights are not trainable. So such layers are looked for, too.
    """
    parameters = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return parameters == entry["parameters"] and all(layer.trainable_weights for layer in model.layers if layer.weights)


def _network(entry, build_network):
    """Returns the untrained network of an entry, for images of any size."""
    return build_network(input_shape=(None, None, entry["channels"]), classes=entry["classes"])


def entries() -> list[Entry]:
    """Returns the entries of the registry. Each entry includes the facts that are common to its release."""
    with open(REGISTRY, encoding="utf-8") as file:
        releases = json.load(file).items()
    return [{"release": name, **release, **entry} for name, release in releases for entry in release["checkpoints"]]


def tags() -> list[str]:
    """Returns the tags that the argument `weights` of a builder accepts."""
    return sorted({entry["tag"] for entry in entries()})


def shown_tags() -> str:
    """Returns the tags as text, with one word for all of RobustBench's networks."""
    return ", ".join([*(tag for tag in tags() if not tag.startswith(ROBUSTBENCH)), f"{ROBUSTBENCH}NAME"])


def find(
    architecture: str,
    activation: Any,
    tag: str,
    image_size: int | None = None,
    form: str | None = None,
    normalization: Normalization = PUBLISHED,
) -> Entry:
    """Returns the registry's entry for a network.

    Args:
        architecture: name of the builder.
        activation: activation of the network; see `activations.layer`.
        tag: a tag such as "sat-imagenet", or "robustbench/" and the name of a network in RobustBench. A name that
            RobustBench gives to several networks is that of the one for CIFAR-10 and L-inf, as in its own `load_model`.
            The others have full names: "robustbench/cifar100/Linf/Wang2023Better_WRN-28-10".
        image_size: height of the images in pixels. If there is an entry with the tag TAG-SIZE for this size, such as
            "sat-imagenet-380", it is preferred to the entry of the tag.
        form: form of the network, or stem of a ConvNeXt. None: the form of the weights.
        normalization: None, a name, or (mean, std). "published" (default): the normalization of the weights.

    Raises:
        ValueError: if there is no such entry. The message names the existing ones, or what the weights need.
    """
    if tag.startswith(ROBUSTBENCH):
        entry = _of_robustbench(tag)
    else:
        entry = _of_release(architecture, activation, tag, image_size)
    if not (
        entry["model"] == architecture
        and same_activation(entry["activation"], activation)
        and form in (None, form_of(entry))
        and _same_normalization(entry, normalization)
    ):
        raise ValueError(
            f"The weights {tag} need {_call(entry, tag)}, with their own normalization. Received: {architecture}, "
            f"form {form!r}, activation {activation!r}, normalization {normalization!r}"
        )
    return entry


def form_of(entry: Entry) -> str:
    """Returns the form, or the stem, of an entry's network."""
    return str(entry.get("form") or entry.get("stem") or SAT_FORM)


def _same_normalization(entry, given):
    if given == PUBLISHED:
        return True
    pairs = [normalization_lib.statistics(each, entry["channels"]) for each in (given, _normalization(entry))]
    return all(map(normalization_lib.same, *pairs))


def _normalization(entry):
    return entry.get("normalization", normalization_lib.SYMMETRIC)


def _call(entry, tag):
    """Returns the text of the call that builds the network of an entry."""
    arguments = {name: entry[name] for name in ("form", "stem", "activation") if name in entry} | {"weights": tag}
    shown = (f"{name}={json.dumps(value).replace('false', 'False')}" for name, value in arguments.items())
    return f"{entry['model']}({', '.join(shown)})"


def _of_robustbench(tag):
    """Returns the entry of one of RobustBench's networks."""
    known = [entry for entry in entries() if entry["release"].startswith(ROBUSTBENCH)]
    for entry in known:
        if tag in (entry["tag"], entry["id"]):
            return entry
    _, _, name = tag.rpartition("/")
    namesakes = [entry["id"] for entry in known if entry["id"].endswith(f"/{name}")]
    reasons = {entry["left_out"][name] for entry in known if name in entry["left_out"]}
    if namesakes:
        more = f"the networks of this name are {', '.join(namesakes)}."
    elif reasons:
        more = f"that network cannot be built here ({'; '.join(sorted(reasons))})."
    else:
        more = "`keras-sat list --dataset=cifar10` lists those that there are."
        if similar := difflib.get_close_matches(name, {entry["id"].rpartition("/")[2] for entry in known}):
            more = f"did you mean {' or '.join(ROBUSTBENCH + each for each in similar)}? {more}"
    raise ValueError(f"There are no weights {tag!r}; {more}")


def _of_release(architecture, activation, tag, image_size):
    """Returns the entry of the SAT release, or of the package's own weights, for a network."""
    released = [entry for entry in entries() if tag.startswith(entry["release"])]
    if not released:
        raise ValueError(f"There are no weights {tag!r}; there are {shown_tags()}.")
    of_network = [entry for entry in released if entry["model"] == architecture]
    if not of_network:
        known = sorted({entry["model"] for entry in released})
        raise ValueError(f"There are no weights {tag!r} for {architecture}; there are for {', '.join(known)}.")
    fitting = [entry for entry in of_network if same_activation(entry["activation"], activation)]
    if not fitting:
        known = sorted({entry["activation"] for entry in of_network})
        raise ValueError(
            f"There are no weights {tag!r} for {architecture} with activation {activation!r}; there are for "
            f"{', '.join(known)}. Weights that were trained with another activation do not fit."
        )
    for entry in fitting:
        if entry["image_size"] == image_size and entry["tag"] == f"{tag}-{image_size}":
            return entry
    for entry in fitting:
        if entry["tag"] == tag:
            return entry
    known = [entry["tag"] for entry in fitting]
    raise ValueError(
        f"There are no weights {tag!r} for {architecture} with {activation!r}; there are {', '.join(known)}."
    )


def same_activation(one: Any, other: Any) -> bool:
    """Returns whether two values of the argument `activation` mean the same function."""
    layers = [activations.layer(spec, "site") for spec in (one, other)]
    return type(layers[0]) is type(layers[1]) and layers[0].get_config() == layers[1].get_config()


def home() -> str:
    """Returns the folder for downloaded weights: $KERAS_SAT_HOME, or else `keras_sat` in the folder of Keras."""
    keras_home = os.environ.get("KERAS_HOME", os.path.join("~", ".keras"))
    return os.path.expanduser(os.environ.get("KERAS_SAT_HOME", os.path.join(keras_home, "keras_sat")))


def fetch(entry: Entry, network: keras.Model | None) -> str:
    """Returns the path of an entry's `.weights.h5` file. On first use, downloads and converts the checkpoint.

    The file of an entry with the key "file" is part of the package. The SHA-256 of the file is verified at each call.
    For a converted file, it is stored in PATH.sha256, with those of the files that were downloaded: if the authors
    publish no hash, a later download must be the same file as the first one. If several processes need a file, one
    downloads it, and the others wait. The path never holds an incomplete file.

    Args:
        entry: an entry of the registry.
        network: the network of the entry, which is used for the conversion and gets the weights. None is allowed only
            if no conversion is necessary.

    Raises:
        ValueError: if the checkpoint cannot be downloaded, or is not the one expected.
        ImportError: if the download needs gdown, which is not installed.
    """
    if "file" in entry:
        return _embedded(entry)
    path = os.path.join(home(), *f"{entry['id']}.weights.h5".split("/"))
    if os.path.exists(path) and _is_intact(path):  # without the lock, because the folder may be read-only
        return path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        if not _is_intact(path):
            _convert(entry, network, path)
    return path


def _embedded(entry):
    path = os.path.join(os.path.dirname(__file__), *entry["file"].split("/"))
    if not os.path.exists(path) or files.sha256(path) != entry["sha256"]:
        raise ValueError(f"{path} is not the file that came with keras_sat: install the package again.")
    return path


def _is_intact(path):
    if not (os.path.exists(path) and os.path.exists(f"{path}.sha256")):
        return False
    if _recorded(path).get("") == files.sha256(path):
        return True
    warnings.warn(f"{path} was changed since it was fetched: fetching it again.", stacklevel=2)
    return False


def _recorded(path):
    """Returns {name: SHA-256} of the files that were downloaded for a converted file; its own is under ""."""
    if not os.path.exists(f"{path}.sha256"):
        return {}
    with open(f"{path}.sha256", encoding="utf-8") as file:
        return {name.strip(): digest for digest, _, name in (line.strip().partition(" ") for line in file)}


def _record(path, digests):
    lines = "".join(f"{digest}  {name}".rstrip() + "\n" for name, digest in digests.items())
    files.write_text(f"{path}.sha256", lines)


def _convert(entry, network, path):
    # If the folder exists, the process that made it was killed: the lock allows one process at a time.
    stem = os.path.basename(entry["id"])
    folder = os.path.join(os.path.dirname(path), f".fetching-{stem}")
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    try:
        digests = {}
        for part, drive_id in entry["drive"].items():
            name = f"{stem}.{part}"
            origin = _download(f"{entry['id']}.{part}", drive_id, os.path.join(folder, name))
            digests[name] = files.sha256(os.path.join(folder, name))
            _check_digest(
                name, origin, digests[name], (entry["sha256"] or {}).get(part), _recorded(path).get(name), path
            )
        _read(network, os.path.join(folder, stem), entry)
        with files.atomic_write(path) as temporary:
            save_file(network, temporary)
        _record(path, {"": files.sha256(path), **digests})
    finally:
        shutil.rmtree(folder)


def _read(network, prefix, entry):
    """Loads the downloaded files of an entry, whose path is `prefix` and a suffix, into its network."""
    if "pt" in entry["drive"]:
        pytorch.load(network, f"{prefix}.pt", choice=entry.get("choice"))
    else:
        release.load(network, prefix, entry["ema"])


def _check_digest(name, origin, actual, published, recorded, path):
    """Raises ValueError if a file is not the published one, or, if no hash is published, not the one fetched first."""
    if published and actual != published:
        raise ValueError(f"{name} from {origin} is not the file expected: its sha256 is {actual}, not {published}.")
    if not published and recorded and actual != recorded:
        raise ValueError(
            f"{name} from {origin} is not the file that was fetched first: its sha256 is {actual}, not {recorded}. To "
            f"accept it, delete {path}.sha256"
        )


def _download(name, drive_id, path):
    """Downloads one file of a checkpoint to `path`, and returns where it came from.

    The source is the URL in the environment variable KERAS_SAT_WEIGHTS_URL if it is set, otherwise Google Drive.
    """
    mirror, folder = os.environ.get("KERAS_SAT_WEIGHTS_URL"), os.path.dirname(path)
    origin = f"{mirror.rstrip('/')}/{name}" if mirror else f"Google Drive, file {drive_id}"
    try:
        if mirror:
            keras.utils.get_file(os.path.basename(path), origin, cache_dir=folder, cache_subdir="")
        else:
            _download_from_drive(drive_id, path)
    except ImportError:
        raise
    except Exception as error:  # Keras' get_file raises plain Exception
        raise ValueError(
            f"{name} could not be downloaded from {origin}: {' '.join(str(error).split())} KERAS_SAT_WEIGHTS_URL "
            "can name a folder of the files on another server."
        ) from error
    with open(path, "rb") as file:
        if file.read(1024).lstrip()[:1] == b"<":
            raise ValueError(f"{origin} sent a web page in place of the file {name}.")
    return origin


def _download_from_drive(drive_id, path):
    try:
        import gdown
    except ImportError as error:
        raise ImportError(
            f"The weights are on Google Drive. To download from there, install gdown: {extras.install('weights')}"
        ) from error
    gdown.download(id=drive_id, output=path)


def _copy(network, model):
    """Copies the weights of a network to the layers of the same name. A head of another size stays random."""
    twins = {layer.name: layer for layer in network.layers if layer.weights}
    head = classifier.output_layer(network)
    for layer in model.layers:
        twin = twins.get(layer.name)
        if twin is head and layer.units != twin.units:
            message = f"The head of {model.name} is new: the weights have {twin.units} classes, not {layer.units}."
            warnings.warn(message, stacklevel=4)
        elif twin:
            classifier.set_weights(layer, twin.get_weights())


def _existing_file(path, flags=None):
    """Returns the path of a file of weights. Raises ValueError if it is none; `flags`: see `foreign.advice`."""
    if foreign.exists(path):
        if foreign.kind(path) != foreign.WEIGHTS or not path.endswith(".weights.h5"):
            raise ValueError(foreign.advice(path, flags) if flags else foreign.advice(path))
        return path
    if path.endswith(".weights.h5"):
        raise ValueError(f"There is no weights file at {path}")
    raise ValueError(
        f"weights must be None, one of {shown_tags()}, or the path of a .weights.h5 file; there is no file {path!r}."
    )


def load_file(model: keras.Model, path: Path) -> None:
    """Loads a `.weights.h5` file into a model.

    Raises:
        ValueError: if there is no such file, it is damaged, or its variables are not exactly those of the model.
    """
    path = _existing_file(files.expanded(path))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            model.load_weights(path)
        _check_layers(model, path)
        _check_activations(model, path)
        for warning in caught:  # Keras only warns if the file lacks a layer of the model
            if issubclass(warning.category, UserWarning):
                raise ValueError(warning.message)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged or does not fit {model.name}: was it saved with the same network, form, activation, "
            f"classes and channels? ({reason(error)})"
        ) from error


def save_file(model: keras.Model, path: Path) -> None:
    """Writes a `.weights.h5` file that also notes the activations of the model, which `load_file` then compares.

    Other activations would fit the same file, and give other logits. The file is an ordinary file of Keras.
    """
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        for note, read in _NOTES.items():
            file.attrs[note] = json.dumps(read(model))


def _activations(model):
    """Returns the activations of a model as text, such as ["relu"]."""
    found = set()
    for layer in model.layers:
        if isinstance(layer, keras.layers.Activation):
            found.add(str(keras.activations.serialize(layer.activation)))
        elif isinstance(layer, activations.SmoothBackwardReLU):
            found.add("relu")  # only its gradient differs
        elif type(layer).__module__ == activations.__name__:
            found.add(_described(layer))
    return sorted(found)


def _activation_layers(model):
    """Returns the layers of Keras that are activations as text, such as ['LeakyReLU {"negative_slope": 0.2}']."""
    return sorted({_described(layer) for layer in model.layers if isinstance(layer, _LAYERS)})


def _described(layer):
    config = {name: value for name, value in layer.get_config().items() if name not in _NOT_THE_FUNCTION}
    config = {name: float(value) if type(value) is int else value for name, value in config.items()}
    return f"{type(layer).__name__} {json.dumps(config)}" if config else type(layer).__name__


_NOTES = {ACTIVATIONS: _activations, "keras_sat_activation_layers": _activation_layers}  # older files lack the second


def _check_activations(model, path):
    with h5py.File(path) as file:
        noted = {note: json.loads(file.attrs[note]) for note in _NOTES if note in file.attrs}
    own = {note: read(model) for note, read in _NOTES.items()}
    if any(noted[note] != own[note] for note in noted):
        raise ValueError(f"it holds the weights of a network with {_joined(noted)}, not {_joined(own)}")


def _joined(notes):
    return " and ".join(sum(notes.values(), [])) or "no activation"


def reason(error: Exception) -> str:
    """Returns the reason for which Keras did not load a file, in one line."""
    text = str(error).strip() or type(error).__name__
    _, found, details = text.partition("Example error message for object ")
    text = details.split("\n\n")[1] if found else text
    return text.splitlines()[0].partition(" Target variable: ")[0]  # Keras shows the variable's values, too


def _check_layers(model, path):
    """Raises ValueError if a file has layers of other names, or more variables, than the model.

    Keras reports neither. It finds a layer by its type and number, so that a network with layers of the same types and
    shapes, but with other paddings, would fit.
    """
    with h5py.File(path) as file:
        variables, layers = _contents(file["layers"])
    own = {layer.name for layer in model.layers}
    unknown = [name for name in layers if name not in own]
    if unknown:
        raise ValueError(f"it holds a layer {unknown[0]}, which the network does not have")
    stored = len([name for name in variables if "seed_generator" not in name])
    number = sum(len(layer.weights) for layer in model.layers)
    if stored != number:
        raise ValueError(f"it holds {stored} variables, of which the network has {number}")


def _contents(group):
    """Returns the paths of a file's variables, and the names of its layers that have variables.

    Left out are the values of the layer that normalizes, which compares them itself, and names that Keras made up,
    such as conv2d_3: they are other ones in each process.
    """
    variables, layers = [], []

    def visit(path, item):
        layer, _, rest = path.partition("/")
        if isinstance(item, h5py.Dataset) and layer != "normalize":
            variables.append(path)
        name = item.attrs.get("name")
        kind = re.sub(r"_\d+$", "", layer)
        if rest == "vars" and len(item) and name and not re.fullmatch(rf"{kind}(_\d+)?", name):
            layers.append(name)

    group.visititems(visit)
    return variables, layers
