"""The command `keras-sat compare`."""

import argparse
import os
import warnings

from keras_sat import evaluation, files, tables
from keras_sat.cli import flags, messages
from keras_sat.evaluation import attack_names


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_run_folder(parser)
    parser.add_argument("exported", nargs="+", type=files.expanded, help="folders of SavedModels, and .tflite files")
    flags.add_attack(parser)
    flags.add_data(parser, "the run's")
    parser.add_argument("--output", type=files.expanded, help="file to write the table to, as JSON")


def run(args: argparse.Namespace) -> int:
    """Measures what is left of the robustness of a trained network after export: float32, bfloat16, int8."""
    from keras_sat import run as run_lib

    messages.say(f"Reading {', '.join([args.folder, *args.exported])} ...")
    run, model = run_lib.load(args.folder)
    if run.sigma is not None:
        raise ValueError(
            f"{args.folder} was trained on noise, without an epsilon to attack with: use keras_sat.evaluation.compare."
        )
    if args.output and os.path.exists(args.output):
        raise ValueError(f"{args.output} exists already: choose another file.")
    run = run_lib.with_data(run, args.dataset, args.data_dir, args.skip_damaged)
    for path in args.exported:
        run_lib.check_export(run, path)
    split = args.split or run.evaluation_split()
    dataset = run.load_data(split, args.batch_size)
    attacks = attack_names.from_names(args.attack, run.ball())
    attacks = {name: attack.for_transfer() for name, attack in attacks.items()}
    exported = _by_name(args.exported)
    paths = {"original": args.folder} | exported
    options = {"seed": args.seed, "context": {"networks": paths, "dataset": run.dataset, "split": split}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table includes these warnings
        comparison = evaluation.compare(model, exported, dataset, attacks, **options)
    print(f"\n{tables.text(*((f'{name}:', path) for name, path in paths.items()))}\n\n{comparison.table()}")
    if args.output:
        comparison.to_json(args.output)
        print(f"\nWritten to {args.output}")
    return 0


def _by_name(paths):
    """Returns {name: path}. A name is the last part of the path; if these parts are not unique, the whole path."""
    named = {os.path.basename(os.path.abspath(path)): path for path in paths}
    return named if len(named) == len(paths) else {path: path for path in paths}
