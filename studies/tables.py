"""Writes the tables and plots of docs/study.md from the results in studies/.

    pip install '.[docs]'
    python studies/tables.py                            # writes the page
    python studies/tables.py --results=runs/results     # prints the tables of other results, and leaves the page

Each table is between two comments in the page. The rest of the page is written by hand.
"""

import argparse
import os
import re

import matplotlib
import numpy as np
from smooth_activations import ACTIVATIONS, FOLDER, SMOOTH_BACKWARD, STUDIES, bits, results

from keras_sat import files

DOCS = os.path.join(os.path.dirname(__file__), "..", "docs")
PAGE = os.path.join(DOCS, "study.md")
FIGURES = os.path.join(DOCS, "figures")
# {heading: (evaluation, row of its report)}
ROWS = {
    "clean": ("pgd-50", "clean"),
    "PGD-50": ("pgd-50", "PGD-50"),
    "AutoAttack": ("autoattack", "AutoAttack"),
    "APGD-CE + APGD-T": ("autoattack-short", "AutoAttack-short"),
}
RESAMPLES = 2000


def robust(run, evaluation, row):
    """Returns which images are robust in an evaluation of a run: booleans [images]."""
    return np.array(bits(run["attacks"][evaluation][row]))


def seeds(runs, kind):
    """Returns the seeds of all runs of a kind, such as "silu"."""
    return sorted(int(name.rsplit("-", 1)[1]) for name in runs if name.rsplit("-", 1)[0] == kind)


def summary(runs, kind, row):
    """Returns the mean and standard deviation of the accuracy over seeds, in %. With one seed, the latter is NaN."""
    accuracy = [100 * robust(runs[f"{kind}-{seed}"], *ROWS[row]).mean() for seed in seeds(runs, kind)]
    return np.mean(accuracy), np.std(accuracy, ddof=1) if len(accuracy) > 1 else np.nan


def difference(runs, kind, row):
    """Returns the mean difference to relu in %, and its 95 % interval (low, high).

    The runs of equal seeds are compared on the same images. The interval is from resampling the images (bootstrap).
    """
    common = set(seeds(runs, kind)) & set(seeds(runs, "relu"))
    pairs = [[robust(runs[f"{name}-{seed}"], *ROWS[row]) for name in (kind, "relu")] for seed in sorted(common)]
    by_image = 100 * np.mean([one.astype(float) - other for one, other in pairs], axis=0)
    rng = np.random.default_rng(0)
    means = [by_image[rng.integers(0, len(by_image), len(by_image))].mean() for _ in range(RESAMPLES)]
    return by_image.mean(), *np.percentile(means, [2.5, 97.5])


