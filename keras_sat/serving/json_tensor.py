"""Converts JSON to tensors and back, by the rules of TF Serving's util/json_tensor.cc.

C++ functions that comments name are in that file.
"""

import base64
import itertools
import json
import math
import re
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from keras_sat.serving.status import Status

_INTEGERS = (tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint32, tf.uint64)
_BASE64 = re.compile(rb"([A-Za-z0-9+/]*)([=.]*)")


class _Constant(float):
    """A number that is written as NaN, Infinity or -Infinity in a request."""


# The types of JSON values that each type of tensor accepts (AddValueToTensor).
_ACCEPTS: dict = {tf.float32: {int, float, _Constant}, tf.float64: {int, float, _Constant}, tf.bool: {bool}}
_ACCEPTS |= {tf.string: {str, dict}} | dict.fromkeys(_INTEGERS, {int})


def parsed(body: bytes) -> dict[str, Any]:
    """Parses the body of a request, which must be a JSON object.

    As in ParseJson, NaN and Infinity are numbers, a byte order mark is skipped, strings need not be valid UTF-8, and
    text after the object is ignored.

    Raises:
        Status: INVALID_ARGUMENT if the body is not a JSON object, or its "signature_name" is not a string.
    """
    text = body.decode("utf-8-sig", "surrogateescape").lstrip(" \t\r\n")
    if not text:
        raise _invalid("JSON Parse error: The document is empty")
    try:
        fields, _ = json.JSONDecoder(parse_constant=_Constant).raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"JSON Parse error: {error}") from error
    if not isinstance(fields, dict):
        raise _invalid(f"JSON Value: {_shown(fields)} Is not object")
    if not isinstance(fields.get("signature_name", ""), str):
        raise _invalid(
            f"JSON Value: {_shown(fields)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return fields


def inputs(fields: dict[str, Any], infos: dict[str, meta_graph_pb2.TensorInfo]) -> tuple[dict[str, np.ndarray], bool]:
    """Converts the inputs of a request to arrays.

    Args:
        fields: the JSON object of the request, with "instances" (row format) or "inputs" (column format).
        infos: {input: TensorInfo} of the signature.

    Returns:
        {input: array}, and whether the request is in row format.

    Raises:
        Status: INVALID_ARGUMENT if the inputs do not match the signature, UNIMPLEMENTED for a type of tensor that JSON
            cannot be converted to.
    """
    if "instances" in fields and "inputs" in fields:
        raise _invalid(
            f"JSON Value: {_shown(fields)} Not formatted correctly expecting only one of 'inputs' or 'instances' keys "
            "to exist"
        )
    if "instances" in fields:
        return _rows(fields["instances"], infos), True
    if "inputs" in fields:
        return _columns(fields["inputs"], infos), False
    raise _invalid("Missing 'inputs' or 'instances' key")


def outputs(arrays: dict[str, np.ndarray], in_rows: bool) -> dict[str, Any]:
    """Converts {output: array} to the JSON object of an answer.

    Args:
        arrays: the outputs.
        in_rows: whether to use the row format ("predictions") or the column format ("outputs").

    Raises:
        Status: INVALID_ARGUMENT for the row format if the outputs have no common batch size.
    """
    sizes = {array.shape[:1] for array in arrays.values()}
    if in_rows and (len(sizes) > 1 or () in sizes):
        raise _invalid("The outputs have no batch size in common: ask for them in the columnar format")
    key = "predictions" if in_rows else "outputs"
    columns = {name: _values(name, array) for name, array in arrays.items()}
    if len(columns) == 1:
        return {key: next(iter(columns.values()))}
    if in_rows:
        return {key: [dict(zip(columns, row)) for row in zip(*columns.values())]}
    return {key: columns}


def _rows(instances, infos):
    """Returns {input: array} of the row format, a list of instances."""
    if not isinstance(instances, list):
        raise _invalid(f"JSON Value: {_shown(instances)} Expecting 'instances' to be an list/array")
    if not instances:
        raise _invalid("JSON Value: [] No values in 'instances' array")
    if not isinstance(instances[0], dict) and len(infos) > 1:
        raise _invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = _is_named(instances[0])
    rows = {}
    for number, instance in enumerate(instances):
        if _is_named(instance) != named:
            expected, got = ("object", "list") if named else ("value/list", "object")
            raise _invalid(f"Expecting {expected} but got {got} at item {number} of input list")
        try:
            _add(rows, instance if named else {min(infos): instance}, infos)
        except Status as error:
            raise _invalid(
                f"Failed to process element: {number} of 'instances' list. Error: {error.code}: {error.message}"
            ) from error
    return {name: np.stack(arrays) for name, arrays in rows.items()}


def _add(rows, instance, infos):
    """Appends the arrays of an instance to {input: [array, ...]}. All arrays of an input must have one shape."""
    for name, value in instance.items():
        if name not in infos:
            raise _invalid(f"JSON object: does not have named input: {name}")
        array = _array(value, infos[name])
        arrays = rows.setdefault(name, [])
        arrays.append(array)
        if array.shape != arrays[0].shape:
            raise _invalid(f"Expecting shape {list(arrays[0].shape)} but got: {list(array.shape)}")
    if instance.keys() != infos.keys():
        raise _invalid(f"JSON object: {_shown(instance)} keys must be equal to: {','.join(sorted(infos))}")


def _columns(values, infos):
    """Returns {input: array} of the column format, an object with the whole batch of each input."""
    if not _is_named(values):
        if len(infos) > 1:
            raise _invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        values = {min(infos): values}
    for name in infos:
        if name not in values:
            raise _invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _array(values[name], info) for name, info in infos.items()}


