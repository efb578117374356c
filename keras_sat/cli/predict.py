"""The command `keras-sat predict`."""

import argparse
import json

from keras_sat import files, tables
from keras_sat.cli import flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_network_path(parser)
    parser.add_argument("images", nargs="+", type=files.expanded, help="image files, and folders of them")
    parser.add_argument("--top", type=int, default=1, help="classes to show of each image (default: 1)")
    flags.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Names the most probable classes of images, with their probabilities."""
    from keras_sat import run as run_lib

    predict = run_lib.open_predictor(args.folder)
    rows = []
    for path in run_lib.image_files(args.images):
        rows.append({"image": path, "classes": dict(list(predict(path).items())[: args.top])})
    print(json.dumps(rows, indent=2) if args.json else _table(rows))
    return 0


def _table(rows):
    def classes(row):
        return ", ".join(f"{name} {probability:.1%}" for name, probability in row["classes"].items())

    return tables.text(*((row["image"], classes(row)) for row in rows))
