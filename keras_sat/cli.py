"""The command `keras-sat`. Flags and printing live here alone; what they ask for is done by the package."""

import argparse
import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
import signal
import sys
import time
import types
import typing
import warnings

from absl import app, logging
from absl.flags import argparse_flags

QUICKSTART = "keras-sat-quickstart"


class _Parser(argparse_flags.ArgumentParser):
    """Says what is wrong with the flags in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parse(argv):
    parser = _Parser(prog="keras-sat", description="Smooth adversarial training: train, evaluate and export.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    for name, command in COMMANDS.items():
        summary = command.__doc__.splitlines()[0]
        sub = commands.add_parser(name, help=summary, description=command.__doc__, inherited_absl_flags=None)
        sub.set_defaults(run=command)
        if name in argv[1:2]:  # the flags of `train` are known only once Keras is imported, which takes seconds
            FLAGS[name](sub)
    return parser.parse_args(argv[1:])


def _quickstart_flags(parser):
    parser.add_argument("--output", help=f"folder to write; default: {QUICKSTART}, numbered where it exists")


def _train_flags(parser):
    from keras_sat.run import Run
    from keras_sat.training import RECIPES

    parser.add_argument("--output", required=True, help="folder to write; must hold no run yet, or this, unfinished")
    parser.add_argument("--recipe", choices=RECIPES, help="published settings, which further flags change")
    for field in dataclasses.fields(Run):
        text = field.metadata["help"].replace("%", "%%")
        if field.default not in (None, ""):
            text += f" (default: {field.default})"
        parser.add_argument(f"--{field.name}", default=argparse.SUPPRESS, help=text, **_flag_kind(field))


def _flag_kind(field):
    if field.type is bool:
        return {"action": argparse.BooleanOptionalAction}
    if field.name == "activation":
        return {"type": _activation}
    kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    return {"type": kinds[0]}


def _activation(text):
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a name and not JSON: {text!r} ({error})") from error


def _evaluate_flags(parser):
    parser.add_argument("folder", nargs="?", help="a run's, a SavedModel's, or a .tflite file (see --dataset)")
    parser.add_argument("--model", help="in place of a folder: a network with --weights, see `keras-sat list`")
    parser.add_argument("--activation", default="silu", type=_activation, help="of --model (default: silu)")
    parser.add_argument("--weights", help="of --model: a tag such as sat-fashion-mnist")
    parser.add_argument("--attack", default="pgd-50", help=f"{ATTACKS}; several with commas (default: pgd-50)")
    parser.add_argument("--epsilon", help="in pixels 0..255; several with commas give a curve; default: the run's")
    parser.add_argument("--norm", choices=("linf", "l2"), help="default: the run's")
    parser.add_argument("--dataset", help="for an export or --weights: to evaluate on; default: the weights' own")
    parser.add_argument("--data_dir", help="for an export or --weights: folder of prepared TFDS datasets")
    parser.add_argument("--split", help="of the dataset, such as test[:500]; default: all of test")
    parser.add_argument("--batch_size", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", default="0/1", help="K/N: the K-th of N parts; the last to end merges the reports")
    parser.add_argument("--attack_precision", choices=("mixed_bfloat16", "mixed_float16"), help="attack in it first")
    parser.add_argument("--audit", action="store_true", help="also ask whether gradients are masked")
    parser.add_argument("--html", action="store_true", help="also write report.html, with plots (needs matplotlib)")
    parser.add_argument("--output", help="folder for the reports; default: the run's, or MODEL-ACTIVATION-WEIGHTS")


ATTACKS = (
    "fgsm, pgd-STEPS, pgd-STEPSxRESTARTS, autoattack, autoattack-plus, autoattack-rand, apgd-ce, apgd-dlr, apgd-t, "
    "fab-t, square, corruptions"
)


def _export_flags(parser):
    parser.add_argument("folder", help="a run's folder, written by `keras-sat train`")
    parser.add_argument("--to", help="folder to write; default: saved_model in the run's folder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in")
    parser.add_argument("--int8", metavar="FILE.tflite", help="also write an int8 LiteRT file")


def _compare_flags(parser):
    parser.add_argument("folder", help="a run's folder, written by `keras-sat train`")
    parser.add_argument("exported", nargs="+", help="folders of SavedModels, and .tflite files")
    parser.add_argument("--attack", default="pgd-50", help=f"{ATTACKS}; several with commas (default: pgd-50)")
    parser.add_argument("--split", help="of the run's dataset, such as test[:500]; default: all of test")
    parser.add_argument("--batch_size", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="file to write the table to, as JSON")


def _serve_flags(parser):
    parser.add_argument("path", help="folder of versions (PATH/1, PATH/2, ...), or of one SavedModel")
    parser.add_argument("--name", help="of the model, in requests; default: the folder's")
    parser.add_argument("--host", default="127.0.0.1", help="to listen at (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--rest_port", type=int, default=8501, help="0 takes a free one (default: 8501)")
    parser.add_argument("--grpc_port", type=int, default=8500, help="0 takes a free one (default: 8500)")


def _convert_flags(parser):
    parser.add_argument("--from", dest="prefix", required=True, help="path of the bundle, without .index or .data-...")
    parser.add_argument("--model", required=True, help="network: see `keras-sat list`")
    parser.add_argument("--activation", default="silu", type=_activation, help="the checkpoint's (default: silu)")
    parser.add_argument("--ema", action="store_true", help="take the moving averages, as for EfficientNet-L1-Enhanced")
    parser.add_argument("--to", required=True, help="file to write, FILE.weights.h5")


def _list_flags(parser):
    parser.add_argument("--json", action="store_true", help="as JSON")


def quickstart(args):
    """Trains, attacks, evaluates and exports a small network on real images, within three minutes on two cores."""
    from keras_sat import files
    from keras_sat import run as run_lib

    start = time.perf_counter()
    folder = args.output or _free(QUICKSTART)
    run = run_lib.Run()
    print(
        f"Training {run.model} ({run.activation}) on PGD-{run.steps} examples of {run.dataset}, epsilon {run.epsilon}."
    )
    print("accuracy and loss are those on the adversarial images; val_... on up to 500 test images.\n", flush=True)
    model, finished = run_lib.train(run, folder)
    if not finished:
        return _interrupted(folder)
    print("\nAttacking the whole test split with PGD-50.", flush=True)
    report = _report(folder, run, model, _attacks("pgd-50", run.ball()), run.evaluation_split(), 200, run.seed)
    files.write_text(os.path.join(folder, "report.txt"), report.table() + "\n")
    run_lib.export(run, model, folder, os.path.join(folder, "saved_model"))
    print(f"\n{report.table()}\n\nAll of it took {time.perf_counter() - start:.0f} seconds. It lies in {folder}/:")
    print(_WHERE.format(here=shlex.quote(folder), bin=_bin()))
    return 0


_WHERE = """\
    report.txt, report.json   these figures, and all that is needed to repeat them
    model.weights.h5          the weights
    run.json, logs/           the configuration; the training's curves for TensorBoard
    saved_model/              for TF Serving, or tf.saved_model.load

