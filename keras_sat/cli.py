"""The command `keras-sat`. Flags and printing live here alone; what they ask for is done by the package."""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import json
import os
import re
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

from keras_sat import extras, files
from keras_sat.version import __version__

QUICKSTART = "keras-sat-quickstart"
TRACEBACK = "KERAS_SAT_TRACEBACK"


class _Parser(argparse_flags.ArgumentParser):
    """Says what is wrong with the flags in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def refuse(self, flag):
        """Ends with a line that names the nearest flag that there is."""
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        nearest = difflib.get_close_matches(flag.partition("=")[0], known, 1)
        self.error(f"unknown flag {flag}" + (f": did you mean {nearest[0]}?" if nearest else ""))


def _parse(argv):
    parser = _Parser(prog="keras-sat", description="Smooth adversarial training: train, evaluate and export.")
    parser.add_argument("--version", action="version", version=f"keras-sat {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    subs = {}
    for name, command in COMMANDS.items():
        summary = command.__doc__.splitlines()[0]
        sub = commands.add_parser(name, help=summary, description=command.__doc__, inherited_absl_flags=None)
        sub.set_defaults(run=command)
        sub.add_argument("--traceback", action="store_true", help=f"of an error show all, as {TRACEBACK}=1 does")
        if name in argv[1:2]:  # the flags of `train` are known only once Keras is imported, which takes seconds
            FLAGS[name](sub)
        subs[name] = sub
    args, unknown = parser.parse_known_args([_with_underscores(word) for word in argv[1:]])
    if unknown:
        subs[args.command].refuse(unknown[0])
    return args


def _with_underscores(word):
    """Returns --batch-size=10 as --batch_size=10; other words as they are."""
    flag, equals, value = word.partition("=")
    if not flag.startswith("--"):
        return word
    prefix = next(prefix for prefix in ("--no-", "--no_", "--") if flag.startswith(prefix))
    prefix, rest = prefix.replace("_", "-"), flag[len(prefix) :]
    return prefix + rest.replace("-", "_") + equals + value


def _quickstart_flags(parser):
    parser.add_argument(
        "--output", type=files.expanded, help=f"folder to write; default: {QUICKSTART}, numbered where it exists"
    )


def _train_flags(parser):
    from keras_sat import run as run_lib
    from keras_sat.training import RECIPES

    parser.add_argument(
        "--output", required=True, type=files.expanded, help="folder to write; holds no run yet, or this, unfinished"
    )
    parser.add_argument(
        "--continue", dest="go_on", action="store_true", help="go on with a run that ended, for more --epochs"
    )
    parser.add_argument("--recipe", choices=RECIPES, help="published settings, which further flags change")
    for field in run_lib.fields():
        text = field.metadata["help"].replace("%", "%%")
        if field.default not in (None, ""):
            text += f" (default: {field.default})"
        parser.add_argument(f"--{field.name}", default=argparse.SUPPRESS, help=text, **_flag_kind(field))


def _flag_kind(field):
    if field.type is bool:
        return {"action": argparse.BooleanOptionalAction}
    if field.name in ("activation", "epsilon"):
        return {"type": {"activation": _activation, "epsilon": _pixels}[field.name]}
    kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    return {"type": kinds[0]}


def _pixels(text):
    """Returns a number of pixels; LinfBall warns of one below a grey level."""
    if re.fullmatch(r"[\d.]+/255", text):
        raise argparse.ArgumentTypeError(f"{text!r}: epsilon is in pixels 0..255, --epsilon={text.partition('/')[0]}")
    return float(text)


def _curve(text):
    """Returns the text of one or several epsilons, with commas."""
    for part in text.split(","):
        try:
            _pixels(part)
        except ValueError as error:
            message = f"epsilon must be a number, or several with commas. Received: {text!r}"
            raise argparse.ArgumentTypeError(message) from error
    return text


def _activation(text):
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a name and not JSON: {text!r} ({error})") from error


def _evaluate_flags(parser):
    parser.add_argument(
        "folder", nargs="?", type=files.expanded, help="a run's, a SavedModel's, or a .tflite file (see --dataset)"
    )
    parser.add_argument("--model", help="in place of a folder: a network with --weights, see `keras-sat list`")
    parser.add_argument("--activation", default="silu", type=_activation, help="of --model (default: silu)")
    parser.add_argument("--weights", help="of --model: a tag such as sat-fashion-mnist")
    parser.add_argument("--attack", default="pgd-50", help=f"{ATTACKS}; several with commas (default: pgd-50)")
    parser.add_argument(
        "--epsilon", type=_curve, help="in pixels 0..255; several with commas give a curve; default: the run's"
    )
    parser.add_argument("--norm", choices=("linf", "l2"), help="default: the run's")
    parser.add_argument("--dataset", help="to evaluate on: a name or a folder; default: the run's or the weights' own")
    parser.add_argument("--data_dir", help="folder of prepared TFDS datasets; default: the run's, or TFDS' own")
    parser.add_argument("--split", help="of the dataset, such as test[:500]; default: all of test")
    parser.add_argument("--batch_size", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", default="0/1", help="K/N: the K-th of N parts; the last to end merges the reports")
    parser.add_argument("--attack_precision", choices=("mixed_bfloat16", "mixed_float16"), help="attack in it first")
    parser.add_argument("--audit", action="store_true", help="also ask whether gradients are masked")
    parser.add_argument("--html", action="store_true", help="also write report.html, with plots (needs matplotlib)")
    parser.add_argument("--skip_damaged", action="store_true", help="leaves out files of a folder that cannot be read")
    parser.add_argument(
        "--output", type=files.expanded, help="folder for the reports; default: the run's, or MODEL-ACTIVATION-WEIGHTS"
    )


ATTACKS = (
    "fgsm, pgd-STEPS, pgd-STEPSxRESTARTS, autoattack, autoattack-plus, autoattack-rand, apgd-ce, apgd-dlr, apgd-t, "
    "fab-t, square, corruptions"
)


def _export_flags(parser):
    parser.add_argument("folder", type=files.expanded, help="a run's folder, written by `keras-sat train`")
    parser.add_argument("--to", type=files.expanded, help="folder to write; default: saved_model in the run's folder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in")
    parser.add_argument("--int8", metavar="FILE.tflite", type=files.expanded, help="also write an int8 LiteRT file")
    parser.add_argument("--dataset", help="for --int8: where the training images are now; default: the run's")
    parser.add_argument("--data_dir", help="for --int8: folder of prepared TFDS datasets; default: the run's")


def _compare_flags(parser):
    parser.add_argument("folder", type=files.expanded, help="a run's folder, written by `keras-sat train`")
    parser.add_argument("exported", nargs="+", type=files.expanded, help="folders of SavedModels, and .tflite files")
    parser.add_argument("--attack", default="pgd-50", help=f"{ATTACKS}; several with commas (default: pgd-50)")
    parser.add_argument("--dataset", help="a name or a folder; default: the run's")
    parser.add_argument("--data_dir", help="folder of prepared TFDS datasets; default: the run's")
    parser.add_argument("--skip_damaged", action="store_true", help="leaves out files of a folder that cannot be read")
    parser.add_argument("--split", help="of the dataset, such as test[:500]; default: all of test")
    parser.add_argument("--batch_size", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=files.expanded, help="file to write the table to, as JSON")


def _serve_flags(parser):
    parser.add_argument(
        "path", type=files.expanded, help="folder of versions (PATH/1, PATH/2, ...), or of one SavedModel"
    )
    parser.add_argument("--name", help="of the model, in requests; default: the folder's")
    parser.add_argument("--host", default="127.0.0.1", help="to listen at (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--rest_port", type=int, default=8501, help="0 takes a free one (default: 8501)")
    parser.add_argument("--grpc_port", type=int, default=8500, help="0 takes a free one (default: 8500)")


def _convert_flags(parser):
    parser.add_argument(
        "--from",
        dest="prefix",
        required=True,
        type=files.expanded,
        help="path of the bundle, without .index or .data-...",
    )
    parser.add_argument("--model", required=True, help="network: see `keras-sat list`")
    parser.add_argument("--activation", default="silu", type=_activation, help="the checkpoint's (default: silu)")
    parser.add_argument("--ema", action="store_true", help="take the moving averages, as for EfficientNet-L1-Enhanced")
    parser.add_argument("--to", required=True, type=files.expanded, help="file to write, FILE.weights.h5")


def _check_flags(parser):
    parser.add_argument("dataset", help="a folder of images, SPLIT/CLASS/*.jpg, or a prepared TFDS dataset")
    parser.add_argument("--data_dir", help="folder of prepared TFDS datasets; default: TFDS' own")


def _predict_flags(parser):
    parser.add_argument("folder", type=files.expanded, help="a run's, a SavedModel's, or a .tflite file")
    parser.add_argument("images", nargs="+", type=files.expanded, help="image files, and folders of them")
    parser.add_argument("--top", type=int, default=1, help="classes to show of each image (default: 1)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _list_flags(parser):
    parser.add_argument("--json", action="store_true", help="as JSON")


def quickstart(args):
    """Trains, attacks, evaluates and exports a small network on real images, within three minutes on two cores."""
    from keras_sat import evaluation
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
    split = run.evaluation_split()
    dataset = run.load_data(split, 200)
    report = evaluation.evaluate(model, dataset, _attacks("pgd-50", run.ball()), seed=run.seed, batch_size=200)
    report.context.update(dataset=run.dataset, split=split, batch_size=200, run=os.path.abspath(folder))
    _write_report(report, folder, _report_name("pgd-50", [run.ball()], split))
    files.write_text(os.path.join(folder, "report.txt"), report.table() + "\n")
    run_lib.export(run, model, folder, os.path.join(folder, "saved_model", "1"))
    print(f"\n{report.table()}\n\nAll of it took {time.perf_counter() - start:.0f} seconds. It lies in {folder}/:")
    print(_WHERE.format(here=shlex.quote(folder), bin=_bin()))
    return 0


_WHERE = """\
    report.txt, report.json   these figures, and all that is needed to repeat them
    model.weights.h5          the weights
    run.json, logs/           the configuration; the training's curves for TensorBoard
    checkpoints/              what the training could be continued from
    saved_model/1             for TF Serving, or tf.saved_model.load

