"""Checks of the values of a configuration: choices and ranges."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

Range: TypeAlias = tuple[Callable[[Any], bool], str]  # a test of a value, and which values are valid

POSITIVE: Range = (lambda value: value > 0, "positive")
AT_LEAST_0: Range = (lambda value: value >= 0, "at least 0")
AT_LEAST_1: Range = (lambda value: value >= 1, "at least 1")
BELOW_1: Range = (lambda value: 0 <= value < 1, "at least 0, and less than 1")
UP_TO_1: Range = (lambda value: 0 <= value <= 1, "in 0..1")


def check(
    settings: Any, choices: Mapping[str, Iterable[Any]], ranges: Mapping[str, Range], optional: Iterable[str]
) -> None:
    """Raises ValueError for an attribute that is not one of its choices, or outside its range.

    Args:
        settings: an object with the attributes.
        choices: {name of an attribute: its valid values}.
        ranges: {name of an attribute: its range}.
        optional: names of attributes that may be None.
    """
    for name, valid in choices.items():
        value = getattr(settings, name)
        if value not in valid and not (value is None and name in optional):
            raise error(name, value, f"one of {', '.join(str(each) for each in valid if each is not None)}")
    for name, (is_valid, expected) in ranges.items():
        value = getattr(settings, name)
        if not (value is None and name in optional) and not _holds(is_valid, value):
            raise error(name, value, f"{expected}, or left out" if name in optional else expected)


def _holds(is_valid, value):
    try:
        return is_valid(value)
    except TypeError:  # a text in place of a number
        return False


def error(name: str, value: Any, expected: str) -> ValueError:
    """Returns the error for an attribute with an invalid value."""
    return ValueError(f"{name} must be {expected}. Received: {value!r}")
