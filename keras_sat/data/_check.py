"""Checks a whole dataset: damaged images, images in two splits or classes, and the sizes of classes and images."""

import collections
import dataclasses
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO

from keras_sat.data.pipeline import source
from keras_sat.data.reading import Reading
from keras_sat.typing import Path

_EVERY = 2.0  # seconds between two lines of progress


@dataclasses.dataclass
class Findings:
    """The result of `check`.

    Attributes:
        dataset: name of the dataset, or path of the folder.
        counts: {split: {class: number of images}}, damaged images included.
        sizes: {(height, width): number of images}, of the images that can be read.
        damaged: {path: what is wrong with the image}.
        shared: groups of images with the same pixels that are in different splits: a list of paths for each group.
        contradictory: groups of images with the same pixels that are in different classes.

    A path is SPLIT/CLASS/FILE. For a dataset of TFDS, FILE is the number of the image.
    """

    dataset: str
    counts: dict[str, dict[str, int]]
    sizes: dict[tuple[int, int], int]
    damaged: dict[str, str]
    shared: list[list[str]]
    contradictory: list[list[str]]

    @property
    def is_clean(self) -> bool:
        """Whether no image is damaged, shared or contradictory."""
        return not (self.damaged or self.shared or self.contradictory)

    def table(self) -> str:
        """Returns the findings as text: counts, sizes, and a line for each image with a fault."""
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


def check(dataset: Path, data_dir: Path | None = None, progress: TextIO | None = sys.stdout) -> Findings:
    """Reads and decodes all images of a dataset once, in parallel, in the same way as training does.

    Args:
        dataset: a folder `SPLIT/CLASS/*.jpg`, or the name of a dataset, as for `load`.
        data_dir: TFDS' folder of prepared datasets. Default: TFDS' own default.
        progress: a text stream to which the number of images read is written, or None. Default: standard output.

    Returns:
        The `Findings`.

    Raises:
        ValueError: if the dataset cannot be opened. See `source`.
    """
    opened = source(dataset, data_dir)
    counts: dict[str, collections.Counter] = {split: collections.Counter() for split in opened.splits}
    sizes: collections.Counter = collections.Counter()
    damaged, paths_by_pixels = {}, collections.defaultdict(list)
    for reading in _with_progress(opened.readings(), sum(opened.splits.values()), progress):
        split, label, _ = reading.path.split(os.sep, 2)
        counts[split][label] += 1
        if reading.shape is None:
            damaged[reading.path] = str(reading.fault)
        else:
            sizes[reading.shape[:2]] += 1
            paths_by_pixels[reading.shape, reading.digest].append(reading.path)
    duplicates = [paths for paths in paths_by_pixels.values() if len(paths) > 1]
    return Findings(
        dataset=opened.name,
        counts={split: dict(classes) for split, classes in counts.items()},
        sizes=dict(sizes),
        damaged=damaged,
        shared=[paths for paths in duplicates if _differ(paths, 0)],
        contradictory=[paths for paths in duplicates if _differ(paths, 1)],
    )


def _with_progress(readings: Iterable[Reading], total: int, progress: TextIO | None) -> Iterator[Reading]:
    """Yields the readings; writes their number and an estimate of the seconds left to `progress`."""
    start = last = time.monotonic()
    for number, reading in enumerate(readings, 1):
        yield reading
        if progress and (time.monotonic() - last > _EVERY):
            last = time.monotonic()
            left = (last - start) / number * (total - number)
            print(f"{number} of {total} images read, {left:.0f} s left", file=progress, flush=True)


def _differ(paths, place):
    """Returns whether paths SPLIT/CLASS/FILE differ in their split (place 0) or their class (place 1)."""
    return len({path.split(os.sep)[place] for path in paths}) > 1


def _sizes(sizes):
    """Returns a sentence about the sizes of the images."""
    if len(sizes) <= 1:
        return "".join(f"All images are {height} x {width} pixels." for height, width in sizes)
    heights, widths = zip(*sizes)
    (height, width), number = max(sizes.items(), key=lambda item: item[1])
    return (
        f"{len(sizes)} sizes, {min(heights)} to {max(heights)} pixels high, {min(widths)} to {max(widths)} wide; most "
        f"often {height} x {width} ({number} images)."
    )


def _listed(what, lines):
    """Returns the lines of a section of the table, [] if it would be empty."""
    lines = list(lines)
    if not lines:
        return []
    return ["", f"{len(lines)} {'file' if len(lines) == 1 else 'files'}: {what}", *(f"  {line}" for line in lines)]
