import base64
import contextlib
import gzip
import http.client
import json
import re
import socket
import urllib.parse

import numpy as np
import pytest
import tensorflow as tf

from keras_sat.serving import Server

PREDICT = "/v1/models/net:predict"
DAMAGED = {"b64": base64.b64encode(b"no image").decode()}


def png(image):
    return {"b64": base64.b64encode(tf.io.encode_png(image).numpy()).decode()}


def test_predict_in_rows(ask, served, exported, pixels):
    logits = exported[1][0](pixels).numpy()
    code, answer = ask(served, PREDICT, {"instances": pixels.tolist()})
    assert code == 200
    assert set(answer) == {"predictions"}
    np.testing.assert_allclose([row["logits"] for row in answer["predictions"]], logits, atol=1e-5)
    assert [row["classes"] for row in answer["predictions"]] == logits.argmax(-1).tolist()
    named = {"signature_name": "serving_uint8", "instances": [{"images": image.tolist()} for image in pixels]}
    assert ask(served, PREDICT, named) == (200, answer)
    files = {"signature_name": "serving_bytes", "instances": [png(image) for image in pixels]}
    assert ask(served, "/v1/models/net/versions/1:predict", files) == (200, answer)


def test_predict_in_columns(ask, served, exported, pixels):
    logits = exported[1][0](pixels).numpy()
    code, answer = ask(served, PREDICT, {"inputs": pixels.tolist()})
    assert code == 200
    assert set(answer["outputs"]) == {"logits", "probabilities", "classes"}
    np.testing.assert_allclose(answer["outputs"]["logits"], logits, atol=1e-5)
    # A single output has no name in the answer. A float32 has the fewest digits that identify it.
    features = {"signature_name": "features", "inputs": {"images": pixels.tolist()}}
    code, answer = ask(served, PREDICT, features)
    np.testing.assert_array_equal(np.float32(answer["outputs"]), pixels.reshape(3, -1) * np.float32(1 / 255))
    assert max(len(str(value)) for row in answer["outputs"] for value in row) <= 12
    gradient = {"signature_name": "input_gradient", "inputs": {"images": pixels.tolist(), "labels": [0, 1, 2]}}
    code, answer = ask(served, PREDICT, gradient)
    assert np.shape(answer["outputs"]["gradient"]) == pixels.shape
    files = {"signature_name": "serving_bytes", "inputs": {"image_bytes": [png(image) for image in pixels]}}
    np.testing.assert_allclose(ask(served, PREDICT, files)[1]["outputs"]["logits"], logits, atol=1e-5)


