"""The development server: REST and gRPC on two ports."""

import contextlib
import os
import socket
import threading
from concurrent import futures
from types import TracebackType

import grpc
import waitress

from keras_sat import internals
from keras_sat.serving import rest, rpc
from keras_sat.serving.versions import Versions
from keras_sat.typing import Path

THREADS = 8
GRACE = 10  # seconds that running requests get to finish when the server stops


class Server:
    """Serves a SavedModel, or the newest of several versions, with the interfaces of TF Serving. For development only.

        with Server("models/gelu", rest_port=8501, grpc_port=8500) as server:
            server.wait()

    Args:
        path: a folder of version folders (`models/gelu/1`, ...), or the folder of one SavedModel. "~" is the home
            folder.
        name: name of the model in requests. Default: the name of the folder.
        host: the address to listen at. Default: 127.0.0.1, so that only this machine can connect.
        rest_port: port of the REST interface. 0 selects a free port, see the attribute `rest_port`. Default: 8501.
        grpc_port: port of the gRPC interface. 0 selects a free port, see the attribute `grpc_port`. Default: 8500.
        poll: seconds between two checks for a new version. Default: 1.
        max_bytes: largest size of a request in bytes. Larger requests fail with 413 (RESOURCE_EXHAUSTED). Default: 256
            MiB.

    Attributes:
        name: name of the model.
        rest_port: port of the REST interface.
        grpc_port: port of the gRPC interface.
        versions: the `Versions` of the model.

    Raises:
        ValueError: if no version can be loaded.
        OSError: if a port is taken.
    """

    def __init__(
        self,
        path: Path,
        name: str | None = None,
        host: str = "127.0.0.1",
        rest_port: int = 8501,
        grpc_port: int = 8500,
        poll: float = 1.0,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        self.name = name or os.path.basename(os.path.abspath(os.path.expanduser(path)))
        self._done = threading.Event()
        self._connections: dict = {}
        with contextlib.ExitStack() as undo:  # closes what is open if an error occurs below
            listening = undo.enter_context(_listening(host, rest_port))
            _listening(host, grpc_port).close()  # fails if the port is taken; gRPC would also write to stderr
            self.versions = Versions(path, self.name, poll)
            undo.callback(self.versions.close)
            self._pool = futures.ThreadPoolExecutor(THREADS)
            self._grpc = _grpc_server(self._pool, self.versions, max_bytes)
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

    def __enter__(self) -> "Server":
        self._grpc.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def wait(self) -> None:
        """Waits until `stop` is called."""
        self._done.wait()

    def stop(self) -> None:
        """Makes `wait` return. It is safe to call this in a signal handler."""
        self._done.set()

    def close(self) -> None:
        """Waits up to `GRACE` seconds for running requests, then closes the server."""
        self._grpc.stop(grace=GRACE).wait()
        self._pool.shutdown()
        internals.close_waitress(self._rest, self._connections, GRACE)
        self._thread.join()
        self.versions.close()


def _grpc_server(pool, versions, max_bytes):
    options = [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # otherwise a second server could share the port
    ]
    server = grpc.server(pool, options=options)
    rpc.add_to(server, versions)
    return server


def _listening(host, port):
    """Returns a listening socket. Raises OSError with a short message."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = str(error).partition(" (while ")[0]  # the rest repeats the address
        raise OSError(f"cannot listen at {host}:{port}: {reason}") from error


def _bound(server, address):
    """Binds a gRPC server to an address, and returns the port."""
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen at {address}: {error}") from error
    if port == 0:
        raise OSError(f"cannot listen at {address}: is the port taken?")
    return port
