"""Both interfaces of a model, on two ports."""

import contextlib
import os
import socket
import threading
from concurrent import futures

import grpc
import waitress

from keras_sat import internals
from keras_sat.serving import rest, rpc
from keras_sat.serving.versions import Versions

THREADS = 8
GRACE = 10  # seconds for the requests that run when the server is told to stop


class Server:
    """Serves a SavedModel, or the newest of its versions, as TF Serving does; for development.

        with Server("models/gelu", rest_port=8501, grpc_port=8500) as server:
            server.wait()

    Args:
        path: folder of version folders (`models/gelu/1`, ...), or of one SavedModel; `~` is one's home.
        name: of the model; default: the folder's.
        host: the address to listen at.
        rest_port, grpc_port: 0 takes a free one; see the attributes of these names.
        poll: seconds between two looks for a new version.
        max_bytes: of a request; a larger one is refused (413, RESOURCE_EXHAUSTED).

    Raises:
        ValueError: if there is no version that can be loaded.
        OSError: if a port is taken.
    """

    def __init__(
        self, path, name=None, host="127.0.0.1", rest_port=8501, grpc_port=8500, poll=1.0, max_bytes=256 * 2**20
    ):
        self.name = name or os.path.basename(os.path.abspath(os.path.expanduser(path)))
        self._done = threading.Event()
        self._connections = {}
        with contextlib.ExitStack() as undo:  # what an error below leaves behind
            listening = undo.enter_context(_listening(host, rest_port))
            _listening(host, grpc_port).close()  # of a port that is taken, gRPC writes lines to stderr
            self.versions = Versions(path, self.name, poll)
            undo.callback(self.versions.close)
            self._pool = futures.ThreadPoolExecutor(THREADS)
            self._grpc = grpc.server(
                self._pool,
                options=[
                    ("grpc.max_receive_message_length", max_bytes),
                    ("grpc.max_send_message_length", -1),
                    ("grpc.so_reuseport", 0),  # else a second server would share the port
                ],
            )
            rpc.add_to(self._grpc, self.versions)
            self.rest_port = listening.getsockname()[1]
            self.grpc_port = _bound(self._grpc, f"{host}:{grpc_port}")
            self._rest = waitress.create_server(
                rest.Application(self.versions, max_bytes),
                map=self._connections,
                sockets=[listening],
                threads=THREADS,
                max_request_body_size=max_bytes,
                ident="keras-sat serve",
            )
            undo.pop_all()
        self._thread = threading.Thread(target=self._rest.run, name="rest", daemon=True)

    def __enter__(self):
        self._grpc.start()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.close()

    def wait(self):
        """Returns when the server is told to stop."""
        self._done.wait()

    def stop(self):
        """Tells the server to stop; safe in a signal handler."""
        self._done.set()

    def close(self):
        """Ends the requests that run, then the server."""
        self._grpc.stop(grace=GRACE).wait()
        self._pool.shutdown()
        internals.close_waitress(self._rest, self._connections, GRACE)
        self._thread.join()
        self.versions.close()


def _listening(host, port):
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = str(error).partition(" (while ")[0]  # what follows is the address again
        raise OSError(f"cannot listen at {host}:{port}: {reason}") from error


def _bound(server, address):
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen at {address}: {error}") from error
    if port == 0:
        raise OSError(f"cannot listen at {address}: is the port taken?")
    return port
