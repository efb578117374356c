import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)


@pytest.fixture(scope="module")
def channel(served):
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}", [("grpc.max_send_message_length", -1)]) as channel:
        yield channel


@pytest.fixture(scope="module")
def prediction(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(name="net", signature="", outputs=(), **inputs):
    message = predict_pb2.PredictRequest(output_filter=outputs)
    message.model_spec.name, message.model_spec.signature_name = name, signature
    for key, value in inputs.items():
        message.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return message


def test_predict(prediction, exported, pixels):
    logits = exported[1][0](pixels).numpy()
    files = np.array([tf.io.encode_png(image).numpy() for image in pixels])
    for signature, value in (
        ("", {"images": pixels.astype(np.float32)}),
        ("serving_uint8", {"images": pixels}),
        ("serving_bytes", {"image_bytes": files}),
    ):
        response = prediction.Predict(request(signature=signature, **value), timeout=60)
        np.testing.assert_allclose(tf.make_ndarray(response.outputs["logits"]), logits, atol=1e-5)
        np.testing.assert_array_equal(tf.make_ndarray(response.outputs["classes"]), logits.argmax(-1))
        assert (response.model_spec.name, response.model_spec.version.value) == ("net", 1)
        assert response.model_spec.signature_name == (signature or "serving_default")
    response = prediction.Predict(request(outputs=["classes"], images=pixels.astype(np.float32)), timeout=60)
    assert list(response.outputs) == ["classes"]


def test_status_and_metadata(prediction, channel):
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "net"
    (one,) = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, timeout=60).model_version_status
    assert (one.version, one.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    about = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    about.model_spec.name = "net"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert prediction.GetModelMetadata(about, timeout=60).metadata["signature_def"].Unpack(signatures)
    assert "images" in signatures.signature_def["serving_default"].inputs


def of_version(version=None, label=None):
    message = request(images=np.zeros((1, 8, 8, 3), np.float32))
    if label:
        message.model_spec.version_label = label
    else:
        message.model_spec.version.value = version
    return message


def unparsable():
    message = request(images=np.zeros((1, 8, 8, 3), np.float32))
    message.inputs["images"].tensor_content = b"odd"
    return message


IMAGES = np.zeros((1, 8, 8, 3), np.float32)


@pytest.mark.parametrize(
    ("message", "code", "details"),
    [
        (request("other", images=IMAGES), "NOT_FOUND", "Servable not found for request: Latest(other)"),
        (of_version(7), "NOT_FOUND", "Servable not found for request: Specific(net, 7)"),
        (of_version(label="stable"), "INVALID_ARGUMENT", "label: stable"),
        (request("", images=IMAGES), "INVALID_ARGUMENT", "ModelSpec has no name specified"),
        (request("caf\u00e9/net", images=IMAGES), "NOT_FOUND", "Latest(caf\u00e9/net)"),
        (request(signature="serve", images=IMAGES), "FAILED_PRECONDITION", 'key "serve" not found'),
        (request(), "INVALID_ARGUMENT", "Missing but required: {images}"),
        (request(pixels=IMAGES), "INVALID_ARGUMENT", "Inputs expected to be in the set {images}"),
        (request(images=IMAGES.astype(np.uint8)), "INVALID_ARGUMENT", "Received: uint8"),
        (request(images=IMAGES[0]), "INVALID_ARGUMENT", "Received: float32 of shape (8, 8, 3)"),
        (request(outputs=["loss"], images=IMAGES), "INVALID_ARGUMENT", "output tensor alias not found"),
        (unparsable(), "INVALID_ARGUMENT", "tensor parsing error: images"),
        (request(signature="serving_bytes", image_bytes=[b"no"]), "INVALID_ARGUMENT", "at index] [0]"),
        (request(images=np.random.default_rng(0).random((1000, 8, 8, 3))), "RESOURCE_EXHAUSTED", "larger than max"),
    ],
    ids=lambda value: str(value)[:30].replace("\n", " "),
)
def test_bad_requests(prediction, message, code, details):
    with pytest.raises(grpc.RpcError) as raised:
        prediction.Predict(message, timeout=60)
    assert raised.value.code().name == code
    assert details in raised.value.details()
    assert prediction.Predict(request(images=IMAGES), timeout=60).outputs


def test_what_is_not_served(prediction, channel):
    with pytest.raises(grpc.RpcError) as raised:
        prediction.GetModelMetadata(get_model_metadata_pb2.GetModelMetadataRequest(), timeout=60)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as raised:
        prediction.Classify(classification_pb2.ClassificationRequest())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