def _is_named(value):
    """Returns whether a JSON value is an object with a value for each input."""
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value):
    return value.keys() == {"b64"} and isinstance(value["b64"], str)


def _array(value, info):
    """Converts a JSON value (nested lists) to an array of the type that the signature requires."""
    dtype = tf.as_dtype(info.dtype)
    if dtype not in _ACCEPTS:
        raise Status("UNIMPLEMENTED", f"Conversion of JSON Value: {_shown(value)} to type: {_name(dtype)}")
    shape = _shape(value)
    leaves = _leaves(value, shape)
    if unexpected := set(map(type, leaves)) - _ACCEPTS[dtype]:
        if list in unexpected:
            raise _invalid(f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}")
        raise _unexpected(next(leaf for leaf in leaves if type(leaf) in unexpected), dtype)
    try:
        return _flat(leaves, dtype).reshape(shape)
    except ValueError as error:  # NumPy has a limit to the number of dimensions
        raise _invalid(f"tensor parsing error: {error}") from error


def _shape(value):
    """Returns the shape of nested lists, by the first list of each level (GetDenseTensorShape)."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _leaves(value, shape):
    """Returns the values inside nested lists, which must have this shape, as a flat list (FillTensorProto)."""
    level = [value]
    for depth, size in enumerate(shape):
        for one in level:
            if type(one) is not list:
                raise _invalid(
                    f"JSON Value: {_shown(one)} found at incorrect level: {depth + 1} in the JSON DOM. "
                    f"Expected at level: {len(shape)}"
                )
            if len(one) != size:
                raise _invalid(
                    f"Encountered list at unexpected size: {len(one)} at level: {depth} expected size: {size}"
                )
        level = list(itertools.chain.from_iterable(level))
    return level


def _flat(leaves, dtype):
    """Converts a flat list of JSON values to a flat array."""
    if dtype == tf.string:
        return np.array([_bytes(leaf) for leaf in leaves], object)
    if dtype.is_floating:
        with np.errstate(over="ignore"):  # numbers too large for float32 become infinite, as in C++
            return _floats(leaves).astype(dtype.as_numpy_dtype)
    if dtype.is_integer and leaves and not dtype.min <= min(leaves) <= max(leaves) <= dtype.max:
        raise _unexpected(next(leaf for leaf in leaves if not dtype.min <= leaf <= dtype.max), dtype)
    return np.array(leaves, dtype.as_numpy_dtype)


def _floats(leaves):
    """Converts numbers to float64. As in RapidJSON, numbers that are too large for it are an error."""
    try:
        array = np.array(leaves, np.float64)
        too_big = np.isinf(array).any() and any(type(leaf) is float and math.isinf(leaf) for leaf in leaves)
    except OverflowError:  # an integer that is too large
        too_big = True
    if too_big:
        raise _invalid("JSON Parse error: Number too big to be stored in double.")
    return array


def _bytes(value):
    if isinstance(value, dict):
        return _from_base64(value)
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise _invalid("JSON Parse error: The surrogate pair in string is invalid.") from error


def _from_base64(value):
    """Decodes base64 as absl::Base64Unescape does (strings/escaping.cc).

    White space is ignored. Padding is "=" or ".", and may be missing.
    """
    if not _is_base64(value):
        raise _invalid(f"JSON Value: {_shown(value)} not formatted correctly for base64 data")
    match = _BASE64.fullmatch(b"".join(value["b64"].encode("utf-8", "replace").split()))
    missing = -len(match[1]) % 4 if match else 3
    if missing == 3 or len(match[2]) not in (0, missing):
        raise _invalid("Unable to base64 decode")
    return base64.b64decode(match[1] + b"=" * missing)


def _values(name, array):
    """Converts an array to nested lists.

    A float32 is written with the fewest digits that identify it. Strings become {"b64": ...} if the name of the output
    ends in "_bytes".
    """
    if array.dtype.kind == "f":
        return array.astype(str).astype(np.float64).tolist()
    if array.dtype != object:
        return array.tolist()
    texts = np.empty(array.shape, object)
    for place in np.ndindex(array.shape):
        value = array[place]
        is_bytes = name.endswith("_bytes")
        texts[place] = {"b64": base64.b64encode(value).decode()} if is_bytes else value.decode(errors="replace")
    return texts.tolist()


def _invalid(message):
    return Status("INVALID_ARGUMENT", message)


def _unexpected(value, dtype):
    kinds = {dict: "Object", str: "String", int: "Number", float: "Number", _Constant: "Number", type(None): "Null"}
    kind = kinds.get(type(value)) or str(value)  # True or False
    return _invalid(f"JSON Value: {_shown(value)} Type: {kind} is not of expected type: {_name(dtype)}")


def _name(dtype):
    return types_pb2.DataType.Name(dtype.as_datatype_enum).removeprefix("DT_").lower()


def _shown(value):
    """Returns the first 256 characters of a JSON value. Only these are encoded, so a large value costs no time."""
    return "".join(itertools.islice(json.JSONEncoder().iterencode(value), 256))[:256]
