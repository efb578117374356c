"""Parts of splits, such as "test[:500]", "train[10%:]" or "train+test" (TFDS' syntax), and stratified samples."""

import numpy as np


def absolute(name: str, split: str, sizes: dict[str, int]) -> list[tuple[str, int, int]]:
    """Converts a split specification to a list of ranges: [(split, begin, end), ...], as numbers of images.

    Args:
        name: name of the dataset, for error messages.
        split: TFDS' specification, such as "test", "test[:500]" or "train[10%:90%]".
        sizes: {split: number of images}.

    Raises:
        ValueError: for an unknown split, an empty part, or a part that goes beyond the end of the split.
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
    ranges = [(p.splitname, p.from_ or 0, sizes[p.splitname] if p.to is None else p.to) for p in parts]
    if not sum(end - begin for _, begin, end in ranges):
        raise ValueError(f"The split {split!r} of {name} is empty; it has {known}.")
    return ranges


def stratified(labels: np.ndarray, number: int, random: np.random.Generator) -> np.ndarray:
    """Returns the sorted indices of a stratified random sample: int array [number].

    The sample has at least one example of each class, if `number` allows it. The others are drawn in proportion to the
    sizes of the classes.

    Args:
        labels: int array [n].
        number: size of the sample, at most n.
        random: the source of random numbers.
    """
    shares = np.zeros(len(labels))
    order = random.permutation(len(labels))
    for label in np.unique(labels):
        places = order[labels[order] == label]
        shares[places] = np.arange(len(places)) / len(places)  # 0, the smallest, for one example of each class
    return np.sort(np.argsort(shares, kind="stable")[:number])
