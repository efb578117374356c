"""The command `keras-sat predict`."""

import argparse
import json
import os
import sys

from keras_sat import files, tables
from keras_sat.cli import flags, messages
from keras_sat.evaluation import attack_names


def add_flags(parser: argparse.ArgumentParser) -> None:
    from keras_sat import run as run_lib

    flags.add_network_path(parser)
    parser.add_argument("images", nargs="+", type=files.expanded, help="image files, and folders of them")
    parser.add_argument("--top", type=flags.positive, default=1, help="classes to show of each image (default: 1)")
    text = f"also attack the images: {', '.join(attack_names.names())}; several with commas; untargeted, away from the "
    parser.add_argument("--attack", help=text + "class that the network names itself; default: none")
    text = "of --attack, in pixels 0..255; default: that of the training, which a run and its export note"
    parser.add_argument("--epsilon", type=flags.pixels, help=text)
    parser.add_argument("--norm", choices=run_lib.BALLS, help="of --attack; default: that of the training, or linf")
    text = "with --attack: folder for NAME.png, as the network sees the image, and NAME.adversarial.png"
    parser.add_argument("--output", type=files.expanded, help=text)
    flags.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Names the most probable classes of images, with their probabilities; also of what an attack makes of them."""
    from keras_sat import run as run_lib

    _check(args)
    messages.say(f"Reading {args.folder} ...", to=sys.stderr)  # standard output is for the table, or JSON
    predict = run_lib.open_predictor(args.folder)
    attacks = _attacks(args, predict) if args.attack else {}
    images = run_lib.image_files(args.images)
    paths = run_lib.written_files(images, list(attacks), args.output) if args.output else {}
    if attacks:
        messages.say("Compiling the attacks (up to a minute each) ...", to=sys.stderr)
    rows = [_row(predict, image, attacks, paths.get(image), args.top) for image in images]
    print(json.dumps(rows, indent=2) if args.json else _table(rows, attacks))
    return 0


def _check(args):
    """Raises ValueError for a flag of --attack without it."""
    for name in ("epsilon", "norm", "output"):
        if getattr(args, name) is not None and not args.attack:
            raise ValueError(f"--{name} goes with --attack, such as --attack=pgd-50.")


def _attacks(args, predict):
    """Returns {name: attack}. Raises ValueError if epsilon is unknown, or the network lacks gradients."""
    from keras_sat import run as run_lib

    norm, epsilon = args.norm or predict.norm, args.epsilon
    if epsilon is None:
        without = f"{args.folder} does not say an epsilon: say --epsilon, in pixels 0..255."
        epsilon = flags.known_epsilon(norm, predict, without)
    attacks = attack_names.from_names(args.attack, run_lib.BALLS[norm](epsilon))
    run_lib.check_attacks(predict.model, attacks)
    return attacks


def _row(predict, image, attacks, paths, top):
    """Returns what is printed of an image. If there are `paths`, writes its files."""
    from keras_sat import run as run_lib

    row = {"image": image, "classes": _first(predict(image), top)}
    if paths:
        os.makedirs(os.path.dirname(paths[0]), exist_ok=True)
        run_lib.write_png(paths[0], predict.pixels(image))
    attacked = {}
    for number, (name, attack) in enumerate(attacks.items(), 1):
        result = predict.attacked(image, attack)
        ball = {} if attack.ball is None else {"norm": attack.ball.norm, "epsilon": attack.ball.epsilon}
        attacked[name] = {**ball, "classes": _first(result.classes, top)}
        if paths:
            run_lib.write_png(paths[number], result.levels)
            attacked[name] |= {"file": paths[number], "classes_of_file": _first(result.classes_of_levels, top)}
    return row | ({"attacked": attacked} if attacks else {})


def _first(classes, top):
    return dict(list(classes.items())[:top])


def _table(rows, attacks):
    if not attacks:
        return tables.text(*((row["image"], _shown(row["classes"])) for row in rows))
    lines = [("image", "clean", *(f"under {name}" for name in attacks))]
    for row in rows:
        lines.append((row["image"], _shown(row["classes"]), *(_under(each) for each in row["attacked"].values())))
    ball = next((attack.ball for attack in attacks.values() if attack.ball is not None), None)
    size = f", {ball.norm} epsilon {ball.radius:g} of 255" if ball else ""
    return f"{tables.text(*lines)}\n\nEach attack is untargeted, away from the class in the column clean{size}."


def _under(attacked):
    """Returns the classes under an attack; and those of the written file where they are others."""
    shown = _shown(attacked["classes"])
    of_file = attacked.get("classes_of_file")
    is_other = of_file is not None and list(of_file) != list(attacked["classes"])
    return f"{shown} (as a file: {_shown(of_file)})" if is_other else shown


def _shown(classes):
    return ", ".join(f"{name} {probability:.1%}" for name, probability in classes.items())