What to do next:
    # audit the network for masked gradients
    {bin}keras-sat evaluate {here} --attack=autoattack --split='test[:200]' --audit
    # train another one with relu, and compare
    {bin}keras-sat train --activation=relu --output=runs/relu
    # see all flags: your dataset, network and epsilon
    {bin}keras-sat train --help
    # look at the training's curves
    {bin}tensorboard --logdir={here}/logs"""


def _bin():
    """Returns what to put before a command of this environment: nothing where it is on the path."""
    if shutil.which("keras-sat"):
        return ""
    return shlex.quote(os.path.relpath(os.path.dirname(sys.executable)) + os.sep)


def train(args):
    """Trains a network adversarially and writes its folder: weights, run.json and TensorBoard logs.

    Killed, it goes on from its last checkpoint when the same command is given again.
    """
    from keras_sat import run as run_lib
    from keras_sat.training import RECIPES

    given = {field.name for field in run_lib.fields()} & set(vars(args))
    settings = RECIPES[args.recipe].settings if args.recipe else {}
    config = run_lib.Run(**settings | {name: getattr(args, name) for name in given})
    _, finished = run_lib.train(config, args.output, args.go_on, functools.partial(print, flush=True))
    if not finished:
        return _interrupted(args.output)
    print(f"Trained. Next: {_bin()}keras-sat evaluate {shlex.quote(args.output)}")
    return 0


def evaluate(args):
    """Measures the clean and robust accuracy of a trained or exported network; writes report.json.

    Killed, it goes on where it was when the same command is given again.
    """
    from keras_sat import evaluation, provenance

    if args.html and importlib.util.find_spec("matplotlib") is None:  # said now, not after hours of attacks
        raise ValueError(f"--html draws with matplotlib: {extras.install('report')}")
    k, n = _shard(args.shard)
    subject = _subject(args)
    flags = {name: value for name, value in vars(args).items() if name not in ("run", "traceback")}
    if hasattr(subject.model, "weights"):
        flags["weights_sha256"] = provenance.weights_sha256(subject.model)
    state = os.path.join(subject.output, f".evaluation-{files.fingerprint(flags)}.npz")
    options = {"seed": args.seed, "batch_size": args.batch_size, "state": state, "shard": (k, n)}
    attacks = _attacks(args.attack, subject.balls[0])
    _check_has_gradients(subject.model, attacks)
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
    name = _report_name(args.attack, subject.balls, subject.context["split"])
    report, written = _written(report, subject.output, name, k, n)
    audit = None
    if args.audit:
        audit = evaluation.audit(subject.model, subject.dataset, subject.balls[0], seed=args.seed)
        path = _unused(os.path.join(subject.output, REPORTS, f"{name}-audit.json"))
        audit.to_json(path)
        _link(path, os.path.join(subject.output, "audit.json"))
        print(f"\n{audit.table()}")
    if args.html and report:
        page = f"{os.path.splitext(written)[0]}.html"
        report.to_html(page, audit, shlex.join(["keras-sat", *sys.argv[1:]]))
        _link(page, os.path.join(subject.output, "report.html"))
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
    found.balls = [run_lib.BALLS[norm](float(text)) for text in epsilons.split(",")]
    found.output = args.output or found.output
    return found


def _released(args):
    """Returns a network with weights of the registry, to be evaluated as they were."""
    from keras_sat import data, models
    from keras_sat.preprocessing import Preprocessing

    if args.folder or not (args.model and args.weights):
        raise ValueError("--model and --weights go together, in place of a folder.")
    build = _builder(args.model)
    entry = models.weights.find(args.model, args.activation, args.weights)
    own = entry["evaluation"]
    name = args.dataset or own["dataset"]
    known = data.class_names(own["dataset"]) if own["dataset"] in data.names() else None
    opened = _opened(name, args, known, entry["classes"])
    split = args.split or data.evaluation_split(opened)
    how = Preprocessing(entry["image_size"], entry["image_size"], entry["channels"], entry["crop"])
    dataset = data.load(opened, split, args.batch_size, preprocessing=how)
    model = build(weights=args.weights, activation=args.activation)
    output = f"{args.model}-{entry['activation']}-{args.weights}"
    context = {"dataset": name, "split": split, "weights": entry["id"]}
    return types.SimpleNamespace(
        model=model, dataset=dataset, context=context, norm=own["norm"], epsilon=own["epsilon"], output=output
    )


def _exported(args):
    """Returns an export, and the dataset at the image size that it takes."""
    from keras_sat import data, deployed

    if not (args.dataset and args.epsilon and args.output):
        raise ValueError(f"{args.folder} is an export: say --dataset, --epsilon and --output.")
    model = deployed.load(args.folder)
    options = {"classes": model.classes, "skip_damaged": args.skip_damaged}
    opened = data.source(args.dataset, args.data_dir, **options)
    split = args.split or data.evaluation_split(opened)
    dataset = data.load(opened, split, args.batch_size, preprocessing=_preprocessing(args.folder, model, opened))
    context = {"dataset": args.dataset, "split": split, "run": os.path.abspath(args.folder)}
    return types.SimpleNamespace(
        model=model, dataset=dataset, context=context, norm="linf", epsilon=args.epsilon, output=args.output
    )


def _trained(args):
    from keras_sat import run as run_lib

    run, model = run_lib.load(args.folder)
    run = _elsewhere(run, args)
    split = args.split or run.evaluation_split()
    for line in run_lib.changes(run, split):
        warnings.warn(f"The images changed since {args.folder} was trained. {line}.", stacklevel=2)
    dataset = run.load_data(split, args.batch_size)
    context = {"dataset": run.dataset, "split": split, "run": os.path.abspath(args.folder)}
    return types.SimpleNamespace(
        model=model, dataset=dataset, context=context, norm=run.norm, epsilon=run.epsilon, output=args.folder
    )


def _elsewhere(run, args):
    """Returns a run with the images that the flags name."""
    given = {name: getattr(args, name, None) for name in ("dataset", "data_dir", "skip_damaged")}
    return dataclasses.replace(run, **{name: value for name, value in given.items() if value})


def _opened(name, args, known, number):
    """Returns a dataset for released weights, its classes matched by name or, where these are numbers, by number."""
    from keras_sat import data

    options = {"data_dir": args.data_dir, "skip_damaged": args.skip_damaged}
    own = {_letters(each): each for each in data.source(name, args.data_dir).classes}
    numbers = [str(each) for each in range(number)]
    if set(own) <= set(numbers):
        return data.source(name, **options, classes=numbers)
    if known is None:
        if len(own) != number:
            raise ValueError(f"{name} has {len(own)} classes; the weights have {number}.")
        opened = data.source(name, **options)
        if isinstance(opened, data.Folder):
            _warn_of_order("The weights do not name their classes", opened)
        return opened
    return data.source(name, **options, classes=[own.get(_letters(each), each) for each in known])


def _warn_of_order(why, opened):
    shown = ", ".join(opened.classes[:3])
    warnings.warn(f"{why}: those of {opened.name} are taken in their order, {shown}, ...", stacklevel=3)


def _letters(name):
    """Returns a class's name without what a folder's name may not have: "T-shirt/top" is "T-shirt_top" there."""
    return re.sub(r"[\W_]", "", name.casefold()) or name


def _preprocessing(path, model, opened):
    """Returns how an export's images are made; says what is taken where the export does not say it."""
    from keras_sat import data

    if not model.classes:
        _warn_of_order(f"{path} does not name its classes (assets/labels.txt)", opened)
    if model.preprocessing:
        return model.preprocessing
    how = data.preprocessing_of(opened, model.image_size, channels=model.channels)
    warnings.warn(
        f"{path} does not say how its images are made (assets/preprocessing.json): crop {how.crop} is taken.",
        stacklevel=2,
    )
    return how


