"""The command `keras-sat check`."""

import argparse

from keras_sat import data
from keras_sat.cli import messages


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="a folder of images, SPLIT/CLASS/*.jpg, or a prepared TFDS dataset")
    parser.add_argument("--data_dir", help="folder of prepared TFDS datasets; default: TFDS' own")


def run(args: argparse.Namespace) -> int:
    """Reads all images of a dataset once: counts them, and lists damaged images and images in two splits or classes.

    The exit status is 1 if there are any.
    """
    messages.say(f"Reading the images of {args.dataset} ...")
    findings = data.check(args.dataset, args.data_dir)
    print(findings.table())
    return 0 if findings.is_clean else 1
