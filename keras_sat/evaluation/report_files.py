"""The files of reports in a folder: each report has its own file, and report.json is a link to the newest."""

import os
import re
import shutil

from keras_sat import files
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
