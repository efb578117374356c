"""A development server in Python, with the REST and gRPC interfaces of TF Serving."""

from keras_sat.serving.server import Server

__all__ = ["Server"]
