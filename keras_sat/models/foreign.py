"""Says what a file or folder of weights is, by its contents, and how a network of this package gets these weights."""

import glob
import json
import os
import shlex
import struct
import zipfile
from typing import Any

import h5py
import tensorflow as tf

from keras_sat import files
from keras_sat.typing import Path

WEIGHTS, PYTORCH, BUNDLE, RUN = "weights", "pytorch", "bundle", "run"
KERAS, KERAS_2_MODEL, KERAS_2_WEIGHTS, OTHER_HDF5, DAMAGED_HDF5 = "keras", "h5 model", "h5 weights", "hdf5", "damaged"
CHECKPOINT, KERAS_2_CHECKPOINT, SAVED_MODEL, FOLDER = "checkpoint", "old checkpoint", "saved_model", "folder"
LITERT, WEB_PAGE, GIT_LFS, ARCHIVE, EMPTY, UNKNOWN = "litert", "web page", "git-lfs", "archive", "empty", "unknown"

_CONVERT = "keras-sat convert --from={quoted} {flags} --to=model.weights.h5"
_SAVE = 'model.save_weights("model.weights.h5") writes what this network loads, if the layers are the same'
_ADVICE = {
    WEIGHTS: "holds weights of Keras 3, but its name must end in .weights.h5: rename it.",
    PYTORCH: f"is a file of PyTorch: {_CONVERT}",
    BUNDLE: f"is a checkpoint of TensorFlow 1, as of the SAT release: {_CONVERT}",
    RUN: 'is the folder of a run: load its model.weights.h5, or call keras_sat.run.load("{path}").',
    KERAS: f'is a whole model: after model = keras.saving.load_model("{{path}}"), {_SAVE}.',
    KERAS_2_MODEL: f'is a whole model in the format of Keras 2: after model = keras.saving.load_model("{{path}}"), '
    f"{_SAVE}.",
    KERAS_2_WEIGHTS: 'holds weights in the format of Keras 2: after model.load_weights("{path}") into a network of the '
    f"same layers in the same order, {_SAVE}.",
    CHECKPOINT: "is a checkpoint of objects: build the network that was saved as model, call "
    'tf.train.Checkpoint(model=model).read("{path}").assert_existing_objects_matched() with the names of the '
    f"arguments as they were, and {_SAVE}.",
    KERAS_2_CHECKPOINT: "is a checkpoint of Keras 2, which Keras 3 cannot read: with Keras 2, "
    'model.load_weights("{path}") and model.save_weights("model.h5"); with Keras 3, model.load_weights("model.h5") and '
    'model.save_weights("model.weights.h5").',
    SAVED_MODEL: 'is a SavedModel, not a file of weights: keras_sat.export.load_for_fine_tuning("{path}") returns the '
    "network if `keras-sat export` wrote it; `keras-sat evaluate {quoted}` evaluates any.",
    FOLDER: "is a folder, not a file of weights.",
    OTHER_HDF5: "is an HDF5 file, but holds no weights of Keras.",
    DAMAGED_HDF5: "is damaged: an HDF5 file that cannot be read, perhaps cut short. Copy it again.",
    LITERT: "is a LiteRT file, whose weights are rounded: `keras-sat evaluate {quoted}` evaluates it.",
    WEB_PAGE: "is damaged: a web page, not a file of weights. Download the file itself.",
    GIT_LFS: "is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`.",
    ARCHIVE: "is an archive, not a file of weights: extract it first.",
    EMPTY: "is damaged: an empty file.",
    UNKNOWN: "is damaged, or of an unknown kind: it is no .weights.h5 file.",
}


def advice(path: Path, flags: str = "--model=MODEL --form=FORM --activation=ACTIVATION") -> str:
    """Returns one line: what a path is, and how a network gets the weights in it.

    Args:
        path: an existing file or folder, or the prefix of a TensorFlow checkpoint. See `kind`.
        flags: the flags of `keras-sat convert` that name the network; see `network_flags`. Words in capitals stand for
            what is not known.
    """
    path = prefix(path)
    text = _ADVICE[kind(path)]
    return f"{path} " + text.format(path=path, quoted=shlex.quote(path), flags=flags)


