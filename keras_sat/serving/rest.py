"""TF Serving's REST interface as a WSGI application: model status, metadata, and predict in row and column format.

The interface is described at https://www.tensorflow.org/tfx/serving/api_rest. C++ files that comments name are in the
source code of TF Serving.
"""

import http
import json
import re
import urllib.parse
import zlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2

from keras_sat.serving import json_tensor
from keras_sat.serving.servable import DEFAULT, Servable
from keras_sat.serving.status import Status, failure
from keras_sat.serving.versions import Versions, version_number

# As in http_rest_api_util.cc, these patterns match the path with its query, before percent-decoding. The model name and
# the label are decoded afterwards.
_OF_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(rf"(?ai)/v1/models/(?P<name>[^/:]+){_OF_VERSION}:(?P<method>classify|regress|predict)")
_STATUS = re.compile(rf"(?ai)/v1/models(?:/(?P<name>[^/:]+))?{_OF_VERSION}(?:/(?P<metadata>metadata))?")
# An optional scheme and host, then the characters of RFC 3986. libevent rejects others (evhttp_request.cc).
_CHARACTERS = r"(?:[a-z0-9._~!$&'()*+,;=:@/?-]|%[0-9a-f]{2})*"
_TARGET = re.compile(rf"(?ai)(?:[a-z][a-z0-9.+-]*:)?(?://[^/?#]*)?(?P<path>{_CHARACTERS}(?:#{_CHARACTERS})?)")
# From evhttp_server.cc. libevent answers other methods with 501.
_METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")


class Application:
    """The WSGI application that answers REST requests.

    Args:
        served: the versions of the model that is served.
        max_bytes: largest size of an uncompressed request body in bytes. Larger ones fail with 413.
    """

    def __init__(self, served: Versions, max_bytes: int) -> None:
        self._versions, self._max_bytes = served, max_bytes

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """Answers a request. See PEP 3333 for the arguments."""
        method = environ["REQUEST_METHOD"]
        try:
            code, answer = 200, self._answer(method, environ)
        except Exception as error:  # the client gets an answer to every failure, and the server continues
            status = failure(error)
            code, answer = status.http, {"error": status.message}
        body = json.dumps(answer, indent=1).encode() if answer else b""
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(f"{code} {_phrase(code)}", headers)
        return [] if method == "HEAD" else [body]  # RFC 9110; libevent sends a body even then

    def _answer(self, method, environ):
        path = _path(method, environ["REQUEST_URI"])
        if method == "OPTIONS":
            return _preflight(environ)
        if method == "POST" and (match := _PREDICT.fullmatch(path)):
            spec = _spec(match)
            if match["method"] == "predict":
                return self._predict(spec, _body(environ, self._max_bytes))
            if match["method"] in ("classify", "regress"):
                raise Status(
                    "UNIMPLEMENTED", "classify and regress take tf.Examples; an image classifier is asked by predict"
                )
        if method == "GET" and (match := _STATUS.fullmatch(path)):
            spec = _spec(match)
            if match["metadata"] == "metadata":
                return metadata_as_json(metadata(self._versions.get(spec)))
            return _as_dict(self._versions.status(spec))
        raise Status(
            "INVALID_ARGUMENT", f"Malformed request: {method} {path}"
        )  # as http_rest_api_handler.cc, for HEAD too

    def _predict(self, spec, body):
        fields = json_tensor.parsed(body)
        servable = self._versions.get(spec)
        name = fields.get("signature_name") or DEFAULT
        if name not in servable.signature_defs:
            raise Status("INVALID_ARGUMENT", f'Serving signature name: "{name}" not found in signature def')
        spec.signature_name = name
        infos = dict(servable.signature_defs[name].inputs)
        if not infos:
            raise Status("INVALID_ARGUMENT", f"Failed to get input map for signature: {name}")
        request = predict_pb2.PredictRequest(model_spec=spec)
        arrays, in_rows = json_tensor.inputs(fields, infos)
        for key, array in arrays.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(array, infos[key].dtype))
        outputs = servable.predict(request).outputs
        return json_tensor.outputs({key: tf.make_ndarray(proto) for key, proto in sorted(outputs.items())}, in_rows)


def metadata(servable: Servable) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Returns the metadata of a version: its signatures."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = servable.name
    response.model_spec.version.value = servable.version
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in servable.signature_defs.items():
        signatures.signature_def[name].CopyFrom(signature)
    response.metadata["signature_def"].Pack(signatures)
    return response


def metadata_as_json(response: get_model_metadata_pb2.GetModelMetadataResponse) -> dict[str, Any]:
    """Converts metadata to the JSON object that TF Serving's REST interface returns."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return {"model_spec": _as_dict(response.model_spec), "metadata": {"signature_def": _as_dict(signatures)}}


def _as_dict(message):
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _phrase(code):
    return http.HTTPStatus(code).phrase if code != 499 else "Client Closed Request"


def _path(method, uri):
    """Returns the path of a request, still percent-encoded and with its query; raises Status for an invalid one."""
    if method not in _METHODS:
        raise Status("UNIMPLEMENTED", f"Not implemented: {method}")
    match = _TARGET.fullmatch(uri)
    if not match:
        raise Status("INVALID_ARGUMENT", f"Malformed request: {method} {uri}")
    if not re.match("(?i)/v1/", match["path"]):  # http_rest_api_util.h
        raise Status("NOT_FOUND", f"Not found: {match['path']}")
    return match["path"]


def _preflight(environ):
    """Answers OPTIONS with an empty body. http_server.cc sends no CORS headers by default."""
    if not re.search("https?://", environ.get("HTTP_ORIGIN", "")):
        raise Status("FAILED_PRECONDITION", "Origin header is missing in CORS preflight")


def _body(environ, max_bytes):
    """Returns the uncompressed body of a request. As in evhttp_request.cc, it may be gzipped; answers never are."""
    body = environ["wsgi.input"].read()
    if not body or "gzip" not in environ.get("HTTP_CONTENT_ENCODING", ""):
        return body
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        text = stream.decompress(body, max_bytes)
    except zlib.error as error:
        raise _damaged() from error
    if len(text) == max_bytes:
        raise Status("RESOURCE_EXHAUSTED", f"The uncompressed body exceeds {max_bytes} bytes", http=413)
    if not stream.eof or stream.unused_data:  # cut off, or several members: invalid in gzip_zlib.cc
        raise _damaged()
    return text


def _damaged():
    return Status("INVALID_ARGUMENT", "Failed to uncompress the gzipped body")


def _spec(match):
    """Returns the ModelSpec of a path that matches `_PREDICT` or `_STATUS`."""
    if not match["name"]:
        raise Status("INVALID_ARGUMENT", "Missing model name in request.")
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(match["name"]))
    if match["version"]:
        version = version_number(match["version"])
        if version is None:
            raise Status("INVALID_ARGUMENT", f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = version
    elif match["label"]:
        spec.version_label = urllib.parse.unquote(match["label"])
    return spec
