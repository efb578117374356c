"""Weights to begin a training with: of the zoo, of a run, of an export or of a file, and the network that gets them."""

import concurrent.futures
import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_sat import data, deployed, export, files, models, provenance
from keras_sat.attacks import agreement
from keras_sat.models import classifier, foreign, normalization
from keras_sat.models import weights as weights_lib
from keras_sat.typing import LogitsFunction, Path

MODEL, ACTIVATION = "ResNet8", "silu"  # the defaults of `Run`, where weights do not say their own
_FILES_OF_RUN = ("model.weights.h5", "last.weights.h5", "best.weights.h5")
TAG = "tag"  # the kind of weights that are named by a tag; the kinds of paths are those of `models.foreign`
_SHOWN = 5  # names of classes in a line


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Trained weights and what is known of their network. `find` returns it.

    Attributes:
        model, form, activation, normalization: the network, as plain values; see `Run`. `normalization` is None for the
            published one of the form.
        channels: number of channels of its images: 1 (grey) or 3 (RGB).
        image_size: height and width of the images that it was trained on, in pixels; None if unknown or different.
        classes: names of its classes, in the order of its logits; None if they are unknown.
        number: number of its classes.
        source: where the weights are: a tag, or an absolute path.
        kind: what `source` is: "tag", or a constant of `models.foreign`: RUN, SAVED_MODEL, WEIGHTS or KERAS.
        run: the folder of the run that trained the weights, an absolute path; None if it is unknown.
    """

    model: str
    form: str
    activation: str | dict
    normalization: str | list | None
    channels: int
    image_size: int | None
    classes: list[str] | None
    number: int
    source: str
    kind: str
    run: str | None = None

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of the weights: the `weights_sha256` of reports and robustness cards. It loads the weights."""
        return str(provenance.weights_sha256(self.network()))

    def channels_for(self, images: int) -> int:
        """Returns the number of channels in which images must be loaded for these weights.

        Grey images are loaded as RGB, with three equal channels, for weights that take RGB.

        Args:
            images: number of channels of the images, 1 or 3.

        Raises:
            ValueError: for RGB images and weights that take grey images.
        """
        if images > self.channels:
            raise ValueError(
                f"The weights {self.source} take grey images, these are RGB: --channels=1 loads them as grey."
            )
        return self.channels

    def network(self) -> keras.Model:
        """Returns the network as it was trained, with its own classes, for images of any size.

        A tag is downloaded on first use. The network of an export or of a `.keras` file is rebuilt, and compared with
        what the file computes. It is a float32 network of one device, also inside the scope of a strategy.

        Raises:
            ValueError: if the weights cannot be loaded, or do not fit the network.
        """
        # A strategy's scope and Keras' dtype policy belong to a thread: a new thread has neither. In a scope,
        # TensorFlow could not call a SavedModel.
        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(_LOAD[self.kind], self).result()

    def build(
        self, input_shape: tuple[int, int, int], classes: list[str], images_channels: int | None = None
    ) -> tuple[keras.Model, list[str]]:
        """Returns a network that begins with these weights, for other images and classes.

        The last layer is kept if the weights have the same classes, by their names: its outputs are put into the order
        of `classes`. It is also kept if the weights do not name their classes, but have as many. Otherwise, it is new,
        with random weights. The network is compared with the one of the weights: its logits if the last layer is kept,
        otherwise the input of the last layer.

        Args:
            input_shape: (height, width, channels) of the images. The channels must be those of the weights: see
                `channels_for`. The size may differ from that of the weights.
            classes: names of the classes, in the order of the labels.
            images_channels: number of channels of the images in their files, for the lines. Default: that of
                `input_shape`.

        Returns:
            The keras.Model, in Keras' present dtype policy, and lines of text that say what was done.

        Raises:
            ValueError: see `network`; or for other channels; or if the comparison fails.
        """
        if len(input_shape) != 3:
            raise ValueError(f"input_shape must be (height, width, channels). Received: {input_shape!r}")
        if not isinstance(classes, (list, tuple)):
            raise ValueError(f"classes must be the names of the classes, one a class. Received: {classes!r}")
        if self.channels_for(input_shape[-1]) != input_shape[-1]:
            raise ValueError(
                f"The weights {self.source} take RGB images, 3 channels: load grey images with --channels=3."
            )
        order = self._order(classes)
        original, network = self.network(), _build(self, tuple(input_shape), len(classes))
        _copy(original, network, order)
        _compare_parts(self, original, network, order)
        return network, self._lines(input_shape, classes, order, images_channels)

    def _order(self, classes):
        """Returns the class of the weights for each of `classes`, as a number; None if the last layer must be new."""
        if self.classes is None:
            return list(range(self.number)) if len(classes) == self.number else None
        own, wanted = ([letters(name) for name in names] for names in (self.classes, classes))
        if len(set(own)) < len(own):  # the letters do not tell them apart
            own, wanted = self.classes, classes
        return [own.index(name) for name in wanted] if sorted(own) == sorted(wanted) else None

    def _lines(self, input_shape, classes, order, images_channels):
        network = f"{self.model} ({self.form}, {activation_name(self.activation)})"
        lines = [f"Training begins with the weights {self.source}: {network}."]
        if order is None:
            own = f"{self.number} classes ({_some(self.classes)})" if self.classes else f"{self.number} classes"
            lines.append(f"The last layer is new: the weights have {own}, the data {len(classes)} ({_some(classes)}).")
        elif self.classes is None:
            lines.append(
                f"The last layer is kept: the weights have as many classes as the data, {self.number}, but do not name "
                f"them. They are assumed to be those of the data, in their order, {_some(classes)}."
            )
        else:
            moved = "" if order == list(range(self.number)) else "; its outputs are put into the order of the data"
            lines.append(f"The last layer is kept: the weights have the {self.number} classes of the data{moved}.")
        size = self.image_size
        if size and (size, size) != tuple(input_shape[:2]):
            now = " x ".join(map(str, input_shape[:2]))
            lines.append(f"The weights were trained on images of {size} x {size} pixels; these are {now}.")
        if images_channels not in (None, self.channels):
            what = "RGB: grey images get three equal channels" if self.channels == 3 else "grey: RGB images become grey"
            lines.append(f"The weights take images in {what}.")
        return lines