What to do next:
    {bin}keras-sat evaluate {here} --attack=autoattack --split='test[:200]' --audit   (is it to be believed?)
    {bin}keras-sat train --activation=relu --output=runs/relu     (does it pay to be smooth?)
    {bin}keras-sat train --help                                   (your dataset, network and epsilon)
    {bin}tensorboard --logdir={here}/logs"""


def _bin():
    """Returns what to put before a command of this environment: nothing where it is on the path."""
    return "" if shutil.which("keras-sat") else os.path.relpath(os.path.dirname(sys.argv[0]) or ".") + os.sep


def train(args):
    """Trains a network adversarially and writes its folder: weights, run.json and TensorBoard logs.

    Killed, it goes on from its last checkpoint when the same command is given again.
    """
    from keras_sat import run as run_lib
    from keras_sat.training import RECIPES

    given = {field.name for field in dataclasses.fields(run_lib.Run)} & set(vars(args))
    settings = RECIPES[args.recipe].settings if args.recipe else {}
    config = run_lib.Run(**settings | {name: getattr(args, name) for name in given})
    if os.path.isdir(run_lib.checkpoints(args.output)):
        print(f"Going on with the unfinished run in {args.output}.", flush=True)
    _, finished = run_lib.train(config, args.output)
    if not finished:
        return _interrupted(args.output)
    print(f"Trained. Next: {_bin()}keras-sat evaluate {shlex.quote(args.output)}")
    return 0


def evaluate(args):
    """Measures the clean and robust accuracy of a trained or exported network; writes report.json.

    Killed, it goes on where it was when the same command is given again.
    """
    from keras_sat import evaluation, files

    if args.html and importlib.util.find_spec("matplotlib") is None:  # said now, not after hours of attacks
        raise ValueError("--html draws with matplotlib: pip install 'keras_sat[report]'")
    subject = _subject(args)
    k, n = _shard(args.shard)
    flags = {name: value for name, value in vars(args).items() if name != "run"}
    state = os.path.join(subject.output, f".evaluation-{files.fingerprint(flags)}.npz")
    options = {"seed": args.seed, "batch_size": args.batch_size, "state": state, "shard": (k, n)}
    attacks = _attacks(args.attack, subject.balls[0])
    is_curve = len(subject.balls) > 1
    if is_curve and (len(attacks) > 1 or args.attack_precision):
        raise ValueError("Several values of epsilon take one attack, and no attack_precision.")
    os.makedirs(subject.output, exist_ok=True)
    if is_curve:
        epsilons = [ball.epsilon for ball in subject.balls]
        report = evaluation.sweep(subject.model, subject.dataset, *attacks.values(), epsilons, **options)
    else:
        options["attack_precision"] = args.attack_precision
        report = evaluation.evaluate(subject.model, subject.dataset, attacks, **options)
    report.context.update(subject.context)
    report = _written(report, subject.output, k, n)
    audit = None
    if args.audit:
        audit = evaluation.audit(subject.model, subject.dataset, subject.balls[0], seed=args.seed)
        audit.to_json(os.path.join(subject.output, "audit.json"))
        print(f"\n{audit.table()}")
    if args.html and report:
        page = os.path.join(subject.output, "report.html")
        report.to_html(page, audit, shlex.join(["keras-sat", *sys.argv[1:]]))
    if os.path.exists(state):
        os.remove(state)
    return 0


def _subject(args):
    """Returns what to evaluate: model, dataset, balls, context of the report, folder for it."""
    from keras_sat import run as run_lib

    if args.model or args.weights:
        found = _released(args)
    elif not args.folder:
        raise ValueError("Say what to evaluate: a folder, or --model and --weights.")
    elif args.folder.endswith(".tflite") or os.path.exists(os.path.join(args.folder, "saved_model.pb")):
        found = _exported(args)
    else:
        found = _trained(args)
    found.context |= {"batch_size": args.batch_size}
    norm, epsilons = args.norm or found.norm, args.epsilon or str(found.epsilon)
    found.balls = [run_lib.BALLS[norm](_number("epsilon", text)) for text in epsilons.split(",")]
    found.output = args.output or found.output
    return found


def _released(args):
    """Returns a network with weights of the registry, to be evaluated as they were."""
    from keras_sat import data, models

    if args.folder or not (args.model and args.weights):
        raise ValueError("--model and --weights go together, in place of a folder.")
    build = _builder(args.model)
    entry = models.weights.find(args.model, args.activation, args.weights)
    own = entry["evaluation"]
    name = args.dataset or own["dataset"]
    split = args.split or data.evaluation_split(name, args.data_dir)
    dataset = data.load(name, split, args.batch_size, entry["image_size"], data_dir=args.data_dir)
    model = build(weights=args.weights, activation=args.activation)
    output = f"{args.model}-{entry['activation']}-{args.weights}"
    context = {"dataset": name, "split": split, "weights": entry["id"]}
    return types.SimpleNamespace(
        model=model, dataset=dataset, context=context, norm=own["norm"], epsilon=own["epsilon"], output=output
    )


def _exported(args):
    """Returns an export, and the dataset at the image size that it takes."""
    from keras_sat import data, evaluation

    if not (args.dataset and args.epsilon and args.output):
        raise ValueError(f"{args.folder} is an export: say --dataset, --epsilon and --output.")
    split = args.split or data.evaluation_split(args.dataset, args.data_dir)
    model = evaluation.deployed.load(args.folder)
    dataset = data.load(args.dataset, split, args.batch_size, model.image_size, data_dir=args.data_dir)
    context = {"dataset": args.dataset, "split": split, "run": os.path.abspath(args.folder)}
    return types.SimpleNamespace(
        model=model, dataset=dataset, context=context, norm="linf", epsilon=args.epsilon, output=args.output
    )


def _trained(args):
    from keras_sat import run as run_lib

    if args.dataset or args.data_dir:
        raise ValueError(f"{args.folder} is a run, which knows its dataset: --dataset is for an export.")
    run, model = run_lib.load(args.folder)
    split = args.split or run.evaluation_split()
    dataset = run.load_data(split, args.batch_size)
    context = {"dataset": run.dataset, "split": split, "run": os.path.abspath(args.folder)}
    return types.SimpleNamespace(
        model=model, dataset=dataset, context=context, norm=run.norm, epsilon=run.epsilon, output=args.folder
    )


def _builder(name):
    from keras_sat import models

    if name not in models.BUILDERS:
        raise ValueError(f"model must be one of {', '.join(models.BUILDERS)}. Received: {name!r}")
    return models.BUILDERS[name]


def _number(name, text):
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{name} must be a number, or several with commas. Received: {text!r}") from error


def _shard(text):
    k, _, n = text.partition("/")
    if not (k.isdigit() and n.isdigit() and int(k) < int(n)):
        raise ValueError(f"shard must be K/N with K < N, such as 0/4. Received: {text!r}")
    return int(k), int(n)


def _written(report, folder, k, n):
    """Writes a report; of shards each its own, and the whole once all are there. Returns the whole, or None."""
    from keras_sat import evaluation

    path = os.path.join(folder, "report.json")
    if n > 1:
        part = os.path.join(folder, f"report-{k}-of-{n}.json")
        report.to_json(part)
        print(f"\n{report.table()}\n\nWritten to {part}")
        parts = [os.path.join(folder, f"report-{number}-of-{n}.json") for number in range(n)]
        if not all(map(os.path.exists, parts)):
            return None
        report = evaluation.merge([evaluation.from_json(part) for part in parts])
    report.to_json(path)
    print(f"\n{report.table()}\n\nWritten to {path}")
    return report


def export(args):
    """Writes a trained network as a SavedModel for TF Serving."""
    from keras_sat import export as export_lib
    from keras_sat import run as run_lib

    run, model = run_lib.load(args.folder)
    path = args.to or os.path.join(args.folder, "saved_model")
    if args.int8 and os.path.exists(args.int8):
        raise ValueError(f"{args.int8} exists: choose a new file, or remove it first.")
    run_lib.export(run, model, args.folder, path, args.dtype)
    print(f"Written to {path}")
    largest = max(max(outputs.values()) for outputs in export_lib.verify(path, model).values())
    print(f"Verified: a process without keras agrees with Keras to {largest:.1g} of the outputs' range.")
    if args.int8:
        export_lib.export_litert(path, args.int8, run.calibration_images())
        print(f"Written to {args.int8}; what is left of its robustness: keras-sat compare")
    return 0


def compare(args):
    """Measures what is left of the robustness of a trained network after export: float32, bfloat16, int8."""
    from keras_sat import evaluation
    from keras_sat import run as run_lib
    from keras_sat.attacks import PGD

    run, model = run_lib.load(args.folder)
    dataset = run.load_data(args.split or run.evaluation_split(), args.batch_size)
    exported = {os.path.basename(os.path.abspath(path)): path for path in args.exported}
    if len(exported) < len(args.exported):
        exported = {path: path for path in args.exported}
    attacks = _attacks(args.attack, run.ball())
    for name, attack in attacks.items():
        if isinstance(attack, PGD):  # one that went on after its first success carries over to more networks
            attacks[name] = dataclasses.replace(attack, keep="worst")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table says them
        comparison = evaluation.compare(model, exported, dataset, attacks, seed=args.seed)
    print(comparison.table())
    if args.output:
        comparison.to_json(args.output)
    return 0


def serve(args):
    """Serves a SavedModel over TF Serving's REST and gRPC interfaces: for development, on this machine."""
    if importlib.util.find_spec("waitress") is None:
        raise ValueError("serve needs waitress: pip install 'keras_sat[serve]'")
    from keras_sat.serving import Server

    with Server(args.path, args.name, args.host, args.rest_port, args.grpc_port) as server:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.stop())
        print(f"Serving {server.name} from {args.path}; for production take TF Serving. Ctrl-C ends it.")
        print(f"    REST  http://{args.host}:{server.rest_port}/v1/models/{server.name}")
        print(f"    gRPC  {args.host}:{server.grpc_port}", flush=True)
        server.wait()
    return 0


