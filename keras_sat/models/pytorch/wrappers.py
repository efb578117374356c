"""Finds a network's weights in what a training script saved: `state_dict` and `fit`.

A checkpoint wraps weights in two ways. Its containers hold the state dict beside other things: `state_dict` finds it.
And the names of the state dict begin with the names of the modules around the network, as "module." of DataParallel:
`fit` cuts them, and it separates what belongs to the network from the mean and standard deviation of the images.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

# Last parts of the names under which modules keep the mean and standard deviation that they normalize images with.
STATISTICS = {"mean": "std", "mu": "sigma", "new_mean": "new_std"}
# The name of a file's outermost dict among the state dicts.
TOP = "top"
UNAVERAGED = "unaveraged_"


class StateDict(NamedTuple):
    """A network's entries, and what its images are normalized with.

    Attributes:
        entries: {name in the network: array}, in PyTorch's layout. Entries that do not belong to the network keep
            their full names.
        normalization: mean and standard deviation, each [channels] or [1], of images in 0..1. None if there are none.
    """

    entries: dict[str, np.ndarray]
    normalization: tuple[np.ndarray, np.ndarray] | None


def state_dict(content: Any, averaged: bool = True, choice: str | None = None) -> dict[str, np.ndarray]:
    """Returns the one state dict in a checkpoint, with the names that the file has.

    A state dict is a dict with an array whose name ends in ".weight". It may lie at any depth of dicts and lists, under
    any name: "state_dict", "model", "net", "last". The state of an optimizer is none. Entries that are no arrays, such
    as "_extra_state", are left out.

    Args:
        content: what the file holds. See `reader.read`.
        averaged: which of two state dicts X and "unaveraged_X" is meant. Default: True, the averaged weights X.
        choice: the name of the state dict, if there are several. The name is its path, such as "last.state_dict", or
            the path's first or last parts, such as "last" or "state_dict". The outermost dict is called "top".

    Raises:
        ValueError: if there is no state dict, or there are several to choose from. The message names them.
    """
    found = [(".".join(path) or TOP, entries) for path, entries in _state_dicts(content, ())]
    if not found:
        raise ValueError(f"No state dict was found: no array has a name that ends in .weight. {_about(content)}")
    named = [item for item in found if choice is None or _is_called(item[0], choice)]
    named = [item for item in named if item[0] == choice] or named
    chosen = [item for item in named if _is_unaveraged(item[0]) != averaged or item[0] == choice and averaged]
    if len(chosen) == 1:
        return chosen[0][1]
    names = ", ".join(name for name, _ in found)
    if named and not chosen:
        here, wanted = ("only unaveraged", "averaged=False") if averaged else ("no unaveraged", "averaged=True")
        raise ValueError(f"The checkpoint has {here} weights; expected {wanted}. Its state dicts: {names}.")
    received = "" if choice is None else f" Received: {choice!r}."
    number = "one state dict" if len(found) == 1 else f"{len(found)} state dicts"
    raise ValueError(f"The checkpoint has {number}: choice must be one of {names}.{received}")


def fit(entries: Mapping[str, np.ndarray], wanted: Collection[str]) -> StateDict:
    """Returns a state dict under the network's own names.

    The modules around the network are what the names have before the names in `wanted`: "module.", "model.",
    "module.0.", "_orig_mod." or any other. They are cut at the start of a name alone. They are the ones after which the
    most names in `wanted` follow, if these are more than half of `wanted` or of the entries; of equal ones the
    shortest. Else every name stays as it is. MadryLab's checkpoints hold the network again inside their attacker: a
    copy that is identical is dropped.

    Args:
        entries: {name: array}. See `state_dict`.
        wanted: names of the network's entries, such as "conv1.weight" and "block1.layer.0.bn1.running_mean".

    Raises:
        ValueError: if the file holds two networks or two normalizations that differ, or some entries of the network
            lie outside the modules where the others are.
    """
    prefix, *doubles = _prefixes(entries, set(wanted))
    rest = dict(entries)
    for double in doubles:
        _drop_double(rest, prefix, double)
    normalization = _take_normalization(rest, {prefix + name for name in wanted})
    cut: dict[str, np.ndarray] = {}
    for name, array in rest.items():
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix) and name in wanted:
            raise ValueError(f"{name} lies outside {prefix!r}, where the network's other entries are.")
        if inner in cut:
            raise ValueError(f"The checkpoint has {inner} both after {prefix!r} and without it.")
        cut[inner] = array
    return StateDict(cut, normalization)


def _state_dicts(value: Any, path: tuple[str, ...], outer: tuple[int, ...] = ()) -> Iterator[tuple[tuple, dict]]:
    """Yields (path, entries) of each state dict in nested containers."""
    if id(value) in outer:  # a pickle may hold a container that holds itself
        return
    if isinstance(value, Mapping) and not {"state", "param_groups"} <= set(value):  # those are an optimizer's
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        return
    arrays = {name: array for name, array in items if isinstance(name, str) and isinstance(array, np.ndarray)}
    if any(name.endswith(".weight") for name in arrays):
        yield path, arrays
    for name, inner in items:
        yield from _state_dicts(inner, (*path, str(name)), (*outer, id(value)))


def _about(content):
    if isinstance(content, Mapping):
        return f"It holds: {', '.join(map(str, list(content)[:10])) or 'nothing'}."
    return f"It holds an object of type {type(content).__name__}."


def _is_called(name, choice):
    return f".{name}.".startswith(f".{choice}.") or f".{name}.".endswith(f".{choice}.")


def _is_unaveraged(name):
    return name.rpartition(".")[2].startswith(UNAVERAGED)


def _prefixes(names, wanted):
    """Returns what comes before the network's names, the best first. See `fit`."""
    counts = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    enough = [prefix for prefix, count in counts.items() if 2 * count > min(len(wanted), len(names))]
    return sorted(enough, key=lambda prefix: (-counts[prefix], len(prefix))) or [""]


def _drop_double(entries, prefix, double):
    """Removes the entries after `double` that are also after `prefix`."""
    for name in [name for name in entries if name.startswith(double)]:
        twin = prefix + name.removeprefix(double)
        if twin not in entries or twin == name:
            continue
        if not _identical(entries[name], entries[twin]):
            raise ValueError(f"The checkpoint holds two networks that differ: {twin} is not {name}. Save one of them.")
        del entries[name]


def _take_normalization(entries, network):
    """Removes the mean and standard deviation of the images from the entries, and returns them, or None."""
    found = {}
    for name in list(entries):
        scope, dot, last = name.rpartition(".")
        other = scope + dot + STATISTICS.get(last, "")
        if last not in STATISTICS or other not in entries or network & {name, other}:
            continue
        if entries[name].size in (1, 3) and entries[other].size in (1, 3):
            found[name] = entries.pop(name).reshape(-1), entries.pop(other).reshape(-1)
    first, *others = found or [None]
    for name in others:
        if not all(map(_identical, found[first], found[name])):
            raise ValueError(f"The checkpoint normalizes images in two ways that differ: {first} is not {name}.")
    return found.get(first)


def _identical(one, other):
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
