"""Weights for the builders: what `weights=` means. The registry, weights.json, is data."""

import json
import os
import shutil
import warnings

import filelock
import h5py
import keras

from keras_sat import activations, extras, files
from keras_sat.models import classifier, release

REGISTRY = os.path.join(os.path.dirname(__file__), "weights.json")
HEAD = "linear"


def resolve(weights, architecture, activation, input_shape=None):
    """Returns what `weights=` of a builder means, before anything is built or fetched.

    Args:
        weights: None; a tag such as "sat-imagenet", "sat-imagenet-380" or "sat-fashion-mnist"; or the path of a
            `.weights.h5` file.
        architecture: name of the builder.
        activation: the one that was asked for.
        input_shape: (height, width, channels), or None for the weights' own.

    Returns:
        None, an entry of the registry, or the path.

    Raises:
        ValueError: if there are no such weights for this network, activation and input.
    """
    if weights is None:
        return None
    if not str(weights).startswith("sat-") or str(weights).endswith(".h5"):
        return _existing_file(files.expanded(weights))
    entry = find(architecture, activation, weights, input_shape and input_shape[0])
    if input_shape and input_shape[-1] != entry["channels"]:
        kind = {1: "grey images (1 channel)", 3: "RGB images (3 channels)"}[entry["channels"]]
        raise ValueError(f"The weights {entry['id']} take {kind}. Received input shape: {input_shape}")
    return entry


def shape_and_classes(entry):
    """Returns the input shape (height, width, channels) of an entry's network, and its number of classes."""
    return (entry["image_size"], entry["image_size"], entry["channels"]), entry["classes"]


def load(model, source, whole):
    """Loads what `resolve` returned into a model just built.

    Args:
        model: the keras.Model.
        source: None, an entry or a path.
        whole: builds the same network, with its head, for an input_shape and a number of classes.

    Raises:
        ValueError: if the weights cannot be had, or are damaged or of another network.
    """
    if isinstance(source, dict):
        path = fetch(source, whole)
        network = _network(source, whole)
        load_file(network, path)
        _copy(network, model)
    elif source is not None:
        load_file(model, source)


def _network(entry, whole):
    """Returns the untrained network of an entry, for images of any size."""
    return whole(input_shape=(None, None, entry["channels"]), classes=entry["classes"])


def entries():
    """Returns the entries of the registry: a list of dicts, with what all checkpoints of a release have in common."""
    with open(REGISTRY, encoding="utf-8") as file:
        releases = json.load(file).items()
    return [{"release": name, **release, **entry} for name, release in releases for entry in release["checkpoints"]]


def tags():
    """Returns the tags that `weights=` may be."""
    return sorted({entry["tag"] for entry in entries()})


def list_weights():
    """Returns the zoo, a list of dicts: tag, model, activation, image_size, parameters, clean, robust, under, source.

    Figures are percent: of "sat-imagenet" on ImageNet, as the authors report them; of "sat-fashion-mnist" as measured
    here (`weights.json` has their intervals). `under` says under which attack `robust` was measured.
    """
    rows = []
    for entry in entries():
        measured = {name: row["accuracy"] for name, row in (entry["measured"] or {}).items()}
        reported = dict(entry["reported"] or measured)
        row = {name: entry[name] for name in ("tag", "model", "activation", "image_size", "parameters")}
        row["clean"] = reported.pop("clean", None)
        under, row["robust"] = list(reported.items())[-1] if reported else (None, None)
        row["under"] = under and f"{under}, {entry['attack']}"
        rows.append(row | {"source": entry["source"]})
    return rows


def find(architecture, activation, tag, image_size=None):
    """Returns the registry's entry for a network; for the tag "sat-imagenet" that of `image_size`, if there is one.

    Raises:
        ValueError: if there is none, with those that there are.
    """
    released = [entry for entry in entries() if tag.startswith(entry["release"])]
    if not released:
        raise ValueError(f"There are no weights {tag!r}; there are {', '.join(tags())}.")
    of_network = [entry for entry in released if entry["model"] == architecture]
    if not of_network:
        known = sorted({entry["model"] for entry in released})
        raise ValueError(f"There are no weights {tag!r} for {architecture}; there are for {', '.join(known)}.")
    fitting = [entry for entry in of_network if _same_activation(entry["activation"], activation)]
    if not fitting:
        known = sorted({entry["activation"] for entry in of_network})
        raise ValueError(
            f"There are no weights {tag!r} for {architecture} with activation {activation!r}; there are for "
            f"{', '.join(known)}. Weights of another activation would not do."
        )
    for entry in fitting:
        if entry["image_size"] == image_size and entry["tag"] == f"{tag}-{image_size}":
            return entry
    for entry in fitting:
        if entry["tag"] == tag:
            return entry
    known = ", ".join(entry["tag"] for entry in fitting)
    raise ValueError(f"There are no weights {tag!r} for {architecture} with {activation!r}; there are {known}.")


def _same_activation(one, other):
    layers = [activations.layer(spec, "site") for spec in (one, other)]
    return type(layers[0]) is type(layers[1]) and layers[0].get_config() == layers[1].get_config()


def home():
    """Returns the folder of fetched weights: KERAS_SAT_HOME, or keras_sat in Keras' own folder."""
    keras_home = os.environ.get("KERAS_HOME", os.path.join("~", ".keras"))
    return os.path.expanduser(os.environ.get("KERAS_SAT_HOME", os.path.join(keras_home, "keras_sat")))


