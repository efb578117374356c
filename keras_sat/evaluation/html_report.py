"""Writes a report as one HTML page that loads no other files, and its plots as SVG and PNG files."""

import base64
import html
import io
import json
import os
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from keras_sat import extras, files
from keras_sat.evaluation import intervals
from keras_sat.evaluation._audit import AuditReport
from keras_sat.typing import Path

if TYPE_CHECKING:  # report imports this module
    from keras_sat.evaluation.report import RobustnessReport

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 52rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .25rem .75rem .25rem 0; vertical-align: top; }
th { border-bottom: 2px solid; } td { border-bottom: 1px solid #8888; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; background: #fff; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.pictures figure { margin: 0; } .pictures img { width: 32%; image-rendering: pixelated; }
figcaption { font-size: .85rem; } pre { white-space: pre-wrap; overflow-wrap: anywhere; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write(report: "RobustnessReport", path: Path, audit: AuditReport | None = None, command: str | None = None) -> None:
    """Writes the page and its plots. See `RobustnessReport.to_html`."""
    plots = _plots(report)
    stem = os.path.splitext(path)[0]
    for name, (figure, _) in plots.items():
        for kind in ("svg", "png"):
            with files.atomic_write(f"{stem}-{name}.{kind}") as temporary, open(temporary, "wb") as file:
                file.write(_rendered(figure, kind))
    files.write_text(path, _page(report, plots, audit, command))


def _page(report, plots, audit, command):
    parts = [_element("h1", f"Robustness of {report.context.get('model', 'a model')}"), _table(*_accuracies(report))]
    parts += [_element("p", remark) for remark in report.remarks()]
    parts += [_figure(figure, caption) for figure, caption in plots.values()]
    parts += [*_stages(report), *_pictures(report), *(_audit(audit) if audit else []), *_repetition(report, command)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>Robustness report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _accuracies(report):
    """Returns header and rows of the main table."""
    rows = []
    for row in report.results:
        threat = f"{row.settings['norm']}, {row.epsilon_text()}" if "norm" in row.settings else "-"
        shares = (intervals.percent(row.accuracy), intervals.text(row.interval))
        rows.append((row.name, threat, row.n, *shares, f"{row.seconds:.1f}"))
    return ("", "norm, epsilon", "images", "accuracy", "95 % interval", "seconds"), rows


def _stages(report):
    broken = [(row.name, stage, count) for row in _adversarial(report) for stage, count in row.broken_by.items()]
    if not broken:
        return []
    return [_element("h2", "Which attack broke what"), _table(("row", "attack", "images broken"), broken)]


def _pictures(report):
    pictures = [(row, report.pictures[row.name]) for row in _adversarial(report) if report.pictures.get(row.name)]
    if not pictures:
        return []
    explanation = "<p>Each: the image, the adversarial image, and their difference, amplified around grey.</p>"
    grids = [_grid(row.name, row.settings["bounds"], examples) for row, examples in pictures]
    return [_element("h2", "Adversarial images"), explanation, *grids]


def _audit(audit):
    verdict = "no check failed" if audit.passed else f"failed: {', '.join(audit.failed)}"
    rows = [
        (check.name, check.outcome, check.measured, check.meaning if check.name in audit.failed else "")
        for check in audit.checks
    ]
    table = _table(("check", "outcome", "measured", "what it means"), rows)
    return [_element("h2", f"Audit for masked gradients: {verdict}"), table]


def _repetition(report, command):
    settings = {row.name: row.settings for row in report.results if row.settings}
    configuration = json.dumps({"context": report.context, "attacks": settings}, indent=2)
    lines = [command] if command else []
    return [_element("h2", "To repeat it"), *(_element("pre", text) for text in (*lines, configuration))]


def _element(tag, text):
    return f"<{tag}>{html.escape(str(text))}</{tag}>"


def _table(header, rows):
    lines = ["<tr>" + "".join(_element("th", cell) for cell in header) + "</tr>"]
    lines += ["<tr>" + "".join(_element("td", cell) for cell in row) + "</tr>" for row in rows]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _figure(figure, caption):
    svg = _rendered(figure, "svg").decode()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(caption)}"', 1)
    return f"<figure>{svg}{_element('figcaption', caption)}</figure>"


def _rendered(figure, kind):
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def _plots(report):
    """Returns {name of the plot's files: (figure, caption)}."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"The page's plots are drawn by matplotlib: {extras.install('report')}") from error

    def axes(height):
        figure = Figure(figsize=(7, height), layout="constrained")
        return figure, figure.add_subplot()

    plots = {"accuracy": (_accuracy(report, *axes(0.9 + 0.35 * len(report.results))), "Accuracy, and 95 % intervals")}
    curve = _curve(report)
    if len(curve) > 1:
        plots["epsilon"] = (_against_epsilon(curve, *axes(3.5)), "Robust accuracy against epsilon, 95 % intervals")
    if report.examples and _adversarial(report):
        worst = min(_adversarial(report), key=lambda row: row.accuracy).name
        caption = f"Accuracy of each class, clean and under {worst}"
        plots["classes"] = (_classes(report.examples, worst, *axes(3.5)), caption)
    return plots


def _accuracy(report, figure, axes):
    rows = report.results[::-1]
    accuracies = 100 * np.array([row.accuracy for row in rows])
    reach = np.abs(100 * np.array([row.interval for row in rows]).T - accuracies)
    axes.barh([row.name for row in rows], accuracies, xerr=reach, color="0.75", edgecolor="0", capsize=3)
    for place, accuracy in enumerate(accuracies):
        axes.text(1, place, f"{accuracy:.1f}", va="center")
    axes.set(xlim=(0, 100), xlabel="accuracy, %")
    return figure


def _curve(report):
    """Returns (epsilon, row) of the rows that differ only in epsilon, the clean row first; [] for one epsilon."""

    def kind(row):
        return [row.settings.get(name) for name in ("attack", "norm", "version")]

    adversarial = _adversarial(report)
    alike = [row for row in adversarial if kind(row) == kind(adversarial[-1])]
    by_epsilon = {float(np.max(row.settings["epsilon"])): row for row in alike}
    return sorted({0.0: report["clean"], **by_epsilon}.items()) if len(by_epsilon) > 1 else []


def _adversarial(report):
    """Returns the rows of attacks, without those of corruptions."""
    return [row for row in report.results if "epsilon" in row.settings]


def _against_epsilon(curve, figure, axes):
    epsilons = [epsilon for epsilon, _ in curve]
    axes.plot(epsilons, [100 * row.accuracy for _, row in curve], "o-", color="0")
    low, high = zip(*(row.interval for _, row in curve))
    axes.fill_between(epsilons, 100 * np.array(low), 100 * np.array(high), color="0.85")
    axes.set(xlabel="epsilon", ylabel="robust accuracy, %", ylim=(0, 100))
    return figure


def _classes(examples, attack, figure, axes):
    labels, clean = np.array(examples["label"]), np.array(examples["clean"])
    robust = np.array([stage == "" for stage in examples["attacks"][attack]["broken_by"]])
    classes = np.unique(labels)
    places = np.arange(len(classes))
    for correct, shift, hatch, name in ((clean, -0.2, "", "clean"), (robust, 0.2, "///", attack)):
        of_class = [correct[labels == k] for k in classes]
        shares = np.array([np.mean(each) for each in of_class])
        bounds = np.array([intervals.wilson(int(np.sum(each)), len(each)) for each in of_class])
        reach = np.maximum(np.abs(bounds - shares[:, None]).T, 0) * 100
        axes.bar(places + shift, 100 * shares, 0.4, yerr=reach, hatch=hatch, color="0.9", edgecolor="0", label=name)
    axes.set(xlabel="class", ylabel="accuracy, %", ylim=(0, 100))
    axes.set_xticks(places, [str(k) for k in classes])
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def _grid(name, bounds, pictures):
    cells, (low, high) = [], (np.asarray(bound, np.float32) for bound in bounds)
    for index, image, adversarial, predicted in pictures:
        image, adversarial = np.asarray(image, np.float32), np.asarray(adversarial, np.float32)
        scale = 255 / (high - low)  # to pixels 0..255
        difference = (adversarial - image) * scale
        factor = 127 / max(np.abs(difference).max(), 1e-6)
        shown = [(image - low) * scale, (adversarial - low) * scale, 128 + factor * difference]
        tags = [f'<img alt="{alt}" src="{_png(x)}">' for alt, x in zip(("image", "adversarial", "difference"), shown)]
        caption = f"image {int(index)}: taken for class {int(predicted)}; difference x {factor:.3g}"
        cells.append(f"<figure>{''.join(tags)}{_element('figcaption', caption)}</figure>")
    return _element("h3", name) + '\n<div class="pictures">' + "\n".join(cells) + "</div>"


def _png(image):
    encoded = tf.io.encode_png(tf.cast(np.clip(np.round(image), 0, 255), tf.uint8)).numpy()
    return f"data:image/png;base64,{base64.b64encode(encoded).decode()}"
