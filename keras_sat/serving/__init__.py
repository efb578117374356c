"""A stand-in for TF Serving, for development: the same REST and gRPC interfaces, on one machine, in Python."""

from keras_sat import extras

try:
    from keras_sat.serving.server import Server
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"serve needs waitress and tensorflow-serving-api: {extras.install('serve')}", name=error.name
    ) from error

__all__ = ["Server"]
