import base64
import re
import socket

import numpy as np
import pytest
import tensorflow as tf

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
    # A lone output stands alone; the shortest digits that are the same float32.
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


BAD = [
    (b"", 400, "JSON Parse error"),
    (b'{"instances": [', 400, "JSON Parse error"),
    (b"\xff\xfe{}", 400, "JSON Parse error"),
    (b"[" * 100_000, 400, "JSON Parse error"),
    ([1, 2], 400, "Is not object"),
    ({}, 400, "'inputs' and 'instances'"),
    ({"inputs": 1, "instances": [1]}, 400, "'inputs' and 'instances'"),
    (rows(), 400, "at least one value"),
    ({"instances": 7}, 400, "must be a list"),
    (rows([[1, 2], [3]]), 400, "inhomogeneous"),
    (rows([[1.0]]), 400, r"must be float32 of shape \(None, 8, 8, 3\)"),
    (rows("text"), 400, "not of expected type: float32"),
    (rows(None), 400, "not of expected type: float32"),
    (rows({"pixels": 1}), 400, "keys must be"),
    (rows({"images": 1}, 2), 400, "keys must be"),
    (rows(2, {"images": 1}), 400, "all objects or all values"),
    (rows(1, signature_name="serve"), 400, 'Serving signature name: "serve" not found'),
    (rows(1, signature_name=3), 400, "must be a string"),
    (rows(1, signature_name="input_gradient"), 400, "must be objects"),
    ({"signature_name": "input_gradient", "inputs": [1]}, 400, "must be an object"),
    ({"signature_name": "input_gradient", "inputs": {"images": [1]}}, 400, "Missing named input: labels"),
    (rows([[[0, 0, 256]] * 8] * 8, signature_name="serving_uint8"), 400, "do not fit uint8"),
    (rows([[[0, 0, 0.5]] * 8] * 8, signature_name="serving_uint8"), 400, "not of expected type: uint8"),
    (rows({"b64": "&%$"}, signature_name="serving_bytes"), 400, "Unable to base64 decode"),
    (rows({"b64": 3}, signature_name="serving_bytes"), 400, "not of expected type: string"),
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
        ("GET", "/v1/models/other", 404, "Could not find any versions of model other"),
        ("GET", "/v1/models/net/versions/7", 404, "version 7"),
        ("GET", "/v1/models/net/versions/99999999999999999999", 400, "to numeric"),
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
