"""The canonical status codes, and what they are in HTTP, as TF Serving maps them."""

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
    """A request that failed: `code`, a canonical name such as "NOT_FOUND", `message`, and `http`, the code of HTTP."""

    def __init__(self, code, message, http=None):
        super().__init__(message)
        self.code, self.message, self.http = code, message, http or HTTP[code]


def failure(error):
    """Returns the Status of any exception."""
    if isinstance(error, Status):
        return error
    if isinstance(error, tf.errors.OpError):
        # TensorFlow's Python puts where before what
        message = re.sub(r"(?s)^Graph execution error:.*?<stack traces unavailable>\n", "", error.message)
        return Status(error_codes_pb2.Code.Name(error.error_code), message)
    return Status("INTERNAL", f"{type(error).__name__}: {error}")
