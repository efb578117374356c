"""Trains and attacks the same network with each activation on the full Fashion-MNIST, to compare their robustness.

    python scripts/import_fashion_mnist.py      # or, with a network: tfds build fashion_mnist
    python studies/smooth_activations.py [--study=pgd_1] [--output=runs/study] [--results=studies] [--jobs=2]

`--study` is one of STUDIES. Each run is a folder, such as OUTPUT/pgd_1/silu-0, that `keras-sat train` and `keras-sat
evaluate` write. The results are collected in RESULTS/STUDY.json. A run in this file is made again only if an evaluation
is missing. If the command is killed, the same command continues, also in the middle of a training or an attack. Each
job uses one thread, so use as many jobs as there are cores. docs/study.md explains the designs, which were fixed before
any result was known. `python studies/tables.py` writes the tables and plots of that page.

The folder studies holds our results, so the command has nothing left to do for a study that is complete there. To make
its runs anew, name a folder of your own, and then print its tables beside ours:

    python studies/smooth_activations.py --results=runs/results
    python studies/tables.py --results=runs/results
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
import threading

from keras_sat import evaluation, files

FOLDER = os.path.dirname(__file__)
ACTIVATIONS = ("relu", "silu", "gelu", "elu", "softplus", "parametric_softplus", "mish", "smooth_relu")
# relu with a smooth derivative in the attacker, in the optimizer, or in both
SMOOTH_BACKWARD = tuple(f"relu_smooth_{where}" for where in ("attacker", "optimizer", "both"))
CONTROL = ("relu", "silu", "parametric_softplus", "relu_smooth_attacker", "pssilu", "leaky_relu")
CURVE = "--epsilon=6.375,12.75,19.125,25.5,28.6875,31.875,38.25,51"
PGD_1 = {
    "dataset": "fashion_mnist",
    "model": "ResNet8",
    "epsilon": 25.5,
    "steps": 1,  # as in the paper: one step of size epsilon from a random point, or from the image in 20 % of batches
    "clean_start": 0.2,
    "epochs": 5,
    "batch_size": 128,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "schedule": "cosine",
    "warmup_epochs": 1,
    "weight_decay": 1e-4,
    "label_smoothing": 0.1,
    # As when the results were made: all training images, the last weights, and curves of 500 test images.
    "validation_split": "test[:500]",
    "keep": "last",
    "guard": "none",
}
# Ten steps of epsilon / 4 in place of one. The guard measures robustness at 1, 1.25 and 1.5 epsilon.
PGD_10 = PGD_1 | {"steps": 10, "step_size": 6.375, "guard": "stop"}
# Beyond the epsilon of training, PGD-50 can miss most of what other attacks find: see docs/study.md.
BEYOND = ("--attack=pgd-50,apgd-t,square", "--worst_case", "--epsilon=31.875", "--split=test[:200]")
SHORT = ("--attack=autoattack-short", "--split=test[:1000]")
EVALUATIONS = {
    "pgd-50": ("--attack=pgd-50", "--split=test"),
    "autoattack-short": SHORT,
    "curve": ("--attack=pgd-50", "--split=test[:1000]", CURVE),
    "beyond": BEYOND,
}


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs of one setting.

    Attributes:
        training: flags of `keras-sat train`.
        seeds: {kind of run: number of seeds}. A kind is an activation, or relu_smooth_WHERE.
        evaluations: {name: flags of `keras-sat evaluate`}.
    """

    training: dict
    seeds: dict
    evaluations: dict

    def names(self):
        """Returns the names of all runs, such as "silu-0", in order of execution: the first seeds come first."""
        runs = [(kind, seed) for kind, seeds in self.seeds.items() for seed in range(seeds)]
        return [f"{kind}-{seed}" for kind, seed in sorted(runs, key=lambda run: run[1])]


STUDIES = {
    "pgd_1": Study(
        PGD_1,
        dict.fromkeys((*ACTIVATIONS, *SMOOTH_BACKWARD), 2) | {"relu": 3, "silu": 3},
        {
            "pgd-50": EVALUATIONS["pgd-50"],
            "autoattack": ("--attack=autoattack", "--split=test[:1000]"),
            "curve": (*EVALUATIONS["curve"][:2], "--epsilon=6.375,12.75,19.125,25.5,31.875,38.25,51"),
        },
    ),
    "pgd_10": Study(PGD_10, dict.fromkeys(CONTROL, 3), EVALUATIONS),
    # Not planned: the control's first runs lacked the step size, so they took the default, epsilon / 10.
    "pgd_10_short_steps": Study(PGD_10 | {"step_size": 2.55}, dict.fromkeys(CONTROL, 1), EVALUATIONS),
    "resnet20": Study(
        PGD_10 | {"model": "ResNet20"},
        dict.fromkeys(("relu", "silu", "parametric_softplus"), 2),
        EVALUATIONS
        | {
            "pgd-50": ("--attack=pgd-50", "--split=test[:2000]"),
            "curve": ("--attack=pgd-50", "--split=test[:500]", CURVE),
        },
    ),
}
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
RUNNING, STOPPED, LOCK = set(), threading.Event(), threading.Lock()


def activation(kind):
    """Returns the value of the flag `--activation`."""
    where = kind.removeprefix("relu_smooth_")
    return kind if where == kind else json.dumps({"name": "relu", "smooth_backward": where})


