"""The command `keras-sat evaluate`."""

import argparse
import importlib.util
import os
import shlex
import sys

from keras_sat import evaluation, extras, files, provenance
from keras_sat.cli import flags, messages, shards
from keras_sat.evaluation import attack_names, report_files
from keras_sat.models.classifier import PRECISIONS
from keras_sat.preprocessing import CROPS


def add_flags(parser: argparse.ArgumentParser) -> None:
    from keras_sat import run as run_lib

    flags.add_network_path(parser, " (see --dataset)", nargs="?")
    parser.add_argument("--model", help="in place of a folder: a network with --weights, see `keras-sat list`")
    flags.add_network(parser, "--model", "say it with a file of --weights; default with a tag: silu")
    parser.add_argument("--weights", help="of --model: a tag such as sat-fashion-mnist, or a file X.weights.h5")
    parser.add_argument("--image_size", type=int, help="of the images, with a file of --weights; default: their own")
    parser.add_argument("--crop", choices=CROPS, help="of the images, with a file of --weights; default: as for train")
    flags.add_attack(parser)
    parser.add_argument(
        "--epsilon", type=flags.curve, help="in pixels 0..255; several with commas give a curve; default: the run's"
    )
    parser.add_argument("--norm", choices=run_lib.BALLS, help="default: the run's")
    flags.add_data(parser, "the run's or the weights' own")
    shards.add_flag(parser)
    low = [precision for precision in PRECISIONS if precision != "float32"]
    parser.add_argument("--attack_precision", choices=low, help="attack in this precision first")
    parser.add_argument(
        "--worst_case", action="store_true", help="also a row with the images that are robust to all attacks"
    )
    parser.add_argument("--audit", action="store_true", help="also audit for gradient masking")
    parser.add_argument("--html", action="store_true", help="also write report.html, with plots (needs matplotlib)")
    parser.add_argument(
        "--output", type=files.expanded, help="folder for the reports; default: the run's, or MODEL-ACTIVATION-WEIGHTS"
    )


def run(args: argparse.Namespace) -> int:
    """Measures the clean and robust accuracy of a trained or exported network; writes report.json.

    If it is killed, give the same command again: it continues where it stopped.
    """
    from keras_sat import run as run_lib

    if args.html and importlib.util.find_spec("matplotlib") is None:  # checked now, not after hours of attacks
        raise ValueError(f"--html draws with matplotlib: {extras.install('report')}")
    shard = shards.parse(args.shard)
    subject = _subject(args)
    norm = args.norm or subject.norm
    given = args.epsilon or str(flags.known_epsilon(norm, subject, _without_epsilon(args)))
    epsilons = [float(text) for text in given.split(",")]
    ball, *_ = [run_lib.BALLS[norm](epsilon) for epsilon in epsilons]  # all of them, to check each epsilon
    attacks = _attacks(args, subject, ball, is_curve=len(epsilons) > 1)
    output = args.output or subject.output
    os.makedirs(output, exist_ok=True)
    state = _state(args, subject, output)
    report = _report(args, subject, attacks, epsilons, state=state, shard=shard)
    name = report_files.name(args.attack, norm, epsilons, subject.context["split"])
    whole, path = _write(report, output, name, shard)
    audit = _audit(args, subject, ball, output, name) if args.audit else None
    if args.html and whole:
        _write_page(whole, audit, path, output)
    if os.path.exists(state):
        os.remove(state)
    return 0


def _without_epsilon(args):
    """Returns the message for a network whose training had no epsilon, or does not say it."""
    if not args.folder:
        return "These weights do not say an epsilon: say --epsilon, in pixels 0..255."
    return (
        f"{args.folder} was trained on Gaussian noise: `keras-sat certify` evaluates it. To attack it anyway, say "
        "--epsilon, in pixels 0..255."
    )