def _check_has_gradients(model, attacks):
    from keras_sat import evaluation
    from keras_sat.attacks import Square

    if not getattr(model, "has_gradients", True):
        for name, attack in attacks.items():
            if not isinstance(attack, (Square, evaluation.Corruption)):
                raise ValueError(f"{model.name} has no gradients, which {name} needs: take --attack=square.")


def _builder(name):
    from keras_sat import models

    if name not in models.BUILDERS:
        raise ValueError(f"model must be one of {', '.join(models.BUILDERS)}. Received: {name!r}")
    return models.BUILDERS[name]


def _shard(text):
    k, _, n = text.partition("/")
    if not (k.isdigit() and n.isdigit() and int(k) < int(n)):
        raise ValueError(f"shard must be K/N with K < N, such as 0/4. Received: {text!r}")
    return int(k), int(n)


REPORTS = "reports"


def _report_name(attack, balls, split):
    """Returns the name of an evaluation's files: the attack, the threat model and the split."""
    epsilons = ",".join(f"{ball.epsilon:g}" for ball in balls)
    part = split.replace(":", "..").replace("%", "pct")  # test[:500] is test_..500
    return re.sub(r"[^\w.,+-]+", "_", f"{attack}-{balls[0].norm}-{epsilons}-{part}").strip("_")


