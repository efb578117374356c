"""The files of reports in a folder: each report has its own file, and report.json is a link to the newest."""

import os
import re
import shutil

from keras_sat import files
from keras_sat.evaluation import identity
from keras_sat.evaluation import report as report_lib
from keras_sat.evaluation.report import RobustnessReport

FOLDER = "reports"


def name(attack: str, norm: str, epsilons: list[float], split: str) -> str:
    """Returns a file name, without ending, for a report: the attack, the threat model and the split.

    `name("pgd-50", "linf", [4.0], "test[:500]")` is "pgd-50-linf-4-test_..500".
    """
    radii = ",".join(f"{epsilon:g}" for epsilon in epsilons)
    part = split.replace(":", "..").replace("%", "pct")
    return re.sub(r"[^\w.,+-]+", "_", f"{attack}-{norm}-{radii}-{part}").strip("_")


def write(report: RobustnessReport, folder: str, name: str) -> str:
    """Writes a report to reports/NAME.json, and makes report.json a link to it.

    If reports/NAME.json exists, the file is NAME-2.json, NAME-3.json, ...

    Args:
        report: the report.
        folder: folder that contains reports/ and report.json.
        name: file name without ending, see `name`.

    Returns:
        The path of the file.
    """
    path = unused(os.path.join(folder, FOLDER, f"{name}.json"))
    report.to_json(path)
    link(path, os.path.join(folder, "report.json"))
    return path


def write_shard(report: RobustnessReport, folder: str, name: str, shard: tuple[int, int]) -> str:
    """Writes the report of one shard to a file of its own, and returns its path.

    Args:
        report: report of the shard.
        folder: see `write`.
        name: see `write`.
        shard: (k, n), the k-th of n parts.
    """
    path = _shards(report, folder, name, shard[1])[shard[0]]
    report.to_json(path)
    return path


def missing_shards(report: RobustnessReport, folder: str, name: str, n: int) -> list[int]:
    """Returns the numbers of the shards whose files are missing. See `take_shards`."""
    return [number for number, path in enumerate(_shards(report, folder, name, n)) if not os.path.exists(path)]


def take_shards(report: RobustnessReport, folder: str, name: str, n: int) -> RobustnessReport:
    """Returns the merged report of all `n` shards, and removes their files.

    Args:
        report: report of one of the shards.
        folder: see `write`.
        name: see `write`.
        n: number of shards.
    """
    paths = _shards(report, folder, name, n)
    whole = report_lib.merge([report_lib.from_json(path) for path in paths])
    for path in paths:
        os.remove(path)
    return whole


def _shards(report, folder, name, n):
    digest = identity.digest({"settings": {row.name: row.settings for row in report.results}, **report.context})
    return [os.path.join(folder, FOLDER, f"{name}-{digest}-{number}-of-{n}.json") for number in range(n)]


def unused(path: str) -> str:
    """Returns the path, or the first of NAME-2.json, NAME-3.json, ... that does not exist."""
    (stem, ending), number = os.path.splitext(path), 1
    while os.path.lexists(path):
        number += 1
        path = f"{stem}-{number}{ending}"
    return path


def link(path: str, to: str) -> None:
    """Makes `to` a symbolic link to the file `path`, or a copy of it if symbolic links are not possible.

    An older link is replaced. If `to` is a file, it is first moved to the folder of `path`.
    """
    if os.path.exists(to) and not os.path.islink(to):
        os.replace(to, unused(os.path.join(os.path.dirname(path), os.path.basename(to))))
    with files.atomic_write(to) as temporary:
        try:
            os.symlink(os.path.relpath(path, os.path.dirname(to)), temporary)
        except OSError:
            shutil.copyfile(path, temporary)
