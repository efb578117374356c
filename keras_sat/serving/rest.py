"""TF Serving's REST interface, as a WSGI application.

https://www.tensorflow.org/tfx/serving/api_rest: status, metadata and predict, in row and columnar format.
"""

import base64
import binascii
import http
import json
import re

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2

from keras_sat.serving import predict
from keras_sat.serving.status import HTTP, Status, failure

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICT, _STATUS, _METADATA = (re.compile(_MODEL + end) for end in (r":predict", "", "/metadata"))
_UNSERVED = re.compile(_MODEL + r":(classify|regress)")


class Application:
    """The WSGI application of the versions of a model."""

    def __init__(self, versions):
        self._versions = versions

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        try:
            code, answer = 200, self._answer(method, path, environ)
        except Exception as error:  # every failure is answered, and the server goes on
            status = failure(error)
            code, answer = HTTP[status.code], {"error": status.message}
        body = json.dumps(answer, indent=1).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(f"{code} {_phrase(code)}", headers)
        return [body]

    def _answer(self, method, path, environ):
        if not path.startswith("/v1/"):
            raise Status("NOT_FOUND", f"Not found: {path}")
        if method == "POST" and (match := _PREDICT.fullmatch(path)):
            return self._predict(_spec(match), environ["wsgi.input"].read())
        if method == "POST" and _UNSERVED.fullmatch(path):
            raise Status(
                "UNIMPLEMENTED", "classify and regress take tf.Examples; an image classifier is asked by predict"
            )
        if method == "GET" and (match := _METADATA.fullmatch(path)):
            return metadata_as_json(metadata(self._versions.get(_spec(match))))
        if method == "GET" and (match := _STATUS.fullmatch(path)):
            return _as_dict(self._versions.status(_spec(match)))
        raise Status("INVALID_ARGUMENT", f"Malformed request: {method} {path}")

    def _predict(self, spec, body):
        fields = _parsed(body)
        servable = self._versions.get(spec)
        name = fields.get("signature_name") or predict.DEFAULT
        if name not in servable.signature_defs:
            raise Status("INVALID_ARGUMENT", f'Serving signature name: "{name}" not found in signature def')
        spec.signature_name = name
        infos = servable.signature_defs[name].inputs
        request = predict_pb2.PredictRequest(model_spec=spec)
        is_row = "instances" in fields
        for key, array in (_rows if is_row else _columns)(fields, infos).items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
        outputs = predict.run(servable, request).outputs
        values = {key: _as_json(key, tf.make_ndarray(proto)) for key, proto in sorted(outputs.items())}
        return {"predictions": _in_rows(values)} if is_row else {"outputs": _alone(values)}


def metadata(servable):
    """Returns the GetModelMetadataResponse of a version."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = servable.name
    response.model_spec.version.value = servable.version
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in servable.signature_defs.items():
        signatures.signature_def[name].CopyFrom(signature)
    response.metadata["signature_def"].Pack(signatures)
    return response


def metadata_as_json(response):
    """Returns a GetModelMetadataResponse as TF Serving's REST interface gives it."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return {"model_spec": _as_dict(response.model_spec), "metadata": {"signature_def": _as_dict(signatures)}}


def _as_dict(message):
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _phrase(code):
    return http.HTTPStatus(code).phrase if code != 499 else "Client Closed Request"


def _spec(match):
    spec = model_pb2.ModelSpec(name=match["name"])
    if match["version"]:
        if int(match["version"]) >= 2**63:
            raise Status("INVALID_ARGUMENT", f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = int(match["version"])
    elif match["label"]:
        spec.version_label = match["label"]
    return spec


def _parsed(body):
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Status("INVALID_ARGUMENT", f"JSON Parse error: {error}") from error
    if not isinstance(fields, dict):
        raise Status("INVALID_ARGUMENT", "JSON Value: Is not object")
    if not isinstance(fields.get("signature_name", ""), str):
        raise Status("INVALID_ARGUMENT", "'signature_name' key must be a string value.")
    if ("instances" in fields) == ("inputs" in fields):
        raise Status("INVALID_ARGUMENT", "Expecting one of the keys 'inputs' and 'instances'")
    return fields


def _rows(fields, infos):
    """Returns {input: array} of the row format: a list of instances."""
    instances = fields["instances"]
    if not isinstance(instances, list) or not instances:
        raise Status("INVALID_ARGUMENT", "'instances' must be a list/array of at least one value")
    if not _is_named(instances[0]):
        if len(infos) > 1:
            raise Status("INVALID_ARGUMENT", f"instances must be objects with the keys {sorted(infos)}")
        instances = [{next(iter(infos)): value} for value in instances if not _is_named(value)]
    for number, instance in enumerate(instances):
        if not _is_named(instance) or instance.keys() != set(infos):
            raise Status("INVALID_ARGUMENT", f"Failed to process element: {number}: keys must be {sorted(infos)}")
    if len(instances) != len(fields["instances"]):
        raise Status("INVALID_ARGUMENT", "instances must be all objects or all values")
    return {key: _array(key, [instance[key] for instance in instances], info) for key, info in infos.items()}


def _columns(fields, infos):
    """Returns {input: array} of the columnar format: one value for each input, with its batch axis."""
    inputs = fields["inputs"]
    if not _is_named(inputs):
        if len(infos) > 1:
            raise Status("INVALID_ARGUMENT", f"inputs must be an object with the keys {sorted(infos)}")
        inputs = {next(iter(infos)): inputs}
    for key in infos:
        if key not in inputs:
            raise Status("INVALID_ARGUMENT", f"Missing named input: {key} in 'inputs' object.")
    return {key: _array(key, inputs[key], info) for key, info in infos.items()}


def _is_named(value):
    return isinstance(value, dict) and value.keys() != {"b64"}


def _array(name, value, info):
    """Returns a JSON value as an array of the type that the signature asks for."""
    dtype = tf.as_dtype(info.dtype)
    if dtype == tf.string:
        return np.array(_as_bytes(value), object)
    try:
        array = np.array(value)
        kinds = "iuf" if dtype.is_floating else "iu" if dtype.is_integer else "b"
        if array.dtype.kind not in kinds:
            raise ValueError(f"values are not of expected type: {dtype.name}")
        converted = array.astype(dtype.as_numpy_dtype)
        if dtype.is_integer and not np.array_equal(converted, array):
            raise ValueError(f"values do not fit {dtype.name}")
        return converted
    except (TypeError, ValueError) as error:
        raise Status("INVALID_ARGUMENT", f"JSON Value of {name}: {error}") from error


def _as_bytes(value):
    if isinstance(value, list):
        return [_as_bytes(one) for one in value]
    if isinstance(value, str):
        return value.encode()
    if not (isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)):
        raise Status("INVALID_ARGUMENT", f"JSON Value: {json.dumps(value)[:80]} is not of expected type: string")
    text = value["b64"].rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Status("INVALID_ARGUMENT", "Unable to base64 decode") from error


def _as_json(name, array):
    """Returns an array as lists; float32 by its shortest digits, bytes as {"b64": ...} if the name ends in _bytes."""
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


def _in_rows(values):
    if len({len(value) if isinstance(value, list) else -1 for value in values.values()}) != 1:
        raise Status("INVALID_ARGUMENT", "The outputs differ in batch size: ask for them in the columnar format")
    if len(values) == 1:
        return _alone(values)
    return [dict(zip(values, row)) for row in zip(*values.values())]


def _alone(values):
    return values if len(values) > 1 else next(iter(values.values()))