def _written(report, folder, name, k, n):
    """Writes a report; of shards each its own, and the whole once all are there.

    Returns the whole, or None, and the path of what was written.
    """
    from keras_sat import evaluation

    if n > 1:
        weights = report.context.get("weights_sha256", "")[:8]
        parts = [os.path.join(folder, REPORTS, f"{name}-{weights}-{number}-of-{n}.json") for number in range(n)]
        report.to_json(parts[k])
        print(f"\n{report.table()}\n\nWritten to {parts[k]}")
        if not all(map(os.path.exists, parts)):
            return None, parts[k]
        report = evaluation.merge([evaluation.from_json(part) for part in parts])
        for part in parts:
            os.remove(part)
    path = _write_report(report, folder, name)
    print(f"\n{report.table()}\n\nWritten to {path}; {os.path.join(folder, 'report.json')} is the newest.")
    return report, path


def _write_report(report, folder, name):
    """Writes a report to a file of its own, which report.json then leads to; returns its path."""
    path = _unused(os.path.join(folder, REPORTS, f"{name}.json"))
    report.to_json(path)
    _link(path, os.path.join(folder, "report.json"))
    return path


def _unused(path):
    """Returns path, or the first of NAME-2.json, NAME-3.json, ... that does not exist."""
    (stem, ending), number = os.path.splitext(path), 1
    while os.path.lexists(path):
        number += 1
        path = f"{stem}-{number}{ending}"
    return path


