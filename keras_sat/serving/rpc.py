"""TF Serving's gRPC interface: PredictionService (Predict, GetModelMetadata) and ModelService (GetModelStatus)."""

import contextlib

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_sat.serving import rest
from keras_sat.serving.status import Status, failure
from keras_sat.serving.versions import Versions


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """PredictionService: Predict and GetModelMetadata. Its other methods answer UNIMPLEMENTED.

    Args:
        versions: the versions of the model that is served.
    """

    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        """Returns the response to a prediction request. See `Servable.predict`."""
        with _answered(context):
            return self._versions.get(request.model_spec).predict(request)

    def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Returns the signatures of a version."""
        with _answered(context):
            if list(request.metadata_field) != ["signature_def"]:
                raise Status("INVALID_ARGUMENT", f"Metadata field {list(request.metadata_field)} is not supported")
            return rest.metadata(self._versions.get(request.model_spec))


class Model(model_service_pb2_grpc.ModelServiceServicer):
    """ModelService: GetModelStatus. HandleReloadConfigRequest answers UNIMPLEMENTED.

    Args:
        versions: the versions of the model that is served.
    """

    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Returns the states of the versions that a request asks for."""
        with _answered(context):
            return self._versions.status(request.model_spec)


@contextlib.contextmanager
def _answered(context):
    """A context that turns an exception into the status of a call."""
    try:
        yield
    except Exception as error:  # the client gets an answer to every failure, and the server continues
        status = failure(error)
        context.abort(grpc.StatusCode[status.code], status.message)


def add_to(server: grpc.Server, versions: Versions) -> None:
    """Adds both services to a gRPC server.

    Args:
        server: the gRPC server.
        versions: the versions of the model that is served.
    """
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(versions), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Model(versions), server)
