"""The command `keras-sat train`."""

import argparse
import dataclasses
import shlex
import types
import typing
from typing import Any

from keras_sat import files
from keras_sat.cli import flags, messages


def add_flags(parser: argparse.ArgumentParser) -> None:
    from keras_sat import run as run_lib

    output = parser.add_argument(
        "--output",
        required=True,
        type=files.expanded,
        help="folder to write: a new one, or that of this run if it is unfinished",
    )
    parser.add_argument(
        "--cost",
        action=_WithoutOutput,
        nargs=0,
        default=False,
        output=output,
        help="print the time and memory that the training needs, and end; --output is not needed",
    )
    parser.add_argument(
        "--continue", dest="go_on", action="store_true", help="continue a finished run for more --epochs"
    )
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--recipe", choices=run_lib.RECIPES, help="published settings, which further flags change")
    begin.add_argument(
        "--config",
        type=files.expanded,
        help="settings of a run: its folder or run.json, which further flags change, for example --patience=none",
    )
    for field in run_lib.fields():
        text = field.metadata["help"].replace("%", "%%")
        if field.default not in (None, ""):
            text += f" (default: {field.default})"
        parser.add_argument(f"--{field.name}", default=argparse.SUPPRESS, help=text, **_kind(field))


class _WithoutOutput(argparse.Action):
    """A flag beside which --output may be left out."""

    def __init__(self, *args: Any, output: argparse.Action, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.output = output

    def __call__(self, parser: Any, namespace: argparse.Namespace, *_: Any) -> None:
        setattr(namespace, self.dest, True)
        self.output.required = False


_TYPES = {"activation": flags.activation, "normalization": flags.normalization, "epsilon": flags.pixels}


def _kind(field: dataclasses.Field) -> dict[str, Any]:
    """Returns the options of `add_argument` for a value of a field's type."""
    if field.type is bool:
        return {"action": argparse.BooleanOptionalAction}
    if field.name in _TYPES:
        return {"type": _TYPES[field.name]}
    if not isinstance(field.type, types.UnionType):
        return {"type": field.type}
    kind = typing.get_args(field.type)[0]
    return {"type": kind if field.name in _OWN_NONE else _or_none(kind)}


_OWN_NONE = ("guard", "weights")  # "none" is a value of theirs


def _or_none(kind):
    """Returns a function that reads a value of an optional flag: "none" leaves it out, also that of a --config."""

    def read(text):
        return None if text == "none" else kind(text)

    read.__name__ = kind.__name__  # for the error message of argparse
    return read


def run(args: argparse.Namespace) -> int:
    """Trains a network adversarially and writes its folder: weights, run.json and TensorBoard logs.

    If it is killed, give the same command again: it continues from the last checkpoint.
    """
    from keras_sat import run as run_lib

    config = _config(args)
    messages.say(f"Reading the images of {config.dataset}, and building the network ...")
    if args.cost:
        messages.say("Measuring a few steps; the first one is compiled (up to a minute) ...")
        print(run_lib.cost(config))
        return 0
    _, is_finished = run_lib.train(config, args.output, args.go_on, messages.say)
    if not is_finished:
        return messages.interrupted(args.output)
    print(f"Training finished. Next: {messages.command_prefix()}keras-sat evaluate {shlex.quote(args.output)}")
    return 0


_NETWORK = ("model", "form", "activation", "normalization")


def _config(args):
    """Returns the `Run` of the flags."""
    from keras_sat import run as run_lib

    recipe = run_lib.RECIPES.get(args.recipe)
    settings = recipe.settings if recipe else run_lib.read_settings(args.config) if args.config else {}
    given = {field.name: getattr(args, field.name) for field in run_lib.fields() if field.name in args}
    if given.get("validation") and given.get("validation_split"):
        raise ValueError("Say --validation, which holds out training images, or --validation_split, not both.")
    if "validation" in given:
        settings = settings | {"validation_split": None}
    if args.config and run_lib.says_network(given.get("weights")):
        settings = {name: value for name, value in settings.items() if name not in _NETWORK}
    settings = settings | given
    if recipe:
        recipe.check(settings)
    return run_lib.Run(**settings)
