"""The command `keras-sat train`."""

import argparse
import dataclasses
import functools
import shlex
import types
import typing
from typing import Any

from keras_sat import files
from keras_sat.cli import flags, messages


def add_flags(parser: argparse.ArgumentParser) -> None:
    from keras_sat import run as run_lib

    parser.add_argument(
        "--output", required=True, type=files.expanded, help="folder to write; holds no run yet, or this, unfinished"
    )
    parser.add_argument(
        "--continue", dest="go_on", action="store_true", help="go on with a run that ended, for more --epochs"
    )
    parser.add_argument("--recipe", choices=run_lib.RECIPES, help="published settings, which further flags change")
    for field in run_lib.fields():
        text = field.metadata["help"].replace("%", "%%")
        if field.default not in (None, ""):
            text += f" (default: {field.default})"
        parser.add_argument(f"--{field.name}", default=argparse.SUPPRESS, help=text, **_kind(field))


_TYPES = {"activation": flags.activation, "normalization": flags.normalization, "epsilon": flags.pixels}


def _kind(field: dataclasses.Field) -> dict[str, Any]:
    """Returns the options of `add_argument` for a value of a field's type."""
    if field.type is bool:
        return {"action": argparse.BooleanOptionalAction}
    if field.name in _TYPES:
        return {"type": _TYPES[field.name]}
    is_optional = isinstance(field.type, types.UnionType)
    return {"type": typing.get_args(field.type)[0] if is_optional else field.type}


def run(args: argparse.Namespace) -> int:
    """Trains a network adversarially and writes its folder: weights, run.json and TensorBoard logs.

    If it is killed, give the same command again: it continues from the last checkpoint.
    """
    from keras_sat import run as run_lib

    given = {field.name for field in run_lib.fields()} & set(vars(args))
    settings = run_lib.RECIPES[args.recipe].settings if args.recipe else {}
    config = run_lib.Run(**settings | {name: getattr(args, name) for name in given})
    _, is_finished = run_lib.train(config, args.output, args.go_on, functools.partial(print, flush=True))
    if not is_finished:
        return messages.interrupted(args.output)
    print(f"Trained. Next: {messages.command_prefix()}keras-sat evaluate {shlex.quote(args.output)}")
    return 0