def _link(path, link):
    """Lets `link` lead to `path`; where there are no links, it is a copy. A file that was there is kept."""
    if os.path.exists(link) and not os.path.islink(link):
        os.replace(link, _unused(os.path.join(os.path.dirname(path), os.path.basename(link))))
    with files.replacing(link) as temporary:
        try:
            os.symlink(os.path.relpath(path, os.path.dirname(link)), temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def export(args):
    """Writes a trained network as a SavedModel for TF Serving."""
    from keras_sat import export as export_lib
    from keras_sat import run as run_lib

    run, model = run_lib.load(args.folder)
    run = _elsewhere(run, args)
    path = args.to or os.path.join(args.folder, "saved_model")
    if args.int8:
        export_lib.litert.check_name(args.int8)
        if args.dtype != "float32":
            raise ValueError(f"--int8 is made of a float32 network: leave out --dtype={args.dtype}.")
        images = run.calibration_images()  # before anything is written: the images may not be there
    run_lib.export(run, model, args.folder, path, args.dtype)
    print(f"Written to {path}")
    largest = max(max(outputs.values()) for outputs in export_lib.verify(path, model).values())
    print(f"Verified: a process without keras agrees with Keras to {largest:.1g} of the outputs' range.")
    if args.int8:
        export_lib.export_litert(path, args.int8, images)
        print(f"Written to {args.int8}; what is left of its robustness: keras-sat compare")
    return 0


def compare(args):
    """Measures what is left of the robustness of a trained network after export: float32, bfloat16, int8."""
    from keras_sat import evaluation
    from keras_sat import run as run_lib
    from keras_sat.attacks import PGD

    run, model = run_lib.load(args.folder)
    run = _elsewhere(run, args)
    for path in args.exported:
        _check_labels(path, run.description)
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


def _check_labels(path, described):
    """Raises ValueError for an export whose classes are not the run's; warns where its images are made otherwise."""
    from keras_sat import deployed

    labels, how = deployed.labels_of(path), deployed.preprocessing_of(path)
    if labels is None:
        warnings.warn(
            f"{path} does not name its classes (assets/labels.txt): they are taken for the run's.", stacklevel=2
        )
    elif labels != described.classes:
        pairs = zip(labels, described.classes)
        one, other = next(((a, b) for a, b in pairs if a != b), (len(labels), len(described.classes)))
        raise ValueError(f"{path} has other classes than the run: {one!r} in its labels.txt, {other!r} in run.json.")
    if how is not None and how != described.preprocessing:
        warnings.warn(
            f"{path} makes images otherwise than the run: {how}, not {described.preprocessing}. The run's are shown.",
            stacklevel=2,
        )


def predict(args):
    """Says to which class images belong, and how probable it is."""
    from keras_sat.export.signatures import classified

    model, how, classes = _predictor(args.folder)
    rows = []
    for path in _image_files(args.images):
        pixels = _pixels_of(path, how)
        values = classified(model(pixels[None]))["probabilities"].numpy()[0]
        names = classes or [str(number) for number in range(len(values))]
        best = values.argsort(kind="stable")[::-1][: args.top]
        rows.append({"image": path, "classes": {names[number]: float(values[number]) for number in best}})
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        width = max(len(row["image"]) for row in rows)
        for row in rows:
            shown = ", ".join(f"{name} {probability:.1%}" for name, probability in row["classes"].items())
            print(f"{row['image']:<{width}}  {shown}")
    return 0


def _predictor(folder):
    """Returns a run's or an export's network, how its images are made, and the names of its classes."""
    from keras_sat import deployed
    from keras_sat import run as run_lib
    from keras_sat.preprocessing import Preprocessing

    if not (folder.endswith(".tflite") or os.path.exists(os.path.join(folder, "saved_model.pb"))):
        run, model = run_lib.load(folder)
        return model, run.description.preprocessing, run.description.classes
    model = deployed.load(folder)
    how = model.preprocessing
    if how is None and None in (model.image_size, model.channels):
        raise ValueError(f"{folder} does not say how its images are made (assets/preprocessing.json).")
    if how is None:
        how = Preprocessing(model.image_size, model.image_size, model.channels)
        warnings.warn(
            f"{folder} does not say how its images are made (assets/preprocessing.json): crop {how.crop} is taken.",
            stacklevel=2,
        )
    return model, how, model.classes


def _image_files(paths):
    """Returns the files, and the images in the folders and below, in order."""
    from keras_sat.data import reading

    found = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not reading.is_hidden(name))
            images = sorted(name for name in names if name.lower().endswith(reading.KINDS))
            found += [os.path.join(folder, name) for name in images if not reading.is_hidden(name)]
    if not found:
        raise ValueError(f"There are no images in {', '.join(paths)}.")
    return found