def network_flags(architecture: str, activation: Any, form: str | None = None) -> str:
    """Returns the flags that name a network in a command; words in capitals stand for what is not known."""
    # The forms "sat" are not published in PyTorch, so that such a file is of another form.
    given = {"model": architecture, "form": "FORM" if form in (None, "sat") else form}
    is_plain = isinstance(activation, (str, dict))
    text = json.dumps(activation) if isinstance(activation, dict) else activation
    given["activation"] = text if is_plain else "ACTIVATION"
    return shlex.join(f"--{name}={value}" for name, value in given.items())


def exists(path: Path) -> bool:
    """Returns whether there is a file, a folder, or a TensorFlow checkpoint with this prefix."""
    path = prefix(path)
    return os.path.exists(path) or os.path.exists(f"{path}.index")


def prefix(path: Path) -> str:
    """Returns the path; for a file of a TensorFlow checkpoint, PREFIX.index or PREFIX.data-..., the prefix."""
    path = files.expanded(path)
    stem, _, _ = path.rpartition(".data-")
    for start in (path.removesuffix(".index"), stem):
        if start not in ("", path) and os.path.isfile(f"{start}.index") and glob.glob(f"{glob.escape(start)}.data-*"):
            return start
    return path


def kind(path: Path) -> str:
    """Returns what a path is, one of the constants of this module. A file is judged by its first bytes.

    Args:
        path: a file, a folder, or the prefix of a TensorFlow checkpoint.

    Raises:
        OSError: if there is nothing, or it cannot be read.
    """
    path = prefix(path)
    if os.path.isdir(path):
        return _kind_of_folder(path)
    if not os.path.exists(path) and os.path.isfile(f"{path}.index"):
        return _kind_of_checkpoint(path)
    with open(path, "rb") as file:
        head = file.read(512)
    return _kind_of_file(path, head)


def _kind_of_folder(path):
    if os.path.isfile(os.path.join(path, "saved_model.pb")):
        return SAVED_MODEL
    return RUN if os.path.isfile(os.path.join(path, "run.json")) else FOLDER


def _kind_of_checkpoint(path):
    try:
        names = [name for name, _ in tf.train.list_variables(path)]
    except (tf.errors.OpError, ValueError):
        return UNKNOWN
    if "_CHECKPOINTABLE_OBJECT_GRAPH" not in names:
        return BUNDLE
    return KERAS_2_CHECKPOINT if any("layer_with_weights-" in name for name in names) else CHECKPOINT


def _kind_of_file(path, head):
    text = head.lstrip().lower()
    if not head:
        return EMPTY
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _kind_of_hdf5(path)
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return WEB_PAGE
    if head.startswith(b"version https://git-lfs"):
        return GIT_LFS
    if head[4:8] == b"TFL3":
        return LITERT
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or head[257:262] == b"ustar":
        return ARCHIVE
    is_pickle = head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")  # torch.save before PyTorch 1.6
    is_safetensors = head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < os.path.getsize(path)
    return PYTORCH if is_pickle or is_safetensors else UNKNOWN


def _kind_of_hdf5(path):
    try:
        with h5py.File(path) as file:
            if "layers" in file:
                return WEIGHTS
            if "model_weights" in file:
                return KERAS_2_MODEL
            return KERAS_2_WEIGHTS if "layer_names" in file.attrs else OTHER_HDF5
    except OSError:
        return DAMAGED_HDF5


def _kind_of_zip(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return PYTORCH if path.endswith((".pt", ".pth", ".tar", ".bin", ".ckpt")) else UNKNOWN
    if "config.json" in names and "model.weights.h5" in names:
        return KERAS
    return PYTORCH if any(name.endswith("/data.pkl") for name in names) else ARCHIVE
