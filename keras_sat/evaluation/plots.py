"""The plots of reports, drawn by matplotlib in black and in the colours of `html_page.SERIES`."""

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_sat import extras, files
from keras_sat.evaluation import html_page, intervals, summary

if TYPE_CHECKING:
    from keras_sat.evaluation.report import AttackResult, RobustnessReport

WIDTH = 4.8  # inches: 461 pixels, of which a phone shows 358, so that text of 10 points is still read there
SHOWN_CLASSES = 25
_MARKERS = "osD^vP"
_LINES = ("-", "--", ":")


def write(plots: dict[str, tuple[Any, str]], stem: str) -> None:
    """Writes each plot as STEM-NAME.svg and STEM-NAME.png.

    Args:
        plots: {name: (figure, caption)}.
        stem: path without ending.
    """
    for name, (figure, _) in plots.items():
        for kind in ("svg", "png"):
            with files.atomic_write(f"{stem}-{name}.{kind}") as temporary, open(temporary, "wb") as file:
                file.write(html_page.rendered(figure, kind))


def of_report(report: "RobustnessReport") -> dict[str, tuple[Any, str]]:
    """Returns {name of the plot: (figure, caption)} of a report.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    plots = {"accuracy": (_accuracy(report), "Accuracy, with 95 % intervals")}
    plots |= against_epsilon(summary.curves(report))
    attacks = summary.adversarial(report)
    if report.examples and attacks:
        plots["classes"] = _classes(report, min(attacks, key=lambda row: row.accuracy))
    return plots


def against_epsilon(
    curves: "dict[str, list[tuple[float, AttackResult]]]", where: str = ""
) -> dict[str, tuple[Any, str]]:
    """Returns {name of the plot: (figure, caption)}, one for each norm and range of values among the curves.

    Args:
        curves: {label: [(epsilon, row)]}; the first row of a curve is the clean one.
        where: text for the end of the caption, such as the images of the curves.
    """
    by_axis: dict[str, dict] = {}
    for label, curve in curves.items():
        by_axis.setdefault(summary.axis(curve[-1][1]), {})[label] = curve
    caption = f"Robust accuracy against epsilon, with 95 % intervals; at epsilon 0: clean accuracy{where}"
    return {
        "epsilon" if number == 1 else f"epsilon-{number}": (_lines(alike, axis), caption)
        for number, (axis, alike) in enumerate(by_axis.items(), 1)
    }


def _lines(curves, axis):
    figure, axes = _axes(3.2 + 0.2 * len(curves))
    for number, (label, curve) in enumerate(curves.items()):
        color = html_page.SERIES[number % len(html_page.SERIES)][0]
        line = _LINES[number // len(html_page.SERIES) % len(_LINES)]
        epsilons = [epsilon for epsilon, _ in curve]
        accuracies = [100 * row.accuracy for _, row in curve]
        axes.plot(epsilons, accuracies, line, marker=_MARKERS[number % len(_MARKERS)], color=color, label=label)
        low, high = (100 * np.array(bound) for bound in zip(*(row.interval for _, row in curve)))
        axes.fill_between(epsilons, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel=axis, ylabel="robust accuracy, %", ylim=(0, 100))
    axes.set_xlim(left=0)
    axes.grid(color="black", alpha=0.15)
    figure.legend(loc="outside upper left", frameon=False)
    return figure


def _axes(height):
    """Returns a figure of `WIDTH` and its axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"The page's plots are drawn by matplotlib: {extras.install('report')}") from error
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _accuracy(report):
    figure, axes = _axes(0.9 + 0.35 * len(report.results))
    rows = report.results[::-1]
    accuracies = 100 * np.array([row.accuracy for row in rows])
    reach = np.maximum(np.abs(100 * np.array([row.interval for row in rows]).T - accuracies), 0)
    color = html_page.SERIES[0][0]
    axes.barh([row.name for row in rows], accuracies, color=color, alpha=0.35)
    axes.errorbar(accuracies, range(len(rows)), xerr=reach, fmt="none", ecolor="black")
    for place, accuracy in enumerate(accuracies):
        axes.text(1, place, f"{accuracy:.1f}", va="center")
    axes.set(xlim=(0, 100), xlabel="accuracy, %")
    return figure


def _classes(report, row):
    """Returns the figure of the classes with the lowest accuracy under an attack, lowest first, and its caption."""
    labels, clean = np.array(report.examples["label"]), np.array(report.examples["clean"])
    robust = np.array([stage == "" for stage in report.examples["attacks"][row.name]["broken_by"]])
    classes = sorted(np.unique(labels), key=lambda label: (np.mean(robust[labels == label]), label))
    shown = classes[:SHOWN_CLASSES]
    figure, axes = _axes(1.2 + 0.36 * len(shown))
    places = np.arange(len(shown))
    color = html_page.SERIES[0][0]
    attack = summary.attack(report, row)
    for correct, shift, alpha, name in ((clean, -0.2, 0.35, "clean"), (robust, 0.2, 1, f"under {attack}")):
        of_class = [correct[labels == label] for label in shown]
        shares = np.array([np.mean(each) for each in of_class])
        bounds = np.array([intervals.wilson(int(np.sum(each)), len(each)) for each in of_class])
        reach = np.maximum(np.abs(bounds - shares[:, None]).T, 0) * 100
        axes.barh(places + shift, 100 * shares, 0.4, color=color, alpha=alpha, label=name)
        axes.errorbar(100 * shares, places + shift, xerr=reach, fmt="none", ecolor="black", elinewidth=1)
    axes.set_yticks(places, [_short(summary.class_name(report, int(label))) for label in shown])
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="accuracy, %")
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    which = "Accuracy of each class"
    if len(shown) < len(classes):
        which = f"Accuracy of the {len(shown)} classes, of {len(classes)}, with the lowest robust accuracy"
    return figure, f"{which}, clean and under {attack}; {summary.threat(row)}; with 95 % intervals"


def _short(name):
    return name if len(name) <= 20 else f"{name[:18]}..."