def _pixels_of(path, how):
    import tensorflow as tf

    from keras_sat.data import reading

    try:
        return how(tf.io.read_file(path))
    except tf.errors.OpError as error:
        raise ValueError(f"{path} cannot be read: {reading.read(path).fault}.") from error


def check(args):
    """Reads all images of a dataset once: what is damaged, in two splits or classes at once, and how many there are.

    The exit status is 1 if something was found.
    """
    from keras_sat import data

    found = data.check(args.dataset, args.data_dir)
    print(found.table())
    return 0 if found.is_clean else 1


def serve(args):
    """Serves a SavedModel over TF Serving's REST and gRPC interfaces: for development, on this machine."""
    if importlib.util.find_spec("waitress") is None:
        raise ValueError(f"serve needs waitress: {extras.install('serve')}")
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
    from keras_sat import models

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
    "predict": predict,
    "check": check,
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
    "predict": _predict_flags,
    "check": _check_flags,
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


def _free(folder):
    """Returns the first of folder, folder-2, folder-3, ... that does not exist."""
    number, candidate = 1, folder
    while os.path.exists(candidate):
        number += 1
        candidate = f"{folder}-{number}"
    return candidate


def _interrupted(folder):
    print(
        f"\nkeras-sat: interrupted; the same command goes on; what was trained so far lies in {folder}", file=sys.stderr
    )
    return 130


