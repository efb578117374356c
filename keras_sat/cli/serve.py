"""The command `keras-sat serve`."""

import argparse
import signal

from keras_sat import files
from keras_sat.cli import messages


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=files.expanded, help="folder of versions (PATH/1, PATH/2, ...), or of one SavedModel"
    )
    parser.add_argument("--name", help="of the model, in requests; default: the folder's")
    parser.add_argument("--host", default="127.0.0.1", help="to listen at (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--rest_port", type=int, default=8501, help="0 takes a free one (default: 8501)")
    parser.add_argument("--grpc_port", type=int, default=8500, help="0 takes a free one (default: 8500)")


def run(args: argparse.Namespace) -> int:
    """Serves a SavedModel over TF Serving's REST and gRPC interfaces: for development, on this machine."""
    from keras_sat.serving import Server  # raises ImportError without the extra `serve`

    messages.say(f"Loading {args.path} ...")
    with Server(args.path, args.name, args.host, args.rest_port, args.grpc_port) as server:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.stop())
        print(f"Serving {server.name} from {args.path}; for production, use TF Serving. Ctrl-C ends it.")
        print(f"    REST  http://{args.host}:{server.rest_port}/v1/models/{server.name}")
        print(f"    gRPC  {args.host}:{server.grpc_port}", flush=True)
        server.wait()
    return 0
