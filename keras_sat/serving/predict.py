"""What TF Serving's Predict does, on a loaded version."""

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from keras_sat.serving.status import Status

DEFAULT = "serving_default"


def run(servable, request):
    """Returns the PredictResponse to a PredictRequest.

    Raises:
        Status: FAILED_PRECONDITION for an unknown signature, INVALID_ARGUMENT for inputs that it does not take.
    """
    name = request.model_spec.signature_name or DEFAULT
    if name not in servable.signatures:
        raise Status("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    signature = servable.signature_defs[name]
    inputs = {key: _tensor(key, proto) for key, proto in request.inputs.items()}
    _check(signature, inputs)
    wanted = list(request.output_filter) or list(signature.outputs)
    for key in wanted:
        if key not in signature.outputs:
            raise Status(
                "INVALID_ARGUMENT", f"output tensor alias not found in signature: {key} {_set(signature.outputs)}"
            )
    outputs = servable.signatures[name](**inputs)
    response = predict_pb2.PredictResponse()
    response.model_spec.name = servable.name
    response.model_spec.version.value = servable.version
    response.model_spec.signature_name = name
    for key in wanted:
        response.outputs[key].CopyFrom(tf.make_tensor_proto(outputs[key].numpy()))
    return response


def _tensor(name, proto):
    try:
        return tf.constant(tf.make_ndarray(proto))
    except (TypeError, ValueError) as error:
        raise Status("INVALID_ARGUMENT", f"tensor parsing error: {name}: {error}") from error


def _check(signature, inputs):
    """Refuses inputs of other names, types or shapes than the signature's."""
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