def measure(study, name, folder):
    """Trains and evaluates a run, without the parts that are already done; returns its record. See `record`."""
    kind, seed = name.rsplit("-", 1)
    if not os.path.exists(os.path.join(folder, "run.json")):
        flags = [f"--{flag}={value}" for flag, value in study.training.items()]
        _keras_sat(folder, "train", *flags, f"--activation={activation(kind)}", f"--seed={seed}", f"--output={folder}")
    if not _read(os.path.join(folder, "run.json"))["finished"]:
        raise ValueError(f"The training in {folder} was ended early: remove the folder.")
    evaluate(folder, folder, study.evaluations)
    return record(study, folder)


def evaluate(folder, network, evaluations):
    """Makes the evaluations of a run that are not done, each in a folder of its name.

    Args:
        folder: folder of the evaluations, and of the log.
        network: the run to attack, a folder that `keras-sat evaluate` takes.
        evaluations: {name: further flags}.
    """
    for name, flags in evaluations.items():
        output = os.path.join(folder, name)
        if not os.path.exists(os.path.join(output, "report.json")):
            _keras_sat(folder, "evaluate", network, *flags, f"--output={output}")


def _keras_sat(folder, *arguments):
    """Runs a keras-sat command with its output in a log file.

    It runs in its own session, so that it does not receive Ctrl-C. A training that Ctrl-C ends early counts as done.
    """
    os.makedirs(folder, exist_ok=True)
    command = [os.path.join(os.path.dirname(sys.executable), "keras-sat"), *arguments]
    with open(os.path.join(folder, "log.txt"), "a", encoding="utf-8") as log:
        with LOCK:
            if STOPPED.is_set():  # another run has failed after this thread took its next run
                raise ValueError("stopped")
            process = subprocess.Popen(
                command, env=os.environ | ONE_THREAD, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            RUNNING.add(process)
        code = process.wait()
        with LOCK:
            RUNNING.discard(process)
    if code:
        raise ValueError(f"{' '.join(command)} ended with {code}: see {log.name}")


def record(study, folder):
    """Returns the record of a run: the training's curves, and which images are robust to each attack, as `digits`."""
    run = _read(os.path.join(folder, "run.json"))
    return {"history": run["history"], "versions": run["versions"]} | evaluated(folder, study.evaluations)


def evaluated(folder, names):
    """Returns the part of a run's record that comes from its evaluations with these names."""
    kept = {"attacks": {}}
    for name in names:
        report = evaluation.from_json(os.path.join(folder, name, "report.json"))
        kept["weights_sha256"] = report.context["weights_sha256"]
        clean = {"clean": digits(report.examples["clean"])} if name == "pgd-50" else {}
        rows = report.examples["attacks"].items()
        kept["attacks"][name] = clean | {row: digits([not by for by in of["broken_by"]]) for row, of in rows}
    return kept


def digits(values):
    """Converts booleans to hexadecimal digits, four booleans a digit. The first boolean is the highest bit."""
    padded = [*values, *[False] * (-len(values) % 4)]
    return f"{int(''.join('01'[bool(value)] for value in padded), 2):0{len(padded) // 4}x}"


def bits(text):
    """Converts hexadecimal digits of a record back to booleans."""
    return [bit == "1" for digit in text for bit in f"{int(digit, 16):04b}"]


def _read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def results(study="pgd_1", folder=FOLDER):
    """Returns {name of a run: its record} of the runs of a study that are done.

    Args:
        study: a name of STUDIES.
        folder: folder of STUDY.json.
    """
    path = _results_file(study, folder)
    return _read(path)["runs"] if os.path.exists(path) else {}


def _results_file(study, folder):
    return os.path.join(folder, f"{study}.json")


def _measure_and_keep(study, name, folder, kept_in):
    """Measures a run and adds its record to the study's file in the folder `kept_in`."""
    one = measure(STUDIES[study], name, folder)
    with LOCK:
        keep(study, {name: one}, kept_in)


def keep(study, runs, folder):
    """Adds the records of runs, {name: record}, to the study's file in a folder."""
    settings, all_of_them = STUDIES[study], results(study, folder) | runs
    contents = {"training": settings.training, "evaluations": settings.evaluations, "runs": all_of_them}
    files.write_json(_results_file(study, folder), contents)
    print(f"{', '.join(runs)} done: {len(all_of_them)} of {len(settings.names())}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, default="pgd_1", help="default: pgd_1")
    parser.add_argument("--output", default=os.path.join("runs", "study"), help="folder of the runs")
    parser.add_argument("--results", type=files.expanded, default=FOLDER, help="folder of STUDY.json; default: studies")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once; as many as there are cores (default: 2)")
    parser.add_argument("--only", help="runs to make, such as silu-0,relu-0; default: all")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1. Received: {args.jobs}")
    study = STUDIES[args.study]
    names = study.names()
    wanted = args.only.split(",") if args.only else names
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"there is no run {', '.join(unknown)}; there are {', '.join(names)}")
    known = results(args.study, args.results)
    done = {name for name, run in known.items() if run["attacks"].keys() >= study.evaluations.keys()}
    todo = [name for name in wanted if name not in done]
    folders = {name: os.path.join(args.output, args.study, name) for name in todo}
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        made = [pool.submit(_measure_and_keep, args.study, *run, args.results) for run in folders.items()]
        try:
            for future in concurrent.futures.as_completed(made):
                future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            with LOCK:
                STOPPED.set()
                for process in RUNNING:
                    process.kill()  # the next start continues from the last checkpoint
            if not isinstance(error, (KeyboardInterrupt, ValueError)):
                raise
            sys.exit(f"smooth_activations: {error or 'stopped'}. The same command goes on.")


if __name__ == "__main__":
    main()
