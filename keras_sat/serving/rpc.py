"""TF Serving's gRPC interface: PredictionService (Predict, GetModelMetadata) and ModelService (GetModelStatus)."""

import contextlib

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from keras_sat.serving import predict, rest
from keras_sat.serving.status import Status, failure


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers Predict and GetModelMetadata; Classify, Regress and MultiInference are UNIMPLEMENTED."""

    def __init__(self, versions):
        self._versions = versions

    def Predict(self, request, context):
        with _answered(context):
            return predict.run(self._versions.get(request.model_spec), request)

    def GetModelMetadata(self, request, context):
        with _answered(context):
            if list(request.metadata_field) != ["signature_def"]:
                raise Status("INVALID_ARGUMENT", f"Metadata field {list(request.metadata_field)} is not supported")
            return rest.metadata(self._versions.get(request.model_spec))


class Model(model_service_pb2_grpc.ModelServiceServicer):
    """Answers GetModelStatus; HandleReloadConfigRequest is UNIMPLEMENTED."""

    def __init__(self, versions):
        self._versions = versions

    def GetModelStatus(self, request, context):
        with _answered(context):
            return self._versions.status(request.model_spec)


@contextlib.contextmanager
def _answered(context):
    """Ends a call that fails with its status."""
    try:
        yield
    except Exception as error:  # every failure is answered, and the server goes on
        status = failure(error)
        context.abort(grpc.StatusCode[status.code], status.message)


def add_to(server, versions):
    """Adds both services to a grpc.Server."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(versions), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Model(versions), server)