def convert(args):
    """Converts a checkpoint of the SAT authors' release to a .weights.h5 file of a network of this package."""
    from keras_sat import files, models

    build = _builder(args.model)
    if not args.to.endswith(".weights.h5"):
        raise ValueError(f"--to must end in .weights.h5. Received: {args.to!r}")
    model = build(input_shape=(None, None, 3), activation=args.activation)
    models.release.load(model, args.prefix, args.ema)
    with files.replacing(args.to) as temporary:
        model.save_weights(temporary)
    print(f"Written to {args.to}")
    return 0


def list_(args):
    """Lists the networks, activations, embedded datasets, attacks, recipes and released weights."""
    from keras_sat import activations, data, models
    from keras_sat.training import RECIPES

    known = {
        "models": list(models.BUILDERS),
        "activations": activations.names(),
        "datasets": data.names(),
        "attacks": ATTACKS.split(", "),
        "recipes": list(RECIPES),
    }
    if args.json:
        print(json.dumps({**known, "weights": models.list_weights()}, indent=2))
    else:
        print("\n".join(f"{kind:<12} {', '.join(names)}" for kind, names in known.items()))
        print("\nweights      accuracy in %: of sat-imagenet as its authors report it, else as measured here")
        print(_weights_table())
    return 0


def _weights_table():
    from keras_sat import models

    header = ("tag", "model", "activation", "image_size", "parameters", "clean", "robust", "under")
    rows = [["-" if row[name] is None else str(row[name]) for name in header] for row in models.list_weights()]
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in (header, *rows))


