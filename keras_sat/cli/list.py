"""The command `keras-sat list`."""

import argparse
import json
from typing import Any

from keras_sat import activations, data, models, tables
from keras_sat.cli import flags
from keras_sat.evaluation import attack_names

COLUMNS = ("tag", "model", "activation", "image_size", "parameters", "clean", "robust", "under")
SHORT = {'{"name": "gelu", "approximate": false}': "gelu (exact)"}
LEADERBOARD = ("robust", "clean", "under", "dataset", "threat", "model", "form", "activation", "tag")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", help="weights for this dataset, such as cifar10; most robust first")
    parser.add_argument("--threat", help="weights for this threat model: Linf, L2 or corruptions; most robust first")
    parser.add_argument("--model", help="weights of this network, such as WideResNet28_10; most robust first")
    flags.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Lists the networks, activations, embedded datasets, attacks, recipes and released weights."""
    from keras_sat import run as run_lib

    filters = {"dataset": args.dataset, "threat": args.threat, "model": args.model}
    rows = models.list_weights(**filters)
    names = {
        "models": list(models.BUILDERS),
        "activations": activations.names(),
        "datasets": data.names(),
        "attacks": attack_names.names(),
        "recipes": list(run_lib.RECIPES),
    }
    forms = {name: list(build.forms) for name, build in models.BUILDERS.items()}
    if args.json:
        print(json.dumps({**names, "forms": forms, "weights": rows}, indent=2))
    elif any(filters.values()):
        print(_leaderboard(rows))
    else:
        several = [f"{name} ({', '.join(each)})" for name, each in forms.items() if len(each) > 1]
        lines = names | {"forms": [*several, "each WideResNet<depth>_<width> as WideResNet28_10"]}
        print("\n".join(f"{kind:<12} {', '.join(each)}" for kind, each in lines.items()))
        print(f"\n{_overview(rows)}")
    return 0


def _overview(rows: list[dict[str, Any]]) -> str:
    """Returns the text about all weights: a line for each of this package and of SAT, a count of RobustBench's."""
    reported = [row for row in rows if row["tag"].startswith(models.weights.ROBUSTBENCH)]
    own = [row for row in rows if row not in reported]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in reported:
        groups.setdefault((row["dataset"], row["threat"]), []).append(row)
    counts = [
        (dataset, threat, str(len(group)), _text(group[0]["robust"]), group[0]["tag"])
        for (dataset, threat), group in sorted(groups.items())
    ]
    lines = (
        "weights      accuracy in %: of sat-imagenet as its authors report it, else as measured here",
        tables.text(COLUMNS, *([_text(row[name]) for name in COLUMNS] for row in own)),
        "",
        f"robustbench  {len(reported)} networks, accuracy in % as RobustBench reports it: none was measured here",
        tables.text(("dataset", "threat", "networks", "robust", "the most robust one"), *counts),
        "",
        "`keras-sat list --dataset=cifar10 --threat=Linf` lists all weights for them, the most robust first.",
    )
    return "\n".join(lines)


def _leaderboard(rows: list[dict[str, Any]]) -> str:
    """Returns a table of weights. What is the same for all of them stands above it, once."""
    cells = [{name: _text(row[name]) for name in LEADERBOARD} | {"under": _attack(row)} for row in rows]
    shared = [name for name in ("dataset", "threat", "model") if len({row[name] for row in cells}) == 1]
    columns = [name for name in LEADERBOARD if name not in shared]
    lines = (
        f"{len(rows)} weights{''.join(f', {name} {cells[0][name]}' for name in shared)}, the most robust first",
        "accuracy in %: measured here if marked *, else as the authors or RobustBench report it;",
        'under: the attack and its epsilon of 255 ("external": an evaluation that RobustBench took from elsewhere);',
        "robust accuracies compare only within one dataset, threat model and epsilon",
        tables.text(columns, *([row[name] for name in columns] for row in cells)),
    )
    return "\n".join(lines)


def _attack(row: dict[str, Any]) -> str:
    """Returns the name of the attack and the epsilon, in short."""
    if row["under"] is None:
        return "-"
    attack, *settings = row["under"].split(", ")
    epsilon = [each.removeprefix("epsilon ").removesuffix(" of 255") for each in settings if each.startswith("epsilon")]
    notes = "*" * row["measured"] + " (unreliable)" * bool(row["unreliable"])
    return " ".join([attack, *epsilon]) + notes


def _text(value: Any) -> str:
    return "-" if value is None else SHORT.get(value, str(value))
