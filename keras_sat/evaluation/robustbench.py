"""RobustBench's protocol: its images, its thresholds, and a report in the form of its model_info files."""

import dataclasses
import json
import os
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sat import data, files, preprocessing
from keras_sat.evaluation.report import AttackResult, RobustnessReport
from keras_sat.typing import Path

__all__ = ["PROTOCOLS", "Protocol", "imagenet_images", "model_info"]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How RobustBench evaluates networks on a dataset under a threat model.

    Attributes:
        dataset: the dataset as RobustBench names it, and its folder of model_info: "cifar10", "cifar100", "imagenet".
        threat: "Linf" or "L2".
        eps: the radius as RobustBench writes it, for pixels in 0..1, such as "8/255".
        radius: the radius for pixels in 0..1.
        tfds: the name of the dataset in TFDS.
        split: the split with exactly the images on which RobustBench evaluates.
        images: their number.
        crops: how images may be prepared, as `Preprocessing.crop` has it.
    """

    dataset: str
    threat: str
    eps: str
    radius: float
    tfds: str
    split: str
    images: int
    crops: tuple[str, ...]


_CIFAR = ("test", 10_000, ("stretch",))
_LISTED = (
    Protocol("cifar10", "Linf", "8/255", 8 / 255, "cifar10", *_CIFAR),
    Protocol("cifar10", "L2", "0.5", 0.5, "cifar10", *_CIFAR),
    Protocol("cifar100", "Linf", "8/255", 8 / 255, "cifar100", *_CIFAR),
    Protocol(
        "imagenet", "Linf", "4/255", 4 / 255, "imagenet2012", "robustbench", 5000, tuple(preprocessing.ROBUSTBENCH)
    ),
)
PROTOCOLS = {(each.dataset, each.threat): each for each in _LISTED}
# The attack that RobustBench runs, AutoAttack(ball), as a report's settings have it.
ATTACK = {"attack": "AutoAttack", "version": "standard", "steps": 100, "queries": 5000}


def imagenet_images(
    dataset: Path | data.Folder | data.Prepared,
    crop: str = "Res256Crop224",
    batch_size: int = 100,
    data_dir: Path | None = None,
) -> tf.data.Dataset:
    """Returns the 5,000 images of ImageNet's validation split on which RobustBench evaluates, for `evaluate`.

    It is `data.load(dataset, "robustbench", batch_size, crop=crop, channels=3)`; on the command line,
    `--split=robustbench`.

    Args:
        dataset: a folder with ImageNet's own file names, val/CLASS/ILSVRC2012_val_00000001.JPEG, or "imagenet2012", or
            an opened dataset. The labels are the places of the classes in alphabetical order: that of the WordNet
            numbers, n01440764, ..., in a folder with ImageNet's own names.
        crop: RobustBench's preprocessing of the network: "Res256Crop224" (default), "BicubicRes256Crop224", "Crop288"
            or "Res224".
        batch_size: number of images in a batch.
        data_dir: TFDS' folder of prepared datasets. Default: TFDS' own default.

    Raises:
        ValueError: if the dataset lacks some of the images; the message says how many.
    """
    if crop not in preprocessing.ROBUSTBENCH:
        raise ValueError(f"crop must be one of {', '.join(preprocessing.ROBUSTBENCH)}. Received: {crop!r}")
    return data.load(dataset, "robustbench", batch_size, data_dir=data_dir, crop=crop, channels=3)


def model_info(
    report: RobustnessReport,
    *,
    name: str,
    link: str,
    authors: str,
    venue: str,
    architecture: str,
    additional_data: bool,
    reported: float | None = None,
    footnote: str = "",
    number_forward_passes: int = 1,
    unreliable: bool = False,
    path: Path | None = None,
) -> dict[str, Any]:
    """Returns a report as RobustBench's model_info files have it, if the evaluation followed its protocol.

    The report is that of AutoAttack's standard version, with RobustBench's radius, on all of its images: 10,000 of
    CIFAR-10 or CIFAR-100 (split "test" of TFDS), or 5,000 of ImageNet (split "robustbench"). Its context must say the
    dataset and the split, and, for ImageNet, the preprocessing, as `keras-sat evaluate` does. From Python:

        how = Preprocessing(224, 224, 3, "Res256Crop224")
        context = {"dataset": "imagenet2012", "split": "robustbench", "preprocessing": how.settings()}
        report = evaluate(model, images, AutoAttack(LinfBall(4)), context=context)

    Args:
        report: the report of the whole dataset (`merge` joins those of shards).
        name, link, authors, venue: title, address, authors and venue of the paper.
        architecture: the network, such as "WideResNet-28-10".
        additional_data: whether more images than the training split were used.
        reported: robust accuracy in the paper, in per cent. Default: that of the report.
        footnote: a remark for the leaderboard. Default: none.
        number_forward_passes: forward passes of the network for one image. Default: 1.
        unreliable: whether AutoAttack's result is believed to be too high, see the report's warnings. Default: False.
        path: a file to write the JSON to, such as "Ann2026Robust.json".

    Returns:
        A dict; accuracies are texts in per cent with two digits, as in RobustBench's files.

    Raises:
        ValueError: if the evaluation did not follow the protocol; the message says in what.
    """
    row, protocol = _row_and_protocol(report)
    _check_images(report, row, protocol)
    robust = _percent(100 * row.accuracy)
    info = {
        "link": link,
        "name": name,
        "authors": authors,
        "additional_data": additional_data,
        "number_forward_passes": number_forward_passes,
        "dataset": protocol.dataset,
        "venue": venue,
        "architecture": architecture,
        "eps": protocol.eps,
        "clean_acc": _percent(100 * report["clean"].accuracy),
        "reported": robust if reported is None else _percent(reported),
        "footnote": footnote,
        "autoattack_acc": robust,
        "unreliable": unreliable,
    }
    if path is not None:
        files.write_text(path, json.dumps(info, indent=2) + "\n")
    return info


def _percent(number):
    return f"{number:.2f}"


def _refusal(why):
    return ValueError(f"The report does not follow RobustBench's protocol: {why}.")


def _row_and_protocol(report: RobustnessReport) -> tuple[AttackResult, Protocol]:
    """Returns the row of AutoAttack, and the protocol that it follows, after checks of the attack."""
    rows = [row for row in report.results if row.settings.items() >= ATTACK.items()]
    if len(rows) != 1:
        names = ", ".join(row.name for row in report.results)
        raise _refusal(f"one row of AutoAttack(ball), the standard version, was expected; the rows are {names}")
    (row,) = rows
    if "attack_precision" in report.context:
        raise _refusal(f"attack_precision={report.context['attack_precision']} also attacks a copy; leave it out")
    given = os.fspath(report.context.get("dataset", ""))
    threat = {"linf": "Linf", "l2": "L2"}.get(row.settings["norm"])
    # A folder can only be ImageNet's, whose images `data.load` finds by their names.
    is_listed = report.context.get("split") == "robustbench"
    own = "imagenet2012" if is_listed else given.partition(":")[0]
    protocol = next((each for each in PROTOCOLS.values() if (each.tfds, each.threat) == (own, threat)), None)
    if protocol is None:
        known = ", ".join(f"{each.tfds} {each.threat}" for each in PROTOCOLS.values())
        raise _refusal(f"its dataset is {given or 'not said'} and its norm {row.settings['norm']}; there are {known}")
    low, high = np.array(row.settings["bounds"], float)
    radius = np.array(row.settings["epsilon"], float) / (high - low)
    if not np.allclose(radius, protocol.radius, rtol=1e-6):
        raise _refusal(f"epsilon is {row.epsilon_text()}, {protocol.eps} of the range of the pixels was expected")
    return row, protocol


def _check_images(report, row, protocol):
    """Raises ValueError for other images than RobustBench's, or images that were prepared in another way."""
    split, how = report.context.get("split"), report.context.get("preprocessing")
    if split != protocol.split:
        raise _refusal(f"its split is {split or 'not said'}, {protocol.split} was expected")
    if row.n != protocol.images or len(set(report.examples.get("index", ()))) != protocol.images:
        raise _refusal(f"it has {row.n} images, {protocol.images} were expected")
    if how is None and protocol.dataset == "imagenet":
        raise _refusal("its context does not say the preprocessing, such as Preprocessing(...).settings()")
    if how is not None and how.get("crop") not in protocol.crops:
        raise _refusal(f"its images have crop {how.get('crop')}, {' or '.join(protocol.crops)} was expected")
    if how is not None and protocol.dataset != "imagenet" and (how.get("height"), how.get("width")) != (32, 32):
        raise _refusal(f"its images have {how.get('height')} x {how.get('width')} pixels, 32 x 32 were expected")
