"""The command `keras-sat certify`."""

import argparse
import os

from keras_sat import evaluation, files
from keras_sat.cli import flags, messages, shards
from keras_sat.evaluation import CertificationReport, report_files


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_network_path(parser, " (see --dataset)")
    parser.add_argument("--sigma", type=float, help="of the noise, in pixels 0..255; default: the run's")
    parser.add_argument("--selection", type=int, default=100, help="noisy images that select a class (default: 100)")
    parser.add_argument(
        "--samples", type=int, default=100_000, help="noisy images that certify this class (default: 100000)"
    )
    parser.add_argument(
        "--alpha",
        type=float,
        default=0.001,
        help="probability that the radius of an image is too large (default: 0.001)",
    )
    parser.add_argument("--radii", help="L2 radii to print, in pixels, with commas; default: multiples of sigma / 2")
    flags.add_data(parser, "the run's")
    shards.add_flag(parser)
    parser.add_argument("--output", type=files.expanded, help="folder for the reports; default: the run's")


def run(args: argparse.Namespace) -> int:
    """Certifies a network under Gaussian noise (randomised smoothing); writes certification.json.

    If it is killed, give the same command again: it continues where it stopped.
    """
    shard, radii = shards.parse(args.shard), _radii(args.radii)
    messages.say(f"Reading {args.folder} and its images ...")
    subject, sigma = _subject(args)
    output = args.output or subject.output
    os.makedirs(output, exist_ok=True)
    settings = {"sigma": sigma, "n0": args.selection, "n": args.samples, "alpha": args.alpha, "seed": args.seed}
    name = report_files.name(f"certified-{args.samples}", "noise", [sigma], subject.context["split"])
    key = files.fingerprint({**settings, **subject.context, "shard": args.shard})
    state = os.path.join(output, f".certification-{key}.json")
    report = evaluation.certify(
        subject.model,
        subject.dataset,
        batch_size=args.batch_size,
        context=subject.context,
        state=state,
        shard=shard,
        **settings,
    )
    _write(report, output, name, shard, radii)
    os.remove(state)
    return 0


def _radii(text):
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"radii must be numbers with commas, such as 0,63.75,127.5. Received: {text!r}") from None


def _subject(args):
    """Returns the network with its dataset, and sigma."""
    from keras_sat import run as run_lib

    names = ("dataset", "data_dir", "split", "batch_size", "skip_damaged")
    options = {name: getattr(args, name) for name in names}
    if run_lib.is_export(args.folder):
        if not (args.dataset and args.sigma is not None and args.output):
            raise ValueError(f"{args.folder} is an export: say --dataset, --sigma and --output.")
        return run_lib.open_export(args.folder, **options), args.sigma
    sigma = run_lib.read_settings(args.folder).get("sigma") if args.sigma is None else args.sigma
    if sigma is None:
        raise ValueError("This run was trained without noise: say --sigma, in pixels 0..255.")
    return run_lib.open_run(args.folder, **options), sigma


def _write(report, output, name, shard, radii):
    """Writes and prints a report. Each shard writes its own file. The shard that ends last merges all files."""
    report = shards.whole(
        report,
        output,
        name,
        shard,
        table=report.table(radii),
        settings=report.settings,
        read=CertificationReport.from_json,
        merge=CertificationReport.merge,
    )
    if report is None:
        return
    path = report_files.unused(os.path.join(output, report_files.FOLDER, f"{name}.json"))
    report.to_json(path)
    newest = os.path.join(output, "certification.json")
    report_files.link(path, newest)
    print(f"\n{report.table(radii)}\n\nWritten to {path}; {newest} is the newest report.")