def find(
    weights: Path,
    model: str | None = None,
    form: str | None = None,
    activation: str | dict | None = None,
    normalization: str | list | None = None,
) -> Pretrained:
    """Returns what is known of trained weights. It downloads nothing.

    Args:
        weights: a tag of the zoo such as "sat-fashion-mnist" (see `models.list_weights`); the folder of a run; the
            folder that `keras-sat export` wrote; or a `.weights.h5` or `.keras` file. Of a file in the folder of a run,
            such as last.weights.h5, the run says what is known.
        model: name of the network. Default: that of the weights; of a file, or of a tag with several networks, ResNet8.
        form: see `models.build`. Default: that of the weights; of a file, the first one of the network.
        activation: see `activations.layer`. Default: that of the weights; of a file, or of a tag with several
            activations, "silu".
        normalization: see `models.build`. Default: that of the weights; of a file, the published one.

    Raises:
        ValueError: if there are no such weights, they are of an unknown kind or damaged, they do not say their network,
            or a given argument is not that of the weights.
    """
    given = {"model": model, "form": form, "activation": activation, "normalization": normalization}
    if weights_lib.is_tag(weights):
        return _of_tag(str(weights), given)
    path = os.path.abspath(files.expanded(weights))
    if not os.path.exists(path):
        raise ValueError(
            f"There are no weights {os.fspath(weights)!r}: a tag ({weights_lib.shown_tags()}), the folder of a run or "
            "of an export, or a .weights.h5 or .keras file was expected."
        )
    kind = foreign.kind(path)
    if kind not in _FIND or (kind == foreign.WEIGHTS and not path.endswith(".weights.h5")):
        raise ValueError(advice(path))
    return _FIND[kind](path, given)


def says_network(weights: str | None) -> bool:
    """Returns whether weights say their own network: a run, a file of its folder, an export, a tag of one network."""
    if weights is None:
        return False
    if weights_lib.is_tag(weights):
        known = _entries_of(weights)
        return len({json.dumps([entry["model"], entry["activation"]], sort_keys=True) for entry in known}) == 1
    path = os.path.abspath(files.expanded(weights))
    if not os.path.exists(path):
        return False
    return _is_of_run(path) or foreign.kind(path) in (foreign.RUN, foreign.SAVED_MODEL)


