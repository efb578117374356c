"""The command `keras-sat export`."""

import argparse
import os

from keras_sat import export as export_lib
from keras_sat import files
from keras_sat.cli import flags, messages


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_run_folder(parser)
    parser.add_argument("--to", type=files.expanded, help="folder to write; default: saved_model in the run's folder")
    precisions = export_lib.saved_model.PRECISIONS
    parser.add_argument("--precision", choices=precisions, default="float32", help="to compute in (default: float32)")
    parser.add_argument("--int8", metavar="FILE.tflite", type=files.expanded, help="also write an int8 LiteRT file")
    parser.add_argument("--dataset", help="for --int8: where the training images are now; default: the run's")
    parser.add_argument("--data_dir", help="for --int8: folder of prepared TFDS datasets; default: the run's")


def run(args: argparse.Namespace) -> int:
    """Writes a trained network as a SavedModel for TF Serving."""
    from keras_sat import run as run_lib

    messages.say(f"Reading {args.folder} ...")
    run, model = run_lib.load(args.folder)
    if not args.int8 and (args.dataset or args.data_dir):
        raise ValueError("--dataset and --data_dir go with --int8: they say where the images for calibration are.")
    path = args.to or os.path.join(args.folder, "saved_model")
    if args.int8:
        export_lib.litert.check_name(args.int8)
        if args.precision != "float32":
            raise ValueError(f"--int8 is made of a float32 network: leave out --precision={args.precision}.")
        moved = run_lib.with_data(run, args.dataset, args.data_dir)
        images = moved.calibration_images()  # read before anything is written, because the images may be missing
    messages.say("Tracing the signatures of the SavedModel ...")
    run_lib.export(run, model, args.folder, path, args.precision)
    messages.say(f"Written to {path}\nVerifying it in a process without Keras ...")
    largest = max(max(outputs.values()) for outputs in export_lib.verify(path, model).values())
    print(f"Verified: its outputs differ from those of Keras by at most {largest:.1g} of their range.")
    if args.precision != "float32":
        print("The accuracies in its card are the run's own; `keras-sat compare` measures the export.")
    if args.int8:
        messages.say(f"Quantizing to int8, with {len(images)} training images for calibration ...")
        export_lib.export_litert(path, args.int8, images)
        print(f"Written to {args.int8}; `keras-sat compare` measures how robust it is")
    return 0
