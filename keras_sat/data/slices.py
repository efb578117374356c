"""Parts of splits: "test[:500]", "train[10%:]" or "train+test" (TFDS' syntax), stratified samples, held-out images."""

import numbers

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


def check_apart(name: str, split: str, sizes: dict[str, int]) -> None:
    """Raises ValueError if a split names an image twice, such as "train+train[:10]". See `absolute` for the arguments.

    A held-out image could be among the others too.
    """
    ranges = sorted(absolute(name, split, sizes))
    for (before, _, end), (after, begin, _) in zip(ranges, ranges[1:]):
        if before == after and begin < end:
            raise ValueError(f"The split {split!r} of {name} has images twice: hold out of parts that do not overlap.")


def number_held_out(name: str, split: str, total: int, hold_out: float) -> int:
    """Returns the number of images that `hold_out` holds out of a split; 0 for hold_out=0.

    Args:
        name: name of the dataset, for error messages.
        split: the split or slice, for error messages.
        total: number of images in the split.
        hold_out: a share of the split (below 1), or a number of images (from 1 on).

    Raises:
        ValueError: if `hold_out` is no such number, or holds out no image, or all images.
    """
    is_number = isinstance(hold_out, numbers.Real) and not isinstance(hold_out, bool)
    if not is_number or not (0 <= hold_out < 1 or (hold_out > 0 and float(hold_out).is_integer())):
        raise ValueError(
            "hold_out must be a share of the split, at least 0 and below 1, or a whole number of images. Received: "
            f"{hold_out!r}"
        )
    number = round(hold_out * total) if hold_out < 1 else int(hold_out)
    if hold_out and not 0 < number < total:
        raise ValueError(
            f"{number} of the {total} images of {name} {split} cannot be held out (asked for: {hold_out:g}): hold out "
            "at least one, and fewer than all (--validation=N on the command line; 0 for none)."
        )
    return number


def stratified(labels: np.ndarray, number: int, random: np.random.Generator, leave: bool = False) -> np.ndarray:
    """Returns the sorted indices of a stratified random sample: int array [number].

    The sample has at least one example of each class, if `number` allows it. The others are drawn in proportion to the
    sizes of the classes.

    Args:
        labels: int array [n].
        number: size of the sample, at most n.
        random: the source of random numbers.
        leave: whether at least one example of each class is left out of the sample, if `number` allows it. Default:
            False.
    """
    shares = np.zeros(len(labels))
    order = random.permutation(len(labels))
    for label in np.unique(labels):
        places = order[labels[order] == label]
        shares[places] = np.arange(len(places)) / len(places)  # 0, the smallest, for one example of each class
        if leave:
            shares[places[-1]] = 1  # the largest: it is drawn last
    return np.sort(np.argsort(shares, kind="stable")[:number])


def overlap(one: list[tuple[str, int, int]], other: list[tuple[str, int, int]]) -> int:
    """Returns the number of images that two parts have in common.

    Args:
        one, other: ranges, as `absolute` returns them.
    """
    pairs = [(a, b) for a in one for b in other if a[0] == b[0]]
    return sum(max(0, min(a[2], b[2]) - max(a[1], b[1])) for a, b in pairs)
