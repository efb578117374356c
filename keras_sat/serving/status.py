"""Status codes of failed requests: gRPC's canonical codes, and the HTTP codes that TF Serving maps them to."""

import re

import tensorflow as tf
from tensorflow.core.protobuf import error_codes_pb2

HTTP = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
}


class Status(Exception):
    """An exception for a request that failed.

    Args:
        code: gRPC's canonical code, such as "NOT_FOUND".
        message: the error message for the client.
        http: the HTTP status code. Default: the code in `HTTP`.
    """

    def __init__(self, code: str, message: str, http: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.http = code, message, http or HTTP[code]


def failure(error: Exception) -> Status:
    """Converts any exception to a `Status`. Unknown exceptions become "INTERNAL"."""
    if isinstance(error, Status):
        return error
    if isinstance(error, tf.errors.OpError):
        # In Python, TensorFlow's message begins with the place of the failed operation: only the cause is kept.
        message = re.sub(r"(?s)^Graph execution error:.*?<stack traces unavailable>\n", "", error.message)
        return Status(error_codes_pb2.Code.Name(error.error_code), message)
    return Status("INTERNAL", f"{type(error).__name__}: {error}")
