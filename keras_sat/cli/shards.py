"""The flag --shard: several processes attack parts of a dataset, and the last to end merges their reports."""

import argparse
import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from keras_sat.evaluation import CertificationReport, RobustnessReport, identity, report_files

Report = TypeVar("Report", RobustnessReport, CertificationReport)


def add_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shard", default="0/1", help="K/N: the K-th of N parts; the last to end merges the reports")


def parse(text: str) -> tuple[int, int]:
    """Returns (k, n) of the text K/N. Raises ValueError for another text."""
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise ValueError(f"shard must be K/N with K < N, such as 0/4. Received: {text!r}")
    return int(k), int(n)


def whole(
    report: Report,
    folder: str,
    name: str,
    shard: tuple[int, int],
    *,
    table: str,
    settings: dict[str, Any],
    read: Callable[[str], Report],
    merge: Callable[[Sequence[Report]], Report],
) -> Report | None:
    """Writes the report of a part, and says so. Returns the report of the whole dataset if all parts are there.

    Args:
        report: the report of this part.
        folder: the folder of the reports, see `report_files`.
        name: file name of the report, without its ending.
        shard: (k, n), the k-th of n parts. The only part, (0, 1), is the whole: it is returned, and not written.
        table: the report as text, which is printed.
        settings: what the parts of one evaluation have in common, beside the report's context.
        read: returns the report in a file.
        merge: returns the report of the whole dataset from those of its parts.

    Returns:
        The report of the whole dataset. None if parts are missing, or if another process has merged them.
    """
    number, n = shard
    if n == 1:
        return report
    digest = identity.digest({"settings": settings, **report.context})
    parts = [os.path.join(folder, report_files.FOLDER, f"{name}-{digest}-{k}-of-{n}.json") for k in range(n)]
    report.to_json(parts[number])
    print(f"\n{table}\n\nWritten to {parts[number]}")
    missing = [str(k) for k, part in enumerate(parts) if not os.path.exists(part)]
    if missing and str(number) not in missing:
        print(f"It will be merged with the shards {', '.join(missing)}, which are not there yet.")
        return None
    try:
        merged = merge([read(part) for part in parts])
    except FileNotFoundError:
        print("Another process, which ended at the same time, has merged the shards.")
        return None
    for part in parts:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)
    return merged
