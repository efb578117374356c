"""Flags, and types of flags, that several commands share."""

import argparse
import json
import re
from typing import Any

from keras_sat import files
from keras_sat.evaluation import attack_names


def activation(text: str) -> str | dict:
    """Returns the name of an activation, or its configuration parsed from JSON."""
    return _name_or_json(text, "{")


def normalization(text: str) -> str | list:
    """Returns the name of a normalization, or [mean, std] parsed from JSON."""
    return _name_or_json(text, "[")


def _name_or_json(text, start):
    """Returns the text, or what it is in JSON if it begins with `start`."""
    if not text.startswith(start):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a name and not JSON: {text!r} ({error})") from error


def pixels(text: str) -> float:
    """Returns an epsilon in pixels 0..255. Raises ArgumentTypeError for "8/255".

    (`LinfBall` warns about an epsilon below one pixel.)
    """
    if re.fullmatch(r"[\d.]+/255", text):
        raise argparse.ArgumentTypeError(f"{text!r}: epsilon is in pixels 0..255, --epsilon={text.partition('/')[0]}")
    return float(text)


def curve(text: str) -> str:
    """Returns the text of one epsilon, or of several separated by commas, unchanged, after a check of each."""
    for part in text.split(","):
        try:
            pixels(part)
        except ValueError as error:
            message = f"epsilon must be a number, or several with commas. Received: {text!r}"
            raise argparse.ArgumentTypeError(message) from error
    return text


def positive(text: str) -> int:
    """Returns an integer >= 1. Raises ArgumentTypeError for another text."""
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"an integer >= 1 was expected. Received: {text!r}")
    return int(text)


def known_epsilon(norm: str, known: Any, without: str) -> float:
    """Returns the epsilon that a command takes if no --epsilon is given.

    Args:
        norm: norm of the attack.
        known: has `norm` and `epsilon`, the threat model that the network was trained for; epsilon may be None.
        without: the error message if this epsilon is not known.

    Raises:
        ValueError: if it is not known, or belongs to another norm.
    """
    if known.epsilon is None:
        raise ValueError(without)
    if norm != known.norm:
        raise ValueError(
            f"The known epsilon, {known.epsilon:g}, is for --norm={known.norm}: say --epsilon for --norm={norm} too."
        )
    return known.epsilon


def add_network(parser: argparse.ArgumentParser, of: str, required: str) -> None:
    """Adds the flags --activation, --form and --normalization, which say what a network is besides its --model.

    Args:
        parser: the parser of the command.
        of: for the help texts, what they belong to, such as "--model".
        required: for the help text, when --activation must be given, and its default.
    """
    from keras_sat.run import configuration

    parser.add_argument("--activation", type=activation, help=f"of {of}; {required}")
    parser.add_argument("--form", help=f"published variant of {of}: see `keras-sat list`; default: its first one")
    text = f"of {of}: {configuration.NORMALIZATION_HELP}; default: published"
    parser.add_argument("--normalization", type=normalization, help=text)


def add_network_path(parser: argparse.ArgumentParser, more: str = "", **options: Any) -> None:
    """Adds the positional argument `folder`, the path of a run or an export. `more` is added to its help text."""
    text = f"folder of a run, folder of a SavedModel, or a .tflite file{more}"
    parser.add_argument("folder", type=files.expanded, help=text, **options)


def add_run_folder(parser: argparse.ArgumentParser) -> None:
    """Adds the positional argument `folder`, the folder of a run."""
    parser.add_argument("folder", type=files.expanded, help="folder of a run, written by `keras-sat train`")


def add_attack(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --attack. `evaluation.attack_names.from_names` parses its value."""
    text = f"{', '.join(attack_names.names())}; several with commas (default: pgd-50)"
    parser.add_argument("--attack", default="pgd-50", help=text)


def add_data(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the flags for the dataset of an evaluation. `default` names the default dataset in the help text."""
    parser.add_argument("--dataset", help=f"to evaluate on: a name or a folder; default: {default}")
    parser.add_argument("--data_dir", help="folder of prepared TFDS datasets; default: the run's, or TFDS' own")
    parser.add_argument("--split", help="such as test[:500]; of ImageNet also robustbench; default: all of test")
    parser.add_argument("--skip_damaged", action="store_true", help="leave out files of a folder that cannot be read")
    parser.add_argument("--batch_size", type=positive, default=200, help="images in a batch (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same figures (default: 0)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --json."""
    parser.add_argument("--json", action="store_true", help="print JSON")