def fetch(entry, whole):
    """Returns the path of an entry's `.weights.h5`: on first use downloads, checks and converts the checkpoint.

    An entry with a `file` lies in the package; its sha256 is the registry's.

    Of several processes one fetches, the others wait. The file appears with its last byte; its sha256 lies beside it
    and is verified each time.
    """
    if "file" in entry:
        return _embedded(entry)
    path = os.path.join(home(), f"{entry['id']}.weights.h5")
    if os.path.exists(path) and _is_intact(path):  # it appears whole, and the folder may be read-only
        return path
    os.makedirs(home(), exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        if not _is_intact(path):
            _convert(entry, _network(entry, whole), path)
    return path


def _embedded(entry):
    path = os.path.join(os.path.dirname(__file__), *entry["file"].split("/"))
    if not os.path.exists(path) or files.sha256(path) != entry["sha256"]:
        raise ValueError(f"{path} is not the file that came with keras_sat: install the package again.")
    return path


def _is_intact(path):
    if not (os.path.exists(path) and os.path.exists(f"{path}.sha256")):
        return False
    with open(f"{path}.sha256", encoding="utf-8") as file:
        if file.read().strip() == files.sha256(path):
            return True
    warnings.warn(f"{path} was changed since it was fetched: fetching it again.", stacklevel=2)
    return False


def _convert(entry, model, path):
    folder = os.path.join(home(), f".fetching-{entry['id']}")  # under the lock: if it is there, its process was killed
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    try:
        for part, drive_id in entry["drive"].items():
            _download(f"{entry['id']}.{part}", drive_id, folder, (entry["sha256"] or {}).get(part))
        release.load(model, os.path.join(folder, entry["id"]), entry["ema"])
        with files.atomic_write(path) as temporary:
            model.save_weights(temporary)
        files.write_text(f"{path}.sha256", files.sha256(path) + "\n")
    finally:
        shutil.rmtree(folder)


def _download(name, drive_id, folder, sha256):
    """Downloads one file of a checkpoint into `folder`: from the mirror KERAS_SAT_WEIGHTS_URL, or from Google Drive."""
    mirror, path = os.environ.get("KERAS_SAT_WEIGHTS_URL"), os.path.join(folder, name)
    origin = f"{mirror.rstrip('/')}/{name}" if mirror else f"Google Drive, file {drive_id}"
    try:
        if mirror:
            keras.utils.get_file(name, origin, cache_dir=folder, cache_subdir="")
        else:
            _download_from_drive(drive_id, path)
    except ImportError:
        raise
    except Exception as error:  # Keras' downloader raises plain Exceptions
        raise ValueError(
            f"{name} could not be downloaded from {origin}: {' '.join(str(error).split())} KERAS_SAT_WEIGHTS_URL "
            "can name a folder of the files on another server."
        ) from error
    with open(path, "rb") as file:
        if file.read(1024).lstrip()[:1] == b"<":
            raise ValueError(f"{origin} sent a web page in place of the file {name}.")
    if sha256 and (found := files.sha256(path)) != sha256:
        raise ValueError(f"{name} from {origin} is not the file expected: its sha256 is {found}, not {sha256}.")


def _download_from_drive(drive_id, path):
    try:
        import gdown
    except ImportError as error:
        raise ImportError(
            f"The weights lie on Google Drive, which gdown downloads from: {extras.install('weights')}"
        ) from error
    gdown.download(id=drive_id, output=path)


def _copy(source, model):
    """Copies the weights of each layer of the network; a head of other classes stays new."""
    twins = {layer.name: layer for layer in source.layers if layer.weights}
    for layer in model.layers:
        twin = twins.get(layer.name)
        if layer.name == HEAD and layer.units != twin.units:
            message = f"The head of {model.name} is new: the weights have {twin.units} classes, not {layer.units}."
            warnings.warn(message, stacklevel=4)
        elif twin:
            classifier.set_weights(layer, twin.get_weights())


def _existing_file(path):
    if not path.endswith(".weights.h5"):
        raise ValueError(
            f"weights must be None, one of {', '.join(tags())}, or the path of a .weights.h5 file. Received: {path!r}"
        )
    if not os.path.isfile(path):
        raise ValueError(f"There is no weights file at {path}")
    return path


def load_file(model, path):
    """Loads a `.weights.h5` file.

    Raises:
        ValueError: if there is none, or if it is damaged, of another network, or holds more than this network has.
    """
    path = _existing_file(files.expanded(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras only warns of layers that the file does not have
            model.load_weights(path)
        _check_nothing_is_left(model, path)
    except (ValueError, OSError, KeyError, UserWarning) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} is damaged or does not fit {model.name}: was it saved with the same network, activation, classes "
            f"and channels? ({reason})"
        ) from error


def _check_nothing_is_left(model, path):
    """Raises ValueError for a file of more variables than the model's layers have, which Keras would not tell."""
    found = []
    with h5py.File(path) as file:
        file["layers"].visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    found = [name for name in found if "seed_generator" not in name]
    number = sum(len(layer.weights) for layer in model.layers)
    if len(found) != number:
        raise ValueError(f"it holds {len(found)} variables, of which the network has {number}")
