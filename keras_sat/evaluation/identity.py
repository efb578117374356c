"""Tells networks apart by what they compute. The weights alone do not say which activation or scaling a network has."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from keras_sat import files
from keras_sat.attacks import gradients
from keras_sat.typing import LogitsFunction

LOGITS, DATASET = "logits_of_noise", "dataset_crc32"  # in a report's context; the latter in that of a shard
_LOGITS = 10  # number of logits that are kept
_SAME = 1e-3  # logits of one network on two machines may differ by this share of the largest


def logits_of_noise(logits_fn: LogitsFunction, shape: Iterable[int]) -> list[float] | None:
    """Returns the first logits of an image of noise, with six digits.

    Args:
        logits_fn: a Keras model or a function, from images to logits [batch, classes].
        shape: [height, width, channels] of the image. Its pixels are in 0..255.

    Returns:
        A list of at most ten floats; None if two passes differ, or if a logit is not finite.
    """
    noise = np.random.default_rng(0).integers(0, 256, (1, *shape)).astype(np.float32)
    first, second = (gradients.logits(logits_fn, noise).numpy()[0, :_LOGITS] for _ in range(2))
    found = [float(f"{value:.6g}") for value in first]
    return found if np.isfinite(first).all() and _are_close(first, second) else None


def of(networks: Mapping[str, LogitsFunction], shape: Iterable[int]) -> dict[str, Any]:
    """Returns {name: `logits_of_noise`} of some networks, and the "shape" [height, width, channels] of the image."""
    return {"shape": list(shape)} | {name: logits_of_noise(network, shape) for name, network in networks.items()}


def digest(facts: Mapping[str, Any]) -> str:
    """Returns a digest of the facts that `are_alike` compares exactly, for the name of a file."""
    return files.fingerprint(_exact(facts))


def _exact(facts):
    """Returns the facts without logits, which are rounded, and the folder of the run, which machines see elsewhere."""
    return {name: value for name, value in facts.items() if name not in (LOGITS, "run")}


def are_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Returns whether two dicts of facts are equal, but for the rounding of their `logits_of_noise`.

    The folder of the run is not compared: machines may see it at different paths.
    Facts of former versions, which have no such logits, and networks with random outputs are compared without them.
    """
    if _exact(one) != _exact(other):
        return False
    ours, theirs = one.get(LOGITS) or {}, other.get(LOGITS) or {}
    pairs = [(ours[name], theirs[name]) for name in ours.keys() & theirs.keys()]
    return all(_are_close(*pair) for pair in pairs if None not in pair)


def _are_close(one, other):
    one, other = np.asarray(one), np.asarray(other)
    return one.shape == other.shape and bool(np.all(np.abs(one - other) <= _SAME * np.abs(one).max()))
