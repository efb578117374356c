import contextlib
import hashlib
import pathlib

import keras
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parent / "release"


@pytest.fixture
def without_weights():
    """Returns a context in which a network is built that never gets weights: L2 would take 2 GB, and seconds."""

    @contextlib.contextmanager
    def scope():
        with keras.StatelessScope(initialize_variables=False):
            yield
        # Else Keras would give it weights after all, with the next network's. (Python's own collection is in time.)
        keras.backend.clear_session(free_memory=False)

    return scope


def kernel(name, shape, seed, scale):
    """Returns a large kernel of a fixture. It is not stored: its name and the seed determine it."""
    rng = np.random.RandomState((int(hashlib.md5(name.encode()).hexdigest()[:8], 16) + seed) % 2**32)
    values = rng.normal(0, 1, shape)
    if len(shape) == 2:
        return (values * 2 / np.sqrt(shape[0])).astype(np.float32) * scale
    gain = np.exp(rng.uniform(np.log(0.15 if name.endswith("/W") else 0.2), np.log(2.0)))
    values *= gain / np.sqrt(np.prod(shape[:3]))
    if shape[2] > 3:
        values = values - 0.9 * values.mean(axis=2, keepdims=True)
    return values.astype(np.float32) * scale


class Release:
    """A checkpoint in the layout of the release, with known random weights, and the outputs of the authors' code."""

    def __init__(self, name):
        self.name = name
        self.file = np.load(FOLDER / f"{name}.npz")
        self.images, self.logits = self.file["images"], self.file["logits"]

    def variables(self):
        arrays = {}
        for key in self.file.files:
            kind, _, name = key.partition(":")
            if kind == "var":
                arrays[name] = self.file[key]
            elif kind == "big":
                *shape, scale = self.file[key]
                arrays[name] = kernel(name, tuple(map(int, shape)), int(self.file["seed"]), np.float32(scale))
        return arrays


@pytest.fixture(scope="session")
def release():
    return Release


@pytest.fixture
def checkpoint(tmp_path, write_checkpoint):
    return lambda arrays, name="model": write_checkpoint(tmp_path / name, arrays)