def _subject(args):
    """Returns the network to evaluate and its dataset."""
    from keras_sat import run as run_lib

    names = ("dataset", "data_dir", "split", "batch_size", "skip_damaged")
    options = {name: getattr(args, name) for name in names}
    own = {name: getattr(args, name) for name in ("form", "normalization", "image_size", "crop")}
    if args.model or args.weights:
        if args.folder or not (args.model and args.weights):
            raise ValueError("--model and --weights go together, in place of a folder.")
        messages.say(f"Reading {args.model} with the weights {args.weights}, and its images ...")
        return run_lib.open_weights(args.model, args.weights, args.activation, **own, **options)
    if given := [f"--{name}" for name, value in {"activation": args.activation, **own}.items() if value is not None]:
        raise ValueError(f"Say {' and '.join(given)} with --model and --weights only: a folder says its own.")
    if not args.folder:
        raise ValueError("Say what to evaluate: a folder, or --model and --weights.")
    messages.say(f"Reading {args.folder} and its images ...")
    if not run_lib.is_export(args.folder):
        return run_lib.open_run(args.folder, **options)
    if not (args.dataset and args.epsilon and args.output):
        raise ValueError(f"{args.folder} is an export: say --dataset, --epsilon and --output.")
    return run_lib.open_export(args.folder, **options)


def _attacks(args, subject, ball, is_curve):
    """Returns {name: attack}. Raises ValueError if an attack needs gradients that the network does not have.

    It also raises ValueError for several epsilons with several attacks or with `attack_precision`.
    """
    attacks = attack_names.from_names(args.attack, ball)
    subject.check_attacks(attacks)
    if args.worst_case and (is_curve or all(attack.ball is None for attack in attacks.values())):
        raise ValueError("--worst_case is for one or more attacks at one epsilon.")
    if is_curve and (len(attacks) > 1 or args.attack_precision):
        raise ValueError("Several values of epsilon take one attack, and no attack_precision.")
    return attacks


def _report(args, subject, attacks, epsilons, **options):
    """Returns the report of the attacks, or the curve of one attack over several epsilons."""
    options |= {"seed": args.seed, "batch_size": args.batch_size, "context": subject.context}
    if len(epsilons) > 1:
        (attack,) = attacks.values()
        return evaluation.sweep(subject.model, subject.dataset, attack, epsilons, **options)
    options["attack_precision"] = args.attack_precision
    report = evaluation.evaluate(subject.model, subject.dataset, attacks, **options)
    return report.worst_of() if args.worst_case else report


def _state(args, subject, output):
    """Returns the path of the state file, from which the same command continues."""
    given = {name: value for name, value in vars(args).items() if name not in ("run", "traceback")}
    given["weights_sha256"] = provenance.weights_sha256(subject.model)
    return os.path.join(output, f".evaluation-{files.fingerprint(given)}.npz")


def _write(report, output, name, shard):
    """Writes and prints a report. Each shard writes its own file. The shard that ends last merges all files.

    Returns:
        The report of the whole dataset and the path of its file; None and None as long as shards are missing.
    """
    report = shards.whole(
        report,
        output,
        name,
        shard,
        table=report.table(),
        settings={row.name: row.settings for row in report.results},
        read=evaluation.from_json,
        merge=evaluation.merge,
    )
    if report is None:
        return None, None
    path = report_files.write(report, output, name)
    print(f"\n{report.table()}\n\nWritten to {path}; {os.path.join(output, 'report.json')} is the newest report.")
    return report, path


def _audit(args, subject, ball, output, name):
    print()
    audit = evaluation.audit(subject.model, subject.dataset, ball, seed=args.seed)
    path = report_files.unused(os.path.join(output, report_files.FOLDER, f"{name}-audit.json"))
    audit.to_json(path)
    report_files.link(path, os.path.join(output, "audit.json"))
    print(f"\nAudit for gradient masking:\n{audit.table()}\n\nWritten to {path}")
    return audit


def _write_page(report, audit, path, output):
    page = f"{os.path.splitext(path)[0]}.html"
    messages.say("\nDrawing the report page ...")
    report.to_html(page, audit, shlex.join(["keras-sat", *sys.argv[1:]]))
    newest = os.path.join(output, "report.html")
    report_files.link(page, newest)
    print(f"Written to {page}; {newest} is the newest page.")
