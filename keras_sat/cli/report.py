"""The command `keras-sat report`."""

import argparse
import os
import warnings

from keras_sat import evaluation, files
from keras_sat.evaluation import html_comparison

PAGE = "keras-sat-report.html"


def add_flags(parser: argparse.ArgumentParser) -> None:
    text = "report.json files, and folders that hold one: of a run, or of an evaluation"
    parser.add_argument("reports", nargs="+", metavar="REPORT", type=files.expanded, help=text)
    text = f"the page to write; its plots are written beside it (default: {PAGE})"
    parser.add_argument("--to", default=PAGE, metavar="PAGE.html", type=files.expanded, help=text)


def run(args: argparse.Namespace) -> int:
    """Puts the reports of several evaluations side by side on one page; one report gets a page of its own."""
    _check_page(args.to)
    reports: dict[str, evaluation.RobustnessReport] = {}
    for path in args.reports:
        report = evaluation.from_json(_file(path))
        same = next((other for other, one in reports.items() if one == report), None)
        if same is not None:
            raise ValueError(f"{same} and {path} hold the same report: name each report once.")
        reports[path] = report
    if len(reports) == 1:
        report.to_html(args.to)
    else:
        for sentence in html_comparison.differences(list(reports.values())):
            warnings.warn(sentence, stacklevel=2)
        html_comparison.write(reports, args.to)
    print(f"Written to {args.to}")
    return 0


def _check_page(path):
    """Raises ValueError if the page cannot be written there. The suffix keeps a report from being overwritten."""
    if not path.endswith(".html"):
        raise ValueError(f"--to is the page to write, such as {PAGE}. Received: {path}")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"--to={path}: there is no folder {folder}.")


def _file(path):
    """Returns the file of a report: the path itself, or report.json in the folder `path`."""
    if not os.path.exists(path):
        raise ValueError(f"There is no file or folder {path}.")
    if not os.path.isdir(path):
        return path
    file = os.path.join(path, "report.json")
    if not os.path.exists(file):
        raise ValueError(f"{path} holds no report.json: `keras-sat evaluate` writes one.")
    return file
