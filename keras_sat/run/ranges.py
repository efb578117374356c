"""Checks of the values of a configuration: choices and ranges."""

import dataclasses
import numbers
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

Range: TypeAlias = tuple[Callable[[Any], bool], str]  # a test of a value, and which values are valid

POSITIVE: Range = (lambda value: value > 0, "positive")
AT_LEAST_0: Range = (lambda value: value >= 0, "at least 0")
AT_LEAST_1: Range = (lambda value: value >= 1, "at least 1")
BELOW_1: Range = (lambda value: 0 <= value < 1, "at least 0, and less than 1")
UP_TO_1: Range = (lambda value: 0 <= value <= 1, "in 0..1")


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and bool(abs(value) <= sys.float_info.max)


_TYPES: dict[type, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool), "a whole number"),
    float: (_is_finite, "a finite number"),
    str: (lambda value: isinstance(value, str), "a text"),
    list: (lambda value: isinstance(value, (list, tuple)), "a list"),
    dict: (lambda value: isinstance(value, dict), "a dict"),
    types.NoneType: (lambda value: value is None, "null"),
}


def check_types(settings: Any, fields: Iterable[dataclasses.Field]) -> None:
    """Raises ValueError for a field whose value is not of its type: a file of settings may hold any JSON value.

    Args:
        settings: an object with the fields as attributes.
        fields: the fields. Each has one of the types bool, int, float, str, list, dict and None, or a union of them.
    """
    for field in fields:
        allowed = typing.get_args(field.type) or (field.type,)
        if not any(_TYPES[one][0](getattr(settings, field.name)) for one in allowed):
            expected = " or ".join(_TYPES[one][1] for one in allowed if one is not types.NoneType)
            raise error(field.name, getattr(settings, field.name), expected)


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
