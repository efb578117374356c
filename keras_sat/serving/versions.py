"""The versions of a model: folders PATH/1, PATH/2, ..., of which the newest is served."""

import os
import re
import threading

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import get_model_status_pb2, prediction_log_pb2

from keras_sat import files
from keras_sat.serving import predict
from keras_sat.serving.status import Status, failure

State = get_model_status_pb2.ModelVersionStatus.State
_GRAPH = "saved_model.pb"
_NUMBER = re.compile(r"(?a)\s*([+-]?)0*(\d{1,19})\s*")
_WARMUP = os.path.join("assets.extra", "tf_serving_warmup_requests")


def version_number(name):
    """Returns the int64 that a name stands for, or None.

    As absl::SimpleAtoi (strings/numbers.cc): ASCII digits with or without a sign, white space around them.
    """
    match = _NUMBER.fullmatch(name)
    value = int(match[1] + match[2]) if match else None
    return value if match and -(2**63) <= value < 2**63 else None


class Servable:
    """One loaded version."""

    def __init__(self, path, name, version):
        self.name, self.version = name, version
        with files.without_wildcards(path) as plain:
            self._loaded = tf.saved_model.load(plain)  # kept: signatures alone do not keep the variables
        self.signatures = self._loaded.signatures
        saved = saved_model_pb2.SavedModel()
        with open(os.path.join(path, _GRAPH), "rb") as file:
            saved.ParseFromString(file.read())
        (graph,) = [graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags]
        self.signature_defs = dict(graph.signature_def)
        self._warm_up(os.path.join(path, _WARMUP))

    def _warm_up(self, path):
        if os.path.exists(path):
            for record in tf.data.TFRecordDataset(path):
                log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
                predict.run(self, log.predict_log.request)


class Versions:
    """Serves the newest version of a model while its folder is watched.

    A new version is loaded and warmed up beside the one in service, then takes its place; requests that run keep the
    version that they began with. A version that cannot be loaded (half copied, say) leaves the one in service, and is
    tried again when its files change.

    Args:
        path: folder of version folders, or of one SavedModel, which is served as version 1; `~` is one's home.
        name: of the model.
        poll: seconds between two looks at the folder.

    Raises:
        ValueError: if there is no version that can be loaded.
    """

    def __init__(self, path, name, poll=1.0):
        self.path, self.name, self.poll = files.expanded(path), name, poll
        self._current = None
        self._states = {}  # version -> (state, message)
        self._failed = {}  # version -> what its files were
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)
        self.refresh()
        if self._current is None:
            reasons = "; ".join(f"version {number}: {text}" for number, (_, text) in self._states.items())
            raise ValueError(reasons or f"{path} holds no SavedModel, nor version folders such as {path}/1.")
        self._thread.start()

    def get(self, spec):
        """Returns the servable that a ModelSpec asks for.

        Raises:
            Status: NOT_FOUND for another name or version, INVALID_ARGUMENT for a label (server_core.cc).
        """
        current = self._current
        if not spec.name:
            raise Status("INVALID_ARGUMENT", "ModelSpec has no name specified.")
        if spec.WhichOneof("version_choice") == "version_label":
            raise Status("INVALID_ARGUMENT", f"Unrecognized servable version label: {spec.version_label}")
        if spec.HasField("version"):
            if spec.name != self.name or spec.version.value != current.version:
                raise Status(
                    "NOT_FOUND", f"Servable not found for request: Specific({spec.name}, {spec.version.value})"
                )
        elif spec.name != self.name:
            raise Status("NOT_FOUND", f"Servable not found for request: Latest({spec.name})")
        return current

    def status(self, spec):
        """Returns the GetModelStatusResponse to a ModelSpec."""
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, (state, message) in sorted(self._states.items(), reverse=True):
            if spec.name == self.name and (not spec.HasField("version") or spec.version.value == version):
                one = response.model_version_status.add(version=version, state=state)
                one.status.error_code = 2 if message else 0  # UNKNOWN or OK
                one.status.error_message = message
        if not response.model_version_status:
            which = f"version {spec.version.value}" if spec.HasField("version") else "any versions"
            raise Status("NOT_FOUND", f"Could not find {which} of model {spec.name}")
        return response

    def refresh(self):
        """Loads the newest version, if it is not the one in service."""
        for version, folder in sorted(self._folders().items(), reverse=True):
            if self._current is not None and version == self._current.version:
                return
            files = _files(folder)
            if self._failed.get(version) != files and self._load(version, folder):
                return
            self._failed[version] = files

    def close(self):
        """Stops watching."""
        self._stop.set()
        self._thread.join()

    def _folders(self):
        if os.path.exists(os.path.join(self.path, _GRAPH)):
            return {1: self.path}
        try:
            names = sorted(os.listdir(self.path))
        except OSError:
            return {}
        # file_system_storage_path_source.cc: of two names of one number ("007" and "7"), the last is taken.
        found = {version_number(name): os.path.join(self.path, name) for name in names}
        return {version: folder for version, folder in found.items() if version is not None}

    def _load(self, version, folder):
        self._states[version] = (State.LOADING, "")
        try:
            servable = Servable(folder, self.name, version)
        except Exception as error:  # whatever the files hold, the version in service stays
            self._states[version] = (State.END, f"{type(error).__name__}: {failure(error).message}")
            return False
        before, self._current = self._current, servable
        self._states[version] = (State.AVAILABLE, "")
        if before is not None:
            self._states[before.version] = (State.END, "")
        return True

    def _watch(self):
        while not self._stop.wait(self.poll):
            self.refresh()


def _files(folder):
    """Returns names, sizes and times of the files below a folder."""
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                about = os.stat(os.path.join(place, name))
            except OSError:  # gone meanwhile
                continue
            found.append((place, name, about.st_size, about.st_mtime_ns))
    return sorted(found)