def table(runs, kinds, rows=("clean", "PGD-50", "AutoAttack")):
    """Returns a Markdown table of accuracies, with a row for each kind of run.

    Args:
        runs: {name of a run: its record}.
        kinds: the kinds of run, such as "silu".
        rows: the columns, of ROWS.
    """
    headings = " | ".join(f"{row} | over relu" for row in rows)
    lines = [f"| | seeds | {headings} |", "|---" * (2 + 2 * len(rows)) + "|"]
    for kind in kinds:
        if not seeds(runs, kind):
            continue
        cells = [f"`{kind}`", str(len(seeds(runs, kind)))]
        for row in rows:
            mean, deviation = summary(runs, kind, row)
            cells.append(f"{mean:.1f} ± {deviation:.1f}" if deviation == deviation else f"{mean:.1f}")
            cells.append("" if kind == "relu" else "{:+.1f} ({:+.1f} .. {:+.1f})".format(*difference(runs, kind, row)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curve(runs, kind):
    """Returns a list of epsilons, and the mean robust accuracy over seeds at each, in %."""
    curves = [runs[f"{kind}-{seed}"]["attacks"]["curve"] for seed in seeds(runs, kind)]
    epsilons = [float(name.removeprefix("epsilon ")) for name in curves[0]]
    return epsilons, [100 * np.mean([bits(one[name]) for one in curves]) for name in curves[0]]


def curve_table(runs, kinds):
    """Returns a Markdown table of the robust accuracy at each epsilon, with a row for each kind of run."""
    known = [kind for kind in kinds if seeds(runs, kind)]
    epsilons = curve(runs, known[0])[0]
    lines = ["| epsilon | " + " | ".join(f"{epsilon:g}" for epsilon in epsilons) + " |"]
    lines.append("|---" * (len(epsilons) + 1) + "|")
    for kind in known:
        lines.append(f"| `{kind}` | " + " | ".join(f"{value:.1f}" for value in curve(runs, kind)[1]) + " |")
    return "\n".join(lines)


def beyond_table(runs, kinds):
    """Returns a Markdown table of robust accuracy at 1.25 epsilon under several attacks, in %, means over seeds."""
    rows = ("PGD-50", "APGD-T", "Square", "worst case")
    lines = ["| at epsilon 31.875 | seeds | " + " | ".join(rows) + " |", "|---" * (2 + len(rows)) + "|"]
    for kind in kinds:
        measured = [one for seed in seeds(runs, kind) if "beyond" in (one := runs[f"{kind}-{seed}"])["attacks"]]
        if measured:
            means = [100 * np.mean([robust(one, "beyond", row).mean() for one in measured]) for row in rows]
            lines.append(f"| `{kind}` | {len(measured)} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
    return "\n".join(lines)


def probes_table(runs, kinds):
    """Returns a Markdown table of what the guard measured beyond epsilon during training, in %, means over seeds."""
    factors = ("1.25", "1.5")
    lines = ["| | seeds | " + " | ".join(f"{factor} epsilon, after each epoch" for factor in factors) + " |"]
    lines.append("|---" * (2 + len(factors)) + "|")
    for kind in kinds:
        if not (known := seeds(runs, kind)):
            continue
        cells = [f"`{kind}`", str(len(known))]
        for factor in factors:
            histories = [runs[f"{kind}-{seed}"]["history"][f"probe_accuracy_{factor}_epsilon"] for seed in known]
            cells.append(", ".join(f"{100 * value:.1f}" for value in np.mean(histories, axis=0)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables(studies):
    """Returns all tables of the page: {name in the comment: Markdown}.

    Args:
        studies: {name of a study: {name of a run: its record}}. A study without runs has no tables.
    """
    contents = {}
    if runs := studies["pgd_1"]:
        contents["activations"] = table(runs, ACTIVATIONS)
        contents["ablation"] = table(runs, ["relu", *SMOOTH_BACKWARD])
        contents["curve"] = curve_table(runs, [*ACTIVATIONS, *SMOOTH_BACKWARD])
    for name in ("pgd_10", "pgd_10_short_steps", "resnet20"):
        if runs := studies[name]:
            kinds = list(STUDIES[name].seeds)
            contents[name] = table(runs, kinds, ("clean", "PGD-50", "APGD-CE + APGD-T"))
            contents[f"{name}_curve"] = curve_table(runs, kinds)
            contents[f"{name}_beyond"] = beyond_table(runs, kinds)
            if name != "resnet20":  # without a guard
                contents[f"{name}_probes"] = probes_table(runs, kinds)
    return contents


def filled(page, contents):
    """Returns the text of the page with new tables.

    Args:
        page: text of the page.
        contents: {name in the comment: Markdown}.

    Raises:
        ValueError: if the page has no place for a table.
    """
    for name, text in contents.items():
        place = re.compile(f"(?s)<!-- {name} -->.*?<!-- end -->")
        if not place.search(page):
            raise ValueError(f"{PAGE} has no place for {name}: <!-- {name} --> ... <!-- end --> was expected.")
        page = place.sub(lambda _, text=text, name=name: f"<!-- {name} -->\n{text}\n<!-- end -->", page)
    return page


def plot(runs, folder):
    """Writes the three plots as SVG files. The same results give identical files."""
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "keras_sat", "axes.grid": True, "grid.alpha": 0.3, "figure.figsize": (7, 4.5)}
    os.makedirs(folder, exist_ok=True)
    kinds = [kind for kind in ACTIVATIONS if seeds(runs, kind)]
    colours = dict(zip(ACTIVATIONS, plt.colormaps["tab10"].colors))
    drawn = {
        "study-accuracy-robustness": _accuracy_robustness,
        "study-training": _training,
        "study-epsilon": _epsilon,
    }
    for name, draw in drawn.items():
        figure, axis = plt.subplots()
        draw(axis, runs, kinds, colours)
        axis.legend(fontsize=8)
        figure.tight_layout()
        with files.atomic_write(os.path.join(folder, f"{name}.svg")) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        plt.close(figure)


def _accuracy_robustness(axis, runs, kinds, colours):
    for kind in kinds:
        (x, dx), (y, dy) = (summary(runs, kind, row) for row in ("clean", "AutoAttack"))
        axis.errorbar(x, y, dy, dx, "o", color=colours[kind], label=kind, capsize=3)
    axis.set(xlabel="clean accuracy, %", ylabel="accuracy under AutoAttack, %")


def _training(axis, runs, kinds, colours):
    for kind in kinds:
        histories = [runs[f"{kind}-{seed}"]["history"] for seed in seeds(runs, kind)]
        for metric, style, label in (("val_robust_accuracy", "-", kind), ("adversarial_accuracy", ":", None)):
            # The first study was made when `adversarial_accuracy` was called `accuracy`.
            values = 100 * np.mean([history.get(metric) or history["accuracy"] for history in histories], axis=0)
            axis.plot(range(1, len(values) + 1), values, style, color=colours[kind], label=label)
    axis.set(xlabel="epoch", ylabel="%, under PGD-10 (held-out; solid), on PGD-1 (training; dotted)")


def _epsilon(axis, runs, kinds, colours):
    for kind in kinds:
        axis.plot(*curve(runs, kind), "o-", color=colours[kind], label=kind, markersize=3)
    for kind, style in zip(SMOOTH_BACKWARD, ("k--", "k-.", "k:")):
        if seeds(runs, kind):
            axis.plot(*curve(runs, kind), style, label=kind, linewidth=1)
    axis.axvline(25.5, color="grey", linewidth=0.8)
    axis.set(xlabel="epsilon, pixels 0..255 (trained with 25.5)", ylabel="accuracy under PGD-50, %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=files.expanded, help="folder of other results, whose tables are printed")
    args = parser.parse_args()
    studies = {name: results(name, args.results or FOLDER) for name in STUDIES}
    if args.results:
        for name, text in tables(studies).items():
            print(f"{name}\n\n{text}\n")
        return
    with open(PAGE, encoding="utf-8") as file:
        page = filled(file.read(), tables(studies))
    files.write_text(PAGE, page)
    plot(studies["pgd_1"], FIGURES)


if __name__ == "__main__":
    main()