def test_status_and_metadata(ask, served):
    status = {"error_code": "OK", "error_message": ""}
    one = {"version": "1", "state": "AVAILABLE", "status": status}
    for path in ("/v1/models/net", "/v1/models/net/versions/1"):
        assert ask(served, path) == (200, {"model_version_status": [one]})
    code, answer = ask(served, "/v1/models/net/metadata")
    assert answer["model_spec"] == {"name": "net", "signature_name": "", "version": "1"}
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["images"]["dtype"] == "DT_FLOAT"
    sizes = [dim["size"] for dim in signature["inputs"]["images"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "8", "8", "3"]
    assert signature["method_name"] == "tensorflow/serving/predict"


def rows(*instances, **more):
    return {"instances": list(instances), **more}


def nested(value, depth):
    for _ in range(depth):
        value = [value]
    return value


BAD = [
    (b"", 400, "JSON Parse error: The document is empty"),
    (b'{"instances": [', 400, "JSON Parse error"),
    (b"\xff\xfe{}", 400, "JSON Parse error"),
    (b"[" * 100_000, 400, "JSON Parse error"),
    (b'{"instances": [1e400]}', 400, "JSON Parse error: Number too big"),
    ([1, 2], 400, "Is not object"),
    (nested(1, 400), 400, "Is not object"),
    ({}, 400, "Missing 'inputs' or 'instances' key"),
    ({"inputs": 1, "instances": [1]}, 400, "only one of 'inputs' or 'instances'"),
    (rows(), 400, "No values in 'instances' array"),
    ({"instances": 7}, 400, "Expecting 'instances' to be an list"),
    ({"instances": None}, 400, "Expecting 'instances' to be an list"),
    # Ragged, empty and deep lists
    (rows([[1, 2], [3]]), 400, "element: 0 .* unexpected size: 1 at level: 1 expected size: 2"),
    (rows([[1, 2], 3]), 400, "Value: 3 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    (rows([1, [2]]), 400, "list at unexpected level: 1 expected < 1"),
    (rows([[], [1]]), 400, "unexpected size: 1 at level: 1 expected size: 0"),
    (rows([1, 2], [3]), 400, r"element: 1 .* Expecting shape \[2\] but got: \[1\]"),
    (rows(["a", ["b"]], signature_name="serving_bytes"), 400, "list at unexpected level: 1"),
    ({"inputs": [[1, 2], [3]]}, 400, "unexpected size: 1 at level: 1"),
    ({"inputs": {"images": [[1], 2]}}, 400, "Value: 2 found at incorrect level: 2"),
    (rows([]), 400, r"Received: float32 of shape \(1, 0\)"),
    ({"inputs": []}, 400, r"Received: float32 of shape \(0,\)"),
    (rows([[1.0]]), 400, r"must be float32 of shape \(None, 8, 8, 3\)"),
    (rows(nested(1, 70)), 400, "tensor parsing error"),
    ({"inputs": nested(1, 400)}, 400, "tensor parsing error"),
    ({"inputs": nested("a", 400), "signature_name": "serving_bytes"}, 400, "tensor parsing error"),
    # Values of a type that the signature does not have
    (rows("text"), 400, 'Value: "text" Type: String is not of expected type: float'),
    (rows("1.0"), 400, "Type: String is not of expected type: float"),
    (rows(None), 400, "Value: null Type: Null is not of expected type: float"),
    (rows([1, True]), 400, "Value: true Type: True is not of expected type: float"),
    (rows([1, {"b64": "AAAA"}]), 400, "Type: Object is not of expected type: float"),
    (rows(10**400), 400, "JSON Parse error: Number too big"),
    (rows([[[0, 0, 256]] * 8] * 8, signature_name="serving_uint8"), 400, "Value: 256 .* expected type: uint8"),
    (rows([[[0, -1, 7]] * 8] * 8, signature_name="serving_uint8"), 400, "Value: -1 .* expected type: uint8"),
    (rows(10**30, signature_name="serving_uint8"), 400, "expected type: uint8"),
    (rows([[[0, 0, 0.5]] * 8] * 8, signature_name="serving_uint8"), 400, "not of expected type: uint8"),
    (rows(float("nan"), signature_name="serving_uint8"), 400, "not of expected type: uint8"),
    (rows(1, signature_name="serving_bytes"), 400, "not of expected type: string"),
    (rows("\ud800", signature_name="serving_bytes"), 400, "surrogate pair"),
    # Objects
    (rows({"pixels": 1}), 400, "element: 0 .* does not have named input: pixels"),
    (rows({"images": 1}, 2), 400, "Expecting object but got list at item 1"),
    (rows(2, {"images": 1}), 400, "Expecting value/list but got object at item 1"),
    (rows({"images": 1}, signature_name="input_gradient"), 400, "keys must be equal to: images,labels"),
    (rows(1, signature_name="input_gradient"), 400, "expecting list of objects"),
    (rows(1, signature_name="serve"), 400, 'Serving signature name: "serve" not found'),
    (rows(1, signature_name=3), 400, "must be a string"),
    ({"signature_name": "input_gradient", "inputs": [1]}, 400, "expecting an object"),
    ({"signature_name": "input_gradient", "inputs": {"images": [1]}}, 400, "Missing named input: labels"),
    (rows({"b64": "&%$"}, signature_name="serving_bytes"), 400, "Unable to base64 decode"),
    (rows({"b64": 3}, signature_name="serving_bytes"), 400, "does not have named input: b64"),
    (rows([{"b64": 3}], signature_name="serving_bytes"), 400, "not formatted correctly for base64 data"),
    (rows(DAMAGED, signature_name="serving_bytes"), 400, r"image at index\] \[0\]"),
]


@pytest.mark.parametrize(("body", "expected", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_bodies(ask, served, pixels, body, expected, message):
    code, answer = ask(served, PREDICT, body)
    assert code == expected
    assert re.search(message, answer["error"]), answer
    assert ask(served, PREDICT, {"instances": pixels.tolist()})[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "expected", "message"),
    [
        ("GET", "/", 404, "Not found"),
        ("GET", "/v1/models", 400, "Missing model name"),
        ("GET", "/v1/models/other", 404, "Could not find any versions of model other"),
        ("GET", "/v1/models/net/versions/7", 404, "version 7"),
        ("GET", "/v1/models/net/versions/99999999999999999999", 400, "to numeric"),
        ("GET", f"/v1/models/net/versions/{'9' * 5000}", 400, "to numeric"),
        ("GET", "/v1/models/net/versions/-1", 400, "Malformed request"),
        # The path is matched before decoding, with its query.
        ("GET", "/v1/models/net%2Fmetadata", 404, "any versions of model net/metadata"),
        ("GET", "/v1/models/net?verbose=1", 404, r"model net\?verbose=1"),
        ("POST", f"{PREDICT}?verbose=1", 400, "Malformed request"),
        ("POST", "/v1/models/net%3Apredict", 400, "Malformed request"),
        ("POST", "/v1/models/net:PREDICT", 400, "Malformed request"),
        ("GET", "/v1/models/%FF", 404, "any versions of model"),
        ("GET", "/v1/models/%00", 404, "any versions of model"),
        ("GET", "/v1/models/100%", 400, "Malformed request"),
        ("GET", "/v1/models/n[e]t", 400, "Malformed request"),
        ("PUT", "/v1/models/net", 400, "Malformed request: PUT"),
        ("DELETE", "/v1/models/net", 400, "Malformed request: DELETE"),
        ("OPTIONS", "/v1/models/net", 400, "Origin header is missing"),
        ("TRACE", "/v1/models/net", 501, "TRACE"),
        ("GET", "/v1/models/net/versions/7/metadata", 404, r"Specific\(net, 7\)"),
        ("GET", "/v1/models/net/labels/stable/metadata", 400, "label: stable"),
        ("GET", PREDICT, 400, "Malformed request: GET"),
        ("POST", "/v1/models/net", 400, "Malformed request: POST"),
        ("POST", "/v1/models/other:predict", 404, r"Latest\(other\)"),
        ("POST", "/v1/models/net/versions/7:predict", 404, r"Specific\(net, 7\)"),
        ("POST", "/v1/models/net:classify", 501, "asked by predict"),
    ],
)
def test_bad_addresses(ask, served, method, path, expected, message):
    code, answer = ask(served, path, b'{"instances": [1]}' if method == "POST" else None, method)
    assert code == expected
    assert re.search(message, answer["error"]), answer


@pytest.fixture
def connection(served):
    """All requests use one connection."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", served.rest_port, timeout=60)) as connection:
        yield connection


def test_head_has_no_body(connection):
    connection.connect()
    socket = connection.sock
    for path, expected in (("/v1/models/net", 400), (PREDICT, 400), ("/", 404)):
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (expected, b"")
        connection.request("GET", "/v1/models/net")  # fails if a part of the answer above is left over
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.load(answer)["model_version_status"]
        assert connection.sock is socket


def test_options_is_answered_by_nothing(connection):
    connection.request("OPTIONS", "/v1/models/net", headers={"Origin": "http://localhost"})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_addresses_that_are_the_same(ask, served, connection):
    expected = ask(served, "/v1/models/net")
    assert expected[0] == 200
    for path in ("/V1/Models/net", "/v1/models/n%65t", "/v1/models/net/versions/001"):
        assert ask(served, path) == expected
    connection.request("GET", f"http://127.0.0.1:{served.rest_port}/v1/models/net")
    assert json.load(connection.getresponse()) == expected[1]


def test_a_name_is_sent_encoded(served):
    with socket.create_connection(("127.0.0.1", served.rest_port)) as connection:
        connection.sendall("GET /v1/models/caf\u00e9 HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_any_name(ask, exported, pixels):
    name = "caf\u00e9/a b:c?\u0661"
    with Server(exported[0] / "1", name=name, rest_port=0, grpc_port=0) as server:
        path = f"/v1/models/{urllib.parse.quote(name, safe='')}"
        assert ask(server, path)[1]["model_version_status"][0]["state"] == "AVAILABLE"
        assert ask(server, f"{path}/versions/1/metadata")[1]["model_spec"]["name"] == name
        assert ask(server, f"{path}:predict", {"instances": pixels.tolist()})[0] == 200
        assert ask(server, "/v1/models/caf%C3%A8")[1]["error"].endswith("model caf\u00e8")


def test_compressed_bodies(ask, served, connection, pixels):
    body = json.dumps({"instances": pixels.tolist()}).encode()
    expected = ask(served, PREDICT, body)
    assert expected[0] == 200
    for encoding in ("gzip", "x-gzip"):
        assert ask(served, PREDICT, gzip.compress(body), content_encoding=encoding) == expected
    connection.request("POST", PREDICT, iter([gzip.compress(body)]), {"Content-Encoding": "gzip"}, encode_chunked=True)
    assert json.load(connection.getresponse()) == expected[1]
    connection.request("POST", PREDICT, body, {"Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    assert "Content-Encoding" not in answer.headers
    assert json.load(answer) == expected[1]


def test_damaged_compressed_bodies(ask, served, pixels):
    whole = gzip.compress(json.dumps({"instances": pixels.tolist()}).encode())
    damaged = bytearray(whole)
    damaged[-6] ^= 1  # in the checksum
    for body in (whole[:-1], whole[:50], bytes(damaged), whole + whole, whole + b"0", b'{"instances": [1]}', b"\x1f"):
        code, answer = ask(served, PREDICT, body, content_encoding="gzip")
        assert (code, answer) == (400, {"error": "Failed to uncompress the gzipped body"})
    assert ask(served, PREDICT, b"", content_encoding="gzip")[1]["error"].endswith("The document is empty")


def test_a_small_body_that_becomes_a_large_one(ask, served, pixels):
    for size in (2**20, 2**26):
        code, answer = ask(served, PREDICT, gzip.compress(bytes(size), 1), content_encoding="gzip")
        assert code == 413
        assert "exceeds 1048576 bytes" in answer["error"]
    assert ask(served, PREDICT, {"instances": pixels.tolist()})[0] == 200


@pytest.fixture(scope="module")
def file(pixels):
    """An image whose base64 ends in "=="."""
    data = tf.io.encode_png(pixels[0]).numpy()
    return data + bytes((1 - len(data)) % 3)


def test_base64(ask, served, file):
    text = base64.b64encode(file).decode()
    assert text.endswith("==")
    bare = text[:-2]
    broken = base64.encodebytes(file).decode()
    same = [text, bare, f"{bare}..", f"{bare}.=", broken, broken.replace("\n", "\r\n"), f" {bare}\t=\v\f=\n"]
    answers = [ask(served, PREDICT, rows({"b64": one}, signature_name="serving_bytes")) for one in same]
    assert answers[0][0] == 200
    assert answers == answers[:1] * len(same)
    web_safe = base64.urlsafe_b64encode(file).decode()
    assert web_safe != text
    refused = [
        web_safe,
        f"{bare}=",
        f"{text}=",
        f"{text}{text}",
        f"{bare}A==",
        f"{bare}\xa0==",
        f"{bare}\0==",
        f"={bare}",
    ]
    refused += [f"{bare[:-1]}", f"{bare}*", "\ud800", "\u0661\u0661\u0661\u0661"]
    for one in refused:
        code, answer = ask(served, PREDICT, rows({"b64": one}, signature_name="serving_bytes"))
        assert (code, answer["error"][-23:]) == (400, "Unable to base64 decode"), one


def test_numbers(ask, served):
    numbers = [0, -1, 0.5, 2**64, -(10**30), 1e39, 1e-60, float("nan"), float("inf"), -float("inf")]
    values = (numbers * 20)[:192]
    body = {"signature_name": "features", "inputs": np.reshape(np.array(values, object), (1, 8, 8, 3)).tolist()}
    with np.errstate(over="ignore"):
        expected = np.array(values, np.float64).astype(np.float32) * np.float32(1 / 255)
    np.testing.assert_allclose(ask(served, PREDICT, body)[1]["outputs"][0], expected, rtol=1e-6)


def test_what_is_around_the_json(ask, served, pixels):
    """A byte order mark, white space, other keys, and text after the object are ignored."""
    body = json.dumps({"instances": pixels.tolist(), "a": {"b": 10**4000}}).encode()
    expected = ask(served, PREDICT, body)
    assert expected[0] == 200
    assert ask(served, PREDICT, b"\xef\xbb\xbf \r\n\t" + body + b" ]\xff\0") == expected


def test_an_oversized_body_is_refused_before_it_is_sent(ask, served, pixels):
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\nContent-Length: {2**20 + 1}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.rest_port)) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert ask(served, PREDICT, {"instances": pixels.tolist()})[0] == 200


def test_half_a_request(ask, served, pixels):
    for text in (b"POST /v1/mod", f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{{".encode()):
        with socket.create_connection(("127.0.0.1", served.rest_port)) as connection:
            connection.sendall(text)
    with socket.create_connection(("127.0.0.1", served.rest_port)) as connection:
        connection.sendall(b"no HTTP at all\r\n\r\n")
        assert b"400 Bad Request" in connection.recv(1000)
    assert ask(served, PREDICT, {"instances": pixels.tolist()})[0] == 200