def _is_of_run(path):
    """Returns whether a path is a file of weights in the folder of a run."""
    folder, name = os.path.split(path)
    return name in _FILES_OF_RUN and os.path.isfile(os.path.join(folder, "run.json"))


def advice(path: str) -> str:
    """Returns one line about a path that holds no weights which a training can begin with, and what to say instead."""
    folder = os.path.dirname(path)
    if os.path.isfile(path) and os.path.isfile(os.path.join(folder, "run.json")):
        return f"{path} is a file of a run: say the folder of the run, {folder}. It stands for model.weights.h5."
    return f"{path} is no SavedModel.{inside(path)}" if inside(path) else foreign.advice(path)


def inside(folder: str) -> str:
    """Returns which export a folder holds, as a sentence with a space before; "" if it holds none."""
    if not os.path.isdir(folder):
        return ""
    folders = [entry.path for entry in os.scandir(folder) if entry.is_dir()]
    exports = [path for path in folders if foreign.kind(path) == foreign.SAVED_MODEL]
    return f" It holds an export: say {max(exports, key=lambda path: (len(path), path))}." if exports else ""


def pretrained_network(
    weights: Path,
    input_shape: tuple[int, int, int],
    classes: list[str],
    *,
    say: Callable[[str], object] = print,
    **given: Any,
) -> keras.Model:
    """Returns a network that begins with trained weights, for other images and classes.

        described = data.describe("photos", image_size=64)
        model = pretrained_network("runs/robust", described.preprocessing.shape, described.classes)

    Args:
        weights: see `find`.
        input_shape: see `Pretrained.build`.
        classes: see `Pretrained.build`.
        say: a function that is called with lines of text, which say what was done. Default: print.
        given: the arguments `model`, `form`, `activation` and `normalization` of `find`.

    Raises:
        ValueError: see `find` and `Pretrained.build`.
    """
    network, lines = find(weights, **given).build(input_shape, classes)
    for line in lines:
        say(line)
    return network


def letters(name: str) -> str:
    """Returns the letters and digits of a class name: "T-shirt/top" and the folder "T-shirt_top" are the same class."""
    return re.sub(r"[\W_]", "", name.casefold()) or name


def _entries_of(tag):
    """Returns the entries of the registry with a tag, or with this identifier."""
    return [entry for entry in weights_lib.entries() if tag in (entry["tag"], entry["id"])]


def _of_tag(tag, given):
    known = _entries_of(tag)
    model = given["model"] or _only({entry["model"] for entry in known}, MODEL)
    own = {json.dumps(entry["activation"], sort_keys=True) for entry in known if entry["model"] == model}
    activation = given["activation"] or json.loads(_only(own, json.dumps(ACTIVATION)))
    asked = given["normalization"] or normalization.PUBLISHED
    entry = weights_lib.find(model, activation, tag, None, given["form"], None if asked == "none" else asked)
    published = entry["evaluation"]["dataset"]
    return Pretrained(
        model=model,
        form=weights_lib.form_of(entry),
        activation=entry["activation"],
        normalization=(entry["normalization"] or "none") if "normalization" in entry else None,
        channels=entry["channels"],
        image_size=entry["image_size"],
        classes=data.class_names(published) if published in data.names() else None,
        number=entry["classes"],
        source=tag,
        kind=TAG,
    )


def _only(values, default):
    """Returns the only one of some values, or a default if there are several, or none."""
    return next(iter(values)) if len(values) == 1 else default


def _of_run(path, given, weights=None):
    """Returns what is known of a run's weights: of `weights`, a file in its folder, or of those that are kept."""
    file = os.path.join(path, "run.json")
    try:
        with open(file, encoding="utf-8") as text:
            record = json.load(text)
        described = data.Description.of(record["data"]) if "data" in record else None
        defaults = {"model": MODEL, "form": None, "activation": ACTIVATION, "normalization": None}
        own = {name: record.get(name, default) for name, default in defaults.items()}  # an old run.json lacks some
        own["form"] = own["form"] or models.builder(own["model"]).form
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__}: {error}") from error
    kept = _weights_of_run(path)
    if not os.path.isfile(weights or kept):
        raise ValueError(f"{path} holds a run without weights yet: {kept} is missing.")
    channels, number = channels_and_classes(weights or kept, own)
    _check_given(path, own, given, channels)
    return Pretrained(
        **own,
        channels=described.preprocessing.channels if described else channels,
        image_size=_square(described.preprocessing.shape) if described else record.get("image_size"),
        classes=described.classes if described else None,
        number=number,
        source=weights or path,
        kind=foreign.WEIGHTS if weights else foreign.RUN,
        run=path,
    )


