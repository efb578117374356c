"""RobustBench's 5,000 images of ImageNet's validation split, as the split "robustbench" of a folder or of TFDS."""

import functools
import os

import numpy as np

from keras_sat.data.folder import SPLITS, Folder
from keras_sat.data.prepared import Prepared

SPLIT = "robustbench"
# The numbers of RobustBench's images, in its order: robustbench/helper_files/imagenet_test_image_ids.txt (MIT licence,
# copyright 2020 Francesco Croce, Maksym Andriushchenko, Vikash Sehwag), without the folders, which are the classes.
LIST = os.path.join(os.path.dirname(__file__), "robustbench_imagenet.txt")


@functools.cache
def names() -> tuple[str, ...]:
    """Returns the names of the 5,000 images in RobustBench's order: "ILSVRC2012_val_00015253", ..."""
    with open(LIST, encoding="utf-8") as file:
        return tuple(f"ILSVRC2012_val_{int(number):08}" for number in file.read().split())


def resolve(opened: Folder | Prepared, split: str) -> tuple[str, np.ndarray | None]:
    """Returns the split that holds RobustBench's images, and their places in it, for the split "robustbench".

    Args:
        opened: an opened dataset: a folder with ImageNet's own file names, val/CLASS/ILSVRC2012_val_00000001.JPEG, or
            TFDS' imagenet2012, of which all file names are read.
        split: a split or slice. Every one but "robustbench" is returned unchanged, with None.

    Returns:
        The split, and sorted indices in the order of its labels, int [5000].

    Raises:
        ValueError: if the dataset has not each of the images once; the message says how many it lacks.
    """
    if split != SPLIT or SPLIT in opened.splits:
        return split, None
    # TFDS' imagenet2012 has a "test" beside its "validation".
    whole = next((name for name in (*SPLITS[2:], "test") if name in opened.splits), "validation")
    listed = frozenset(names())
    stems = [os.path.splitext(name)[0] for name in opened.file_names(whole)]
    places = np.array([place for place, stem in enumerate(stems) if stem in listed])
    lacking = sorted(listed - set(stems))
    if lacking:
        raise ValueError(
            f"{opened.name} {whole} lacks {len(lacking)} of RobustBench's {len(listed)} images, such as "
            f"{lacking[0]}.JPEG: ImageNet's whole validation split, with its own file names, was expected."
        )
    if len(places) > len(listed):
        raise ValueError(f"{opened.name} {whole} has {len(places) - len(listed)} of RobustBench's images twice.")
    return whole, places
