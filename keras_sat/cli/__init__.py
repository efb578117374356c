"""The command `keras-sat`: one file a command, with its flags and its function. It parses, calls and prints."""

from keras_sat.cli._main import main, parse

__all__ = ["main", "parse"]
