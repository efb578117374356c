"""The common part of all commands: the parser, errors and warnings in one line, and exit statuses.

A command is a module with `add_flags(parser)` and `run(args)`. Its name is the name of the module, its help is the
docstring of `run`, and `run` returns the exit status.
"""

import argparse
import contextlib
import difflib
import os
import re
import signal
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

from absl import app, logging
from absl.flags import argparse_flags

from keras_sat import extras, interrupts
from keras_sat.cli import (
    certify,
    check,
    compare,
    convert,
    evaluate,
    export,
    messages,
    predict,
    quickstart,
    report,
    serve,
    train,
)
from keras_sat.cli import list as list_command
from keras_sat.data import folder
from keras_sat.version import __version__

COMMANDS: list[types.ModuleType] = [
    quickstart,
    train,
    evaluate,
    report,
    certify,
    export,
    compare,
    predict,
    check,
    serve,
    convert,
    list_command,
]
TRACEBACK = "KERAS_SAT_TRACEBACK"


def main() -> None:
    """Runs the command line. The exit status is 0, 1 for bad input, 2 for bad flags, 130 for Ctrl-C."""
    with _short_warnings(), _safe_ctrl_c():
        try:
            app.run(_run, flags_parser=parse)
        except KeyboardInterrupt:  # while flags are parsed, which may take seconds: the flags of `train` import Keras
            print("\nkeras-sat: interrupted", file=sys.stderr)
            sys.exit(messages.INTERRUPTED)


def parse(argv: list[str]) -> argparse.Namespace:
    """Returns the flags of a command line; `args.run(args)` runs its command.

    Args:
        argv: the words of the command line, such as ["keras-sat", "list", "--json"].

    Raises:
        SystemExit: for bad flags, after a line on stderr, and for --help and --version.
    """
    parser = _Parser(prog="keras-sat", description="Smooth adversarial training: train, evaluate and export.")
    parser.add_argument("--version", action="version", version=f"keras-sat {__version__}")
    text = "print a script that completes commands and flags: source <(keras-sat --print-completion bash)"
    parser.add_argument("--print_completion", action=_PrintCompletion, choices=("bash", "zsh"), help=text)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    parsers, words = {}, [_with_underscores(word) for word in argv[1:]]
    for command in COMMANDS:
        name, text = command.__name__.rpartition(".")[-1], command.run.__doc__
        sub = commands.add_parser(name, help=text.splitlines()[0], description=text, inherited_absl_flags=None)
        sub.set_defaults(run=command.run)
        sub.add_argument("--traceback", action="store_true", help=f"show all of an error, as {TRACEBACK}=1 does")
        # Only for the command that was given: the flags of `train` and `evaluate` import much of the package.
        if name in words[:1] or words[:1] and words[0].startswith("--print_completion"):
            command.add_flags(sub)
        parsers[name] = sub
    args, unknown = parser.parse_known_args(words)
    if unknown:
        parsers[args.command].refuse(unknown[0])
    return args


class _Parser(argparse_flags.ArgumentParser):
    """Reports wrong flags in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")
        raise AssertionError("exit ends the process")

    def refuse(self, flag: str) -> NoReturn:
        """Ends the process with a line about an unknown flag, which names the most similar known flag."""
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        nearest = difflib.get_close_matches(flag.partition("=")[0], known, 1)
        self.error(f"unknown flag {flag}" + (f": did you mean {nearest[0]}?" if nearest else ""))


class _PrintCompletion(argparse.Action):
    """Prints the completion script of a shell, and ends the process."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, shell: Any, option_string: str | None = None
    ) -> None:
        try:
            import shtab
        except ImportError:
            parser.exit(1, f"keras-sat: shell completion needs shtab: {extras.install('completion')}\n")
        print(shtab.complete(parser, shell))
        parser.exit()


def _with_underscores(word):
    """Returns --batch-size=10 as --batch_size=10; other words unchanged."""
    flag, equals, value = word.partition("=")
    if not flag.startswith("--"):
        return word
    prefix = next(prefix for prefix in ("--no-", "--no_", "--") if flag.startswith(prefix))
    prefix, rest = prefix.replace("_", "-"), flag[len(prefix) :]
    return prefix + rest.replace("-", "_") + equals + value


def _run(args):
    logging.set_verbosity(logging.ERROR)  # TFDS logs the paths that it reads, and warnings about its own code
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("\nkeras-sat: interrupted", file=sys.stderr)
        return messages.INTERRUPTED
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.traceback or os.environ.get(TRACEBACK):
            raise
        print(f"keras-sat: {one_line(error)}", file=sys.stderr)
        return 1


def one_line(error: Exception) -> str:
    """Returns the message of an exception in one line."""
    message = str(error)
    damaged = re.search(rf"{re.escape(folder.DAMAGED)}\] \[+(.*?)\]+$", message, re.MULTILINE)
    if damaged:
        return folder.damaged(damaged[1].strip("\"'"))
    if type(error).__module__.startswith("tensorflow"):
        message = re.sub(
            r"\{\{[^}]*\}\}|Graph execution error:|Detected at node.*?\n\n", "", getattr(error, "message", message)
        )
        return f"TensorFlow: {_first_line(message)} ({TRACEBACK}=1 shows all)"
    if isinstance(error, (ValueError, OSError, FloatingPointError, ImportError)):
        return " ".join(message.split())
    return f"{type(error).__name__}: {_first_line(message)} ({TRACEBACK}=1 shows all)"


def _first_line(text):
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


@contextlib.contextmanager
def _safe_ctrl_c() -> Iterator[None]:
    """A context in which Ctrl-C neither crashes TensorFlow (see `interrupts.handler`) nor is lost in a destructor.

    Python ignores exceptions in destructors, and TensorFlow's functions have some. Such a Ctrl-C is repeated.
    """
    hook, is_default = sys.unraisablehook, signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def repeat(unraisable):
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()  # when the destructor has ended
        else:
            hook(unraisable)

    sys.unraisablehook = repeat
    if is_default:
        signal.signal(signal.SIGINT, interrupts.handler)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if is_default:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """A context that prints each UserWarning as one line, without its line of source code, and hides other warnings."""

    def show(message, *_, **__):
        print(f"keras-sat: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield
