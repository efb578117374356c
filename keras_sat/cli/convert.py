"""The command `keras-sat convert`."""

import argparse

from keras_sat import files, models
from keras_sat.cli import flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="prefix",
        required=True,
        type=files.expanded,
        help="path of the bundle, without .index or .data-...",
    )
    parser.add_argument("--model", required=True, help="network: see `keras-sat list`")
    flags.add_activation(parser, "the checkpoint")
    parser.add_argument("--ema", action="store_true", help="take the moving averages, as for EfficientNet-L1-Enhanced")
    parser.add_argument("--to", required=True, type=files.expanded, help="file to write, FILE.weights.h5")


def run(args: argparse.Namespace) -> int:
    """Converts a checkpoint of the SAT authors' release to a .weights.h5 file of a network of this package."""
    build = models.builder(args.model)
    if not args.to.endswith(".weights.h5"):
        raise ValueError(f"--to must end in .weights.h5. Received: {args.to!r}")
    model = build(input_shape=(None, None, 3), activation=args.activation)
    models.release.load(model, args.prefix, args.ema)
    with files.atomic_write(args.to) as temporary:
        model.save_weights(temporary)
    print(f"Written to {args.to}")
    return 0
