"""A loaded version of a model, which answers prediction requests as TF Serving's Predict does."""

import os

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from keras_sat import files
from keras_sat.serving.status import Status
from keras_sat.typing import Path

DEFAULT = "serving_default"
GRAPH = "saved_model.pb"
_WARMUP = os.path.join("assets.extra", "tf_serving_warmup_requests")


class Servable:
    """A loaded version of a model, warmed up with the requests in its SavedModel.

    Args:
        path: folder of the SavedModel.
        name: name of the model.
        version: number of the version.

    Attributes:
        name: name of the model.
        version: number of the version.
        signatures: {name: function from tensors to {output: tensor}}.
        signature_defs: {name: SignatureDef}.
    """

    def __init__(self, path: Path, name: str, version: int) -> None:
        self.name, self.version = name, version
        with files.without_wildcards(path) as plain:
            self._loaded = tf.saved_model.load(plain)  # keeps the variables alive, which signatures do not
        self.signatures = self._loaded.signatures
        saved = saved_model_pb2.SavedModel()
        with open(os.path.join(path, GRAPH), "rb") as file:
            saved.ParseFromString(file.read())
        (graph,) = [graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags]
        self.signature_defs = dict(graph.signature_def)
        self._warm_up(os.path.join(path, _WARMUP))

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """Returns the response to a prediction request.

        Args:
            request: the request. Its signature name, inputs and output filter are used; its model name is ignored.

        Raises:
            Status: FAILED_PRECONDITION for an unknown signature, INVALID_ARGUMENT for unknown outputs or inputs that do
                not match the signature.
        """
        name = request.model_spec.signature_name or DEFAULT
        if name not in self.signatures:
            raise Status("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
        signature = self.signature_defs[name]
        inputs = {key: _tensor(key, proto) for key, proto in request.inputs.items()}
        _check(signature, inputs)
        wanted = list(request.output_filter) or list(signature.outputs)
        for key in wanted:
            if key not in signature.outputs:
                raise Status(
                    "INVALID_ARGUMENT", f"output tensor alias not found in signature: {key} {_set(signature.outputs)}"
                )
        outputs = self.signatures[name](**inputs)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self.name
        response.model_spec.version.value = self.version
        response.model_spec.signature_name = name
        for key in wanted:
            response.outputs[key].CopyFrom(tf.make_tensor_proto(outputs[key].numpy()))
        return response

    def _warm_up(self, path):
        """Runs the requests in a warm-up file, if there is one."""
        if os.path.exists(path):
            for record in tf.data.TFRecordDataset(path):
                log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
                self.predict(log.predict_log.request)


def _tensor(name, proto):
    try:
        return tf.constant(tf.make_ndarray(proto))
    except (TypeError, ValueError) as error:
        raise Status("INVALID_ARGUMENT", f"tensor parsing error: {name}: {error}") from error


def _check(signature, inputs):
    """Raises Status if the names, types or shapes of the inputs do not match the signature."""
    if len(inputs) != len(signature.inputs):
        extra, missing = inputs.keys() - set(signature.inputs), set(signature.inputs) - inputs.keys()
        raise Status(
            "INVALID_ARGUMENT",
            f"input size does not match signature: {len(inputs)}!={len(signature.inputs)}. Sent extra: "
            f"{{{','.join(sorted(extra))}}}. Missing but required: {{{','.join(sorted(missing))}}}.",
        )
    for name, tensor in inputs.items():
        if name not in signature.inputs:
            raise Status(
                "INVALID_ARGUMENT",
                f"input tensor alias not found in signature: {name}. Inputs {_set(signature.inputs)}",
            )
        expected = signature.inputs[name]
        dtype, shape = tf.as_dtype(expected.dtype), tf.TensorShape(expected.tensor_shape)
        if tensor.dtype != dtype or not shape.is_compatible_with(tensor.shape):
            raise Status(
                "INVALID_ARGUMENT",
                f"{name} must be {dtype.name} of shape {shape}. Received: {tensor.dtype.name} of shape {tensor.shape}",
            )


def _set(names):
    return f"expected to be in the set {{{','.join(sorted(names))}}}."
