"""Parts of splits: in TFDS' language, "test[:500]", "train[10%:]", "train+test"; and samples of all classes."""

import numpy as np


def absolute(name: str, split: str, sizes: dict[str, int]) -> list[tuple[str, int, int]]:
    """Returns [(split, begin, end)] of a specification.

    Args:
        name: of the dataset, for messages.
        split: such as "test", "test[:500]" or "train[10%:90%]".
        sizes: {split: number of images}.

    Raises:
        ValueError: for a split that is not there, or a part that is empty or goes beyond its end.
    """
    import tensorflow_datasets as tfds  # takes a second to import

    known = ", ".join(f"{split} ({number} images)" for split, number in sizes.items())
    infos = {
        split: tfds.core.SplitInfo(name=split, shard_lengths=[number], num_bytes=0) for split, number in sizes.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, KeyError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name} has no split {split!r}; it has {known}, and slices such as test[:10%]. ({reason})"
        ) from error
    found = [(part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to) for part in parts]
    if not sum(end - begin for _, begin, end in found):
        raise ValueError(f"The split {split!r} of {name} is empty; it has {known}.")
    return found


def stratified(labels: np.ndarray, number: int, random: np.random.Generator) -> np.ndarray:
    """Returns the sorted places of `number` labels: at least one of each class, if there is room, then in proportion.

    Args:
        labels: int array [n].
        number: of places to return, < n.
        random: a numpy Generator.
    """
    shares = np.zeros(len(labels))
    order = random.permutation(len(labels))
    for label in np.unique(labels):
        places = order[labels[order] == label]
        shares[places] = np.arange(len(places)) / len(places)  # the first of each class comes first
    return np.sort(np.argsort(shares, kind="stable")[:number])