def _line(error):
    """Returns in one line what an exception says."""
    from keras_sat.data import folder

    message = str(error)
    found = re.search(rf"{re.escape(folder.DAMAGED)}\] \[+(.*?)\]+$", message, re.MULTILINE)
    if found:
        return folder.damaged(found[1].strip("\"'"))
    if type(error).__module__.startswith("tensorflow"):
        message = re.sub(
            r"\{\{[^}]*\}\}|Graph execution error:|Detected at node.*?\n\n", "", getattr(error, "message", message)
        )
        return f"TensorFlow: {_first_line(message)} ({TRACEBACK}=1 shows all)"
    if isinstance(error, (ValueError, OSError, FloatingPointError, ImportError)):
        return " ".join(message.split())
    return f"{type(error).__name__}: {_first_line(message)} ({TRACEBACK}=1 shows all)"


def _first_line(text):
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


@contextlib.contextmanager
def _warnings_in_a_line():
    """Prints what is warned of as a line, where Python would show source code too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: print(
            f"keras-sat: {' '.join(str(message).split())}", file=sys.stderr
        )
        yield


def _main(args):
    logging.set_verbosity(logging.ERROR)  # TFDS tells where it looks, and warns of its own code
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("\nkeras-sat: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # what reads our output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.traceback or os.environ.get(TRACEBACK):
            raise
        print(f"keras-sat: {_line(error)}", file=sys.stderr)
        return 1


def main():
    """Runs the command line; the exit status is 0, 1 for bad input, 2 for bad flags, 130 for Ctrl-C."""
    with _warnings_in_a_line():
        try:
            app.run(_main, flags_parser=_parse)
        except KeyboardInterrupt:  # while the flags are read, which imports Keras
            print("\nkeras-sat: interrupted", file=sys.stderr)
            sys.exit(130)
