"""A server in Python for development, with the REST and gRPC interfaces of TF Serving."""

from keras_sat import extras

try:
    from keras_sat.serving.server import Server
except ModuleNotFoundError as error:
    if error.name is not None and error.name.startswith("keras_sat"):
        raise
    raise ModuleNotFoundError(
        f"serve needs waitress and tensorflow-serving-api: {extras.install('serve')}", name=error.name
    ) from error

__all__ = ["Server"]