def _weights_of_run(path):
    return os.path.join(path, "model.weights.h5")


def _of_export(path, given):
    file = os.path.join(path, export.saved_model.CARD)
    try:
        with open(file, encoding="utf-8") as text:
            card = json.load(text)
        network, images = card["network"], card["images"]
        own = {"model": network["name"], **{name: network[name] for name in ("form", "activation", "normalization")}}
        shape = tuple(images[name] for name in ("height", "width", "channels"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not say its network ({export.saved_model.CARD}), as what `keras-sat export` writes does: "
            "keras_sat.export.load_for_fine_tuning(path) returns it as a Keras model."
        ) from error
    _check_given(path, own, given, shape[-1])
    return Pretrained(
        **own,
        channels=shape[-1],
        image_size=_square(shape),
        classes=deployed.labels_of(path),
        number=card["classes"],
        source=path,
        kind=foreign.SAVED_MODEL,
    )


def _of_file(path, given):
    if _is_of_run(path):
        return _of_run(os.path.dirname(path), given, path)
    own = _of_file_or_default(given)
    channels, number = channels_and_classes(path, own)
    return Pretrained(
        **own, channels=channels, image_size=None, classes=None, number=number, source=path, kind=foreign.WEIGHTS
    )


def _of_keras(path, given):
    network = _load_keras(path)
    if getattr(network, "inputs", None) is None or len(network.inputs[0].shape) != 4:
        raise ValueError(f"{path} holds no classifier of images: {network.name}.")
    shape = network.inputs[0].shape[1:]
    return Pretrained(
        **_of_file_or_default(given),
        channels=shape[-1],
        image_size=_square(shape),
        classes=None,
        number=network.outputs[0].shape[-1],
        source=path,
        kind=foreign.KERAS,
    )


def _load_keras(path):
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # a layer that Keras does not know may raise any exception
        raise ValueError(f"{path} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def _of_file_or_default(given):
    """Returns the network of a file: it does not say its own."""
    model = given["model"] or MODEL
    models.check_variant(model, given["form"], given["normalization"])
    return {
        "model": model,
        "form": given["form"] or models.builder(model).form,
        "activation": given["activation"] or ACTIVATION,
        "normalization": given["normalization"],
    }


def channels_and_classes(path: str, own: dict[str, Any]) -> tuple[int, int]:
    """Returns the number of channels and of classes of the network in a `.weights.h5` file.

    Args:
        path: the file.
        own: the network: a dict of "model" and "form".

    Raises:
        ValueError: if the file does not show them: it is damaged, or of another network.
    """
    head = models.builder(own["model"]).forms[own["form"]].head
    channels, number = weights_lib.channels_and_classes(path, head)
    if channels is None or number is None:
        raise ValueError(
            f"{path} is damaged or not of {own['model']} in the form {own['form']}: it has no first convolution of "
            f"images or no last dense layer {head}. {_networks()}"
        )
    return channels, number


def _networks():
    return f"Say which network it is of: --model (one of {', '.join(models.BUILDERS)}), --form and --activation."


def _check_given(source, own, given, channels):
    """Raises ValueError if an argument is given that is not that of the weights."""
    for name, value in given.items():
        if value is not None and not _SAME.get(name, _same)(value, own[name], own, channels):
            raise ValueError(
                f"The network of the weights {source} has {name} {own[name]!r}: leave out {name}. Received: {value!r}"
            )


def _same(one, other, own, channels):
    return one == other


def _same_activation(one, other, own, channels):
    return weights_lib.same_activation(one, other)


def _same_normalization(one, other, own, channels):
    published = models.builder(own["model"]).forms[own["form"]].normalization
    meanings = {None: published, normalization.PUBLISHED: published, "none": None}

    def statistics(value):
        is_name = value is None or isinstance(value, str)
        return normalization.statistics(meanings.get(value, value) if is_name else value, channels)

    return all(map(normalization.same, statistics(one), statistics(other)))


_SAME = {"activation": _same_activation, "normalization": _same_normalization}
_FIND = {
    foreign.RUN: _of_run,
    foreign.SAVED_MODEL: _of_export,
    foreign.WEIGHTS: _of_file,
    foreign.KERAS: _of_keras,
}


def _build(pretrained, shape, classes, normalization_=None, **options):
    """Returns a new network of the weights' kind."""
    return models.build(
        pretrained.model,
        pretrained.form,
        normalization_ or pretrained.normalization or normalization.PUBLISHED,
        activation=pretrained.activation,
        input_shape=shape,
        classes=classes,
        **options,
    )


def _of_its_own(pretrained, **options):
    """Returns a new network for the channels and classes of the weights, and images of any size."""
    return _build(pretrained, (None, None, pretrained.channels), pretrained.number, **options)


def _load_tag(pretrained):
    return _of_its_own(pretrained, normalization_=normalization.PUBLISHED, weights=pretrained.source)


def _load_run(pretrained):
    network = _of_its_own(pretrained)
    weights_lib.load_file(network, _weights_of_run(pretrained.source))
    return network


def _load_file(pretrained):
    network = _of_its_own(pretrained)
    try:
        weights_lib.load_file(network, pretrained.source)
    except ValueError as error:
        raise ValueError(f"{error} {_networks()}") from error
    return network


def _load_as(read):
    """Returns a function that loads what `read` returns as a Keras model into a network of this package."""

    def load(pretrained):
        theirs, network = read(pretrained.source), _of_its_own(pretrained)
        try:
            classifier.set_weights(network, theirs.get_weights())
        except ValueError as error:
            reason = weights_lib.reason(error)
            raise ValueError(f"{pretrained.source} does not fit {network.name} ({reason}). {_networks()}") from error
        _compare(pretrained.source, theirs, network, theirs.inputs[0].shape[1:], theirs, network)
        return network

    return load


_LOAD = {
    TAG: _load_tag,
    foreign.RUN: _load_run,
    foreign.SAVED_MODEL: _load_as(export.load_for_fine_tuning),
    foreign.WEIGHTS: _load_file,
    foreign.KERAS: _load_as(_load_keras),
}


def _copy(original, network, order):
    """Copies the weights of a network; of the last layer the outputs of the classes in `order`, or nothing."""
    ours, theirs = (classifier.features(model) for model in (network, original))
    classifier.set_weights(ours, theirs.get_weights())
    if order is not None:
        kernel, bias = classifier.output_layer(original).get_weights()
        classifier.output_layer(network).set_weights([kernel[:, order], bias[order]])


def _compare_parts(pretrained, original, network, order):
    shape = network.inputs[0].shape[1:]
    if order is None:
        parts = classifier.features(original), classifier.features(network)
    else:
        parts = (lambda images: tf.gather(original(images, training=False), order, axis=1)), network
    _compare(pretrained.source, original, network, shape, *parts)


def _compare(
    source: str,
    one: keras.Model,
    other: keras.Model,
    shape: tuple[int | None, ...],
    original: LogitsFunction,
    copy: LogitsFunction,
) -> None:
    """Raises ValueError unless two networks, or the given parts of them, compute the same for images of a shape."""
    images = classifier.some_inputs(other, shape)
    images = None if images is None else agreement.comparable(original, images)
    tolerance = agreement.LOW if any(map(classifier.computes_low, (one, other))) else agreement.EXACT
    difference = None if images is None else agreement.difference(original, copy, images, tolerance)
    if difference:
        raise ValueError(
            f"The weights {source} do not compute the same in the network {other.name}: it has {difference}."
        )


def _square(shape):
    """Returns the side of square images; None if height and width differ or are not fixed."""
    return shape[0] if shape[0] == shape[1] else None


def _some(names):
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def activation_name(activation: str | dict) -> str:
    """Returns the name of an activation that is a name, or a dict with a name."""
    return activation["name"] if isinstance(activation, dict) else activation
