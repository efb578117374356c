"""A stand-in for TF Serving, for development: the same REST and gRPC interfaces, on one machine, in Python."""

from keras_sat.serving.server import Server

__all__ = ["Server"]
