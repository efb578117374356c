"""Reads a whole dataset once: what is damaged, in two splits or classes at once, and how many of which size."""

import collections
import dataclasses
import os
import sys
import time
from typing import TextIO

from keras_sat.data.pipeline import source

_EVERY = 2.0  # seconds between two lines of progress


@dataclasses.dataclass
class Findings:
    """What `check` found.

    Attributes:
        dataset: its name, or the path of the folder.
        counts: {split: {class: number of images}}.
        sizes: {(height, width): number of images}, of those that can be read.
        damaged: {path: what is wrong with it}.
        shared: lists of paths that hold the same pixels in different splits.
        contradictory: lists of paths that hold the same pixels in different classes.

    A path is SPLIT/CLASS/FILE; of a dataset of TFDS the file is a number.
    """

    dataset: str
    counts: dict[str, dict[str, int]]
    sizes: dict[tuple[int, int], int]
    damaged: dict[str, str]
    shared: list[list[str]]
    contradictory: list[list[str]]

    @property
    def is_clean(self) -> bool:
        """Whether nothing is damaged, shared or contradictory."""
        return not (self.damaged or self.shared or self.contradictory)

    def table(self) -> str:
        """Returns the findings as text: counts, sizes, and a line for each file that is not as it should be."""
        classes = sorted({name for counts in self.counts.values() for name in counts})
        width = max(map(len, (*classes, "class")))
        lines = ["  ".join(["class".ljust(width), *(f"{split:>10}" for split in self.counts)])]
        for name in classes:
            numbers = (f"{counts.get(name, 0):>10}" for counts in self.counts.values())
            lines.append("  ".join([name.ljust(width), *numbers]))
        lines.append("  ".join(["all".ljust(width), *(f"{sum(c.values()):>10}" for c in self.counts.values())]))
        lines += ["", _sizes(self.sizes)]
        lines += _listed("cannot be read", [f"{path}: {fault}" for path, fault in self.damaged.items()])
        lines += _listed("the same image in different splits", map(" = ".join, self.shared))
        lines += _listed("the same image in different classes", map(" = ".join, self.contradictory))
        return "\n".join(lines)


def check(
    dataset: str | os.PathLike, data_dir: str | os.PathLike | None = None, progress: TextIO | None = sys.stdout
) -> Findings:
    """Reads all images of a dataset once, several at a time, as training reads them.

    Args:
        dataset: a folder `SPLIT/CLASS/*.jpg`, or the name of a dataset, as `load` takes it.
        data_dir: TFDS' folder of prepared datasets; None is TFDS' own.
        progress: a text stream for the number of images read, or None.

    Returns:
        The `Findings`.

    Raises:
        ValueError: for a dataset that cannot be had; see `source`.
    """
    opened = source(dataset, data_dir)
    counts = {split: collections.Counter() for split in opened.splits}
    sizes, damaged, same = collections.Counter(), {}, collections.defaultdict(list)
    total, start = sum(opened.splits.values()), time.monotonic()
    said = start
    for number, found in enumerate(opened.readings(), 1):
        split, label, _ = found.path.split(os.sep, 2)
        counts[split][label] += 1
        if found.fault:
            damaged[found.path] = found.fault
        else:
            sizes[found.shape[:2]] += 1
            same[found.shape, found.digest].append(found.path)
        if progress and (time.monotonic() - said > _EVERY):
            said = time.monotonic()
            left = (said - start) / number * (total - number)
            print(f"{number} of {total} images read, {left:.0f} s left", file=progress, flush=True)
    twice = [names for names in same.values() if len(names) > 1]
    shared = [names for names in twice if len({name.split(os.sep)[0] for name in names}) > 1]
    contradictory = [names for names in twice if len({name.split(os.sep)[1] for name in names}) > 1]
    counts = {split: dict(found) for split, found in counts.items()}
    return Findings(opened.name, counts, dict(sizes), damaged, shared, contradictory)


def _sizes(sizes):
    if len(sizes) <= 1:
        return "".join(f"All images are {height} x {width} pixels." for height, width in sizes)
    heights, widths = zip(*sizes)
    (height, width), number = max(sizes.items(), key=lambda item: item[1])
    return (
        f"{len(sizes)} sizes, {min(heights)} to {max(heights)} pixels high, {min(widths)} to {max(widths)} wide; most "
        f"often {height} x {width} ({number} images)."
    )


def _listed(what, lines):
    lines = list(lines)
    return (
        ["", f"{len(lines)} {'file' if len(lines) == 1 else 'files'}: {what}", *(f"  {line}" for line in lines)]
        if lines
        else []
    )
