"""Loads the versions of a model (the folders PATH/1, PATH/2, ...) and serves the newest one."""

import os
import re
import threading

from tensorflow_serving.apis import get_model_status_pb2, model_pb2

from keras_sat import files
from keras_sat.serving.servable import GRAPH, Servable
from keras_sat.serving.status import Status, failure
from keras_sat.typing import Path

State = get_model_status_pb2.ModelVersionStatus.State
_NUMBER = re.compile(r"(?a)\s*([+-]?)0*(\d{1,19})\s*")


def version_number(name: str) -> int | None:
    """Converts the name of a folder to a version number, an int64; returns None if it is not a number.

    The rules are those of absl::SimpleAtoi (strings/numbers.cc): ASCII digits with an optional sign, and optional white
    space around them.
    """
    match = _NUMBER.fullmatch(name)
    if match is None:
        return None
    value = int(match[1] + match[2])
    return value if -(2**63) <= value < 2**63 else None


class Versions:
    """Serves the newest version of a model, and watches its folder for new versions.

    A new version is loaded and warmed up while the old one is still served, and then replaces it. Running requests
    finish with the version with which they began. If a version cannot be loaded (for example because it is not yet
    copied completely), the old one stays in service, and the new one is tried again when its files change.

    Args:
        path: a folder of version folders, or the folder of one SavedModel, which is served as version 1. "~" is the
            home folder.
        name: name of the model.
        poll: seconds between two checks of the folder. Default: 1.

    Raises:
        ValueError: if no version can be loaded.
    """

    def __init__(self, path: Path, name: str, poll: float = 1.0) -> None:
        self.path, self.name, self.poll = files.expanded(path), name, poll
        self._current: Servable | None = None
        self._states: dict[int, tuple[int, str]] = {}  # version -> (state, error message)
        self._failed: dict[int, list] = {}  # version -> its files when it could not be loaded
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)
        self.refresh()
        if self._current is None:
            reasons = "; ".join(f"version {number}: {text}" for number, (_, text) in self._states.items())
            raise ValueError(reasons or f"{path} holds no SavedModel, nor version folders such as {path}/1.")
        self._thread.start()

    def get(self, spec: model_pb2.ModelSpec) -> Servable:
        """Returns the loaded version that a request asks for.

        Raises:
            Status: NOT_FOUND for another model name or version, INVALID_ARGUMENT for a missing name or a version label.
                The messages are the same as TF Serving's (server_core.cc).
        """
        current = self._current
        assert current is not None  # __init__ loads a version or raises
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

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """Returns the states of the versions that a request asks for.

        Raises:
            Status: NOT_FOUND for another model name or version.
        """
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

    def refresh(self) -> None:
        """Loads the newest version that can be loaded, if it is not yet in service."""
        for version, folder in sorted(self._folders().items(), reverse=True):
            if self._current is not None and version == self._current.version:
                return
            listing = _listing(folder)
            if self._failed.get(version) != listing and self._load(version, folder):
                return
            self._failed[version] = listing

    def close(self) -> None:
        """Stops watching the folder."""
        self._stop.set()
        self._thread.join()

    def _folders(self):
        """Returns {version: folder}."""
        if os.path.exists(os.path.join(self.path, GRAPH)):
            return {1: self.path}
        try:
            names = sorted(os.listdir(self.path))
        except OSError:
            return {}
        # If two names have the same number ("007" and "7"), the last is used (file_system_storage_path_source.cc).
        folders = {version_number(name): os.path.join(self.path, name) for name in names}
        return {version: folder for version, folder in folders.items() if version is not None}

    def _load(self, version, folder):
        """Loads a version and puts it into service; returns whether it could be loaded."""
        self._states[version] = (State.LOADING, "")
        try:
            servable = Servable(folder, self.name, version)
        except Exception as error:  # damaged files can raise anything; the old version stays in service
            self._states[version] = (State.END, f"{type(error).__name__}: {failure(error).message}")
            return False
        previous, self._current = self._current, servable
        self._states[version] = (State.AVAILABLE, "")
        if previous is not None:
            self._states[previous.version] = (State.END, "")
        return True

    def _watch(self):
        while not self._stop.wait(self.poll):
            self.refresh()


def _listing(folder):
    """Returns the names, sizes and modification times of all files below a folder."""
    listing = []
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                about = os.stat(os.path.join(place, name))
            except OSError:  # the file has been removed
                continue
            listing.append((place, name, about.st_size, about.st_mtime_ns))
    return sorted(listing)
