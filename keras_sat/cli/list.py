"""The command `keras-sat list`."""

import argparse
import json

from keras_sat import activations, data, models, tables
from keras_sat.cli import flags
from keras_sat.evaluation import attack_names


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Lists the networks, activations, embedded datasets, attacks, recipes and released weights."""
    from keras_sat import run as run_lib

    names = {
        "models": list(models.BUILDERS),
        "activations": activations.names(),
        "datasets": data.names(),
        "attacks": attack_names.names(),
        "recipes": list(run_lib.RECIPES),
    }
    forms = {name: list(build.forms) for name, build in models.BUILDERS.items()}
    if args.json:
        print(json.dumps({**names, "forms": forms, "weights": models.list_weights()}, indent=2))
        return 0
    several = [f"{name} ({', '.join(each)})" for name, each in forms.items() if len(each) > 1]
    lines = names | {"forms": [*several, "each WideResNet<depth>_<width> as WideResNet28_10"]}
    print("\n".join(f"{kind:<12} {', '.join(each)}" for kind, each in lines.items()))
    print("\nweights      accuracy in %: of sat-imagenet as its authors report it, else as measured here")
    print(_weights_table())
    return 0


def _weights_table():
    header = ("tag", "model", "activation", "image_size", "parameters", "clean", "robust", "under")
    rows = [["-" if row[name] is None else str(row[name]) for name in header] for row in models.list_weights()]
    return tables.text(header, *rows)