COMMANDS = {
    "quickstart": quickstart,
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "compare": compare,
    "serve": serve,
    "convert": convert,
    "list": list_,
}
FLAGS = {
    "quickstart": _quickstart_flags,
    "train": _train_flags,
    "evaluate": _evaluate_flags,
    "export": _export_flags,
    "compare": _compare_flags,
    "serve": _serve_flags,
    "convert": _convert_flags,
    "list": _list_flags,
}


def _attacks(names, ball):
    """Returns {name in the report: attack} from a flag such as "fgsm,pgd-50"."""
    return {str(label): attack for name in names.split(",") for label, attack in _attack(name.strip(), ball).items()}


def _attack(name, ball):
    from keras_sat import attacks, evaluation, losses

    known = {
        "fgsm": lambda: {"FGSM": attacks.FGSM(ball)},
        "autoattack": lambda: attacks.AutoAttack(ball),
        "autoattack-plus": lambda: attacks.AutoAttack(ball, "plus"),
        "autoattack-rand": lambda: attacks.AutoAttack(ball, "rand"),
        "apgd-ce": lambda: attacks.APGD(ball),
        "apgd-dlr": lambda: attacks.APGD(ball, loss=losses.dlr),
        "apgd-t": lambda: attacks.APGD(ball, targets=9),
        "fab-t": lambda: attacks.FAB(ball),
        "square": lambda: attacks.Square(ball),
        "corruptions": lambda: {str(c): c for c in map(evaluation.Corruption, evaluation.corruptions.SEVERITIES)},
    }
    if name in known:
        attack = known[name]()
        return attack if isinstance(attack, dict) else {attack: attack}
    steps, _, restarts = name.removeprefix("pgd-").partition("x")
    if not name.startswith("pgd-") or not steps.isdigit() or not (restarts or "1").isdigit() or int(steps) < 1:
        raise ValueError(f"attack must be one of {ATTACKS}. Received: {name!r}")
    attack = attacks.PGD(ball, steps=int(steps), restarts=int(restarts or 1), keep="first")
    return {name.upper() if restarts else attack: attack}


def _report(folder, run, model, attacks, split, batch_size, seed):
    """Evaluates, and writes report.json with what was evaluated."""
    from keras_sat import evaluation

    report = evaluation.evaluate(model, run.load_data(split, batch_size), attacks, seed=seed, batch_size=batch_size)
    report.context.update(dataset=run.dataset, split=split, batch_size=batch_size, run=os.path.abspath(folder))
    report.to_json(os.path.join(folder, "report.json"))
    return report


def _free(folder):
    """Returns the first of folder, folder-2, folder-3, ... that does not exist."""
    number, candidate = 1, folder
    while os.path.exists(candidate):
        number += 1
        candidate = f"{folder}-{number}"
    return candidate


def _interrupted(folder):
    print(f"\nkeras-sat: interrupted; what was trained so far lies in {folder}", file=sys.stderr)
    return 130


def _main(args):
    logging.set_verbosity(logging.ERROR)  # TFDS tells where it looks, and warns of its own code
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("\nkeras-sat: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"keras-sat: {error}", file=sys.stderr)
        return 1


def main():
    """Runs the command line; the exit status is 0, 1 for bad input, 2 for bad flags, 130 for Ctrl-C."""
    app.run(_main, flags_parser=_parse)
