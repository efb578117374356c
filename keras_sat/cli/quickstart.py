"""The command `keras-sat quickstart`."""

import argparse
import os
import shlex
import time

from keras_sat import evaluation, files
from keras_sat.cli import messages
from keras_sat.evaluation import attack_names, report_files

FOLDER = "keras-sat-quickstart"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=files.expanded, help=f"folder to write; default: {FOLDER}, numbered where it exists"
    )


def run(args: argparse.Namespace) -> int:
    """Trains, attacks, evaluates and exports a small network on real images, within three minutes on two cores."""
    from keras_sat import run as run_lib

    start = time.perf_counter()
    folder = args.output or report_files.unused(FOLDER)
    run = run_lib.Run()
    model, is_finished = run_lib.train(run, folder, say=messages.say)
    if not is_finished:
        return messages.interrupted(folder)
    messages.say("\nAttacking the whole test split with PGD-50.")
    report = _evaluate(run, model, folder)
    messages.say("Exporting for TF Serving ...")
    run_lib.export(run, model, folder, os.path.join(folder, "saved_model", "1"))
    print(f"\n{report.table()}\n\nFinished in {time.perf_counter() - start:.0f} seconds. Written to {folder}/:")
    print(_WHERE.format(here=shlex.quote(folder), bin=messages.command_prefix()))
    return 0


def _evaluate(run, model, folder):
    split = run.evaluation_split()
    attacks = attack_names.from_names("pgd-50", run.ball())
    context = {
        "dataset": run.dataset,
        "split": split,
        "batch_size": 200,
        "classes": run.description.classes,
        "run": os.path.abspath(folder),
        "network": run.network(model),
        "preprocessing": run.description.preprocessing.settings(),
    }
    options = {"seed": run.seed, "batch_size": 200, "context": context}
    report = evaluation.evaluate(model, run.load_data(split, 200), attacks, **options)
    report_files.write(report, folder, report_files.name("pgd-50", run.norm, [run.epsilon], split))
    files.write_text(os.path.join(folder, "report.txt"), report.table() + "\n")
    return report


_WHERE = """\
    report.txt, report.json   these figures, and all that is needed to repeat them
    model.weights.h5          the weights of the best epoch; last.weights.h5: those of the last epoch
    run.json, history.csv     the configuration; the metrics of all epochs
    logs/, checkpoints/       curves for TensorBoard; what the training could be continued from
    saved_model/1             for TF Serving, or tf.saved_model.load

What to do next:
    # audit the network for gradient masking
    {bin}keras-sat evaluate {here} --attack=autoattack --split='test[:200]' --audit
    # train another one with relu, and compare
    {bin}keras-sat train --activation=relu --output=runs/relu
    # see all flags: your dataset, network and epsilon
    {bin}keras-sat train --help
    # look at the training's curves
    {bin}tensorboard --logdir={here}/logs"""
