"""The command `keras-sat`. Each subcommand is a file with its flags and its function, which calls the package."""

from keras_sat.cli._main import main, parse

__all__ = ["main", "parse"]
