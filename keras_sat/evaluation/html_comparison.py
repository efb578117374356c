"""Writes several reports on one HTML page, side by side, and says in which settings they differ."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sat import files
from keras_sat.evaluation import html_page, html_report, intervals, plots, summary
from keras_sat.evaluation.html_page import Html, element, table
from keras_sat.evaluation.report import RobustnessReport
from keras_sat.typing import Path

_DIGEST = "digest of the images' numbers and labels"


def write(reports: dict[str, RobustnessReport], path: Path) -> None:
    """Writes the page, and its plots as SVG and PNG files in its folder.

    Figures of different images never share a table or a plot. Figures of attacks with different settings never share a
    column.

    Args:
        reports: {where the report is from: report}, in the order of the page.
        path: the file to write, such as "comparison.html"; the plots are then "comparison-epsilon.svg", ...

    Raises:
        ValueError: if matplotlib, which draws the plots, is not installed.
    """
    in_order = list(reports.values())
    drawn = _plots(in_order)
    plots.write(drawn, os.path.splitext(path)[0])
    parts = [*_warnings(in_order), *_tables(in_order), *([html_report.figures(drawn)] if drawn else [])]
    parts += [*_sources(reports), *_settings(in_order)]
    for number, report in enumerate(in_order, 1):
        parts.append(html_page.details(f"{number}: all settings, as JSON", html_report.configuration(report)))
    files.write_text(path, html_page.document(f"Robustness of networks: {len(reports)} reports", parts))


def differences(reports: Sequence[RobustnessReport]) -> list[str]:
    """Returns a sentence for each way in which the figures of reports cannot be compared, or only with care."""
    sentences = []
    differing, _ = _compared(reports)
    if len(set(map(_images_key, reports))) > 1:
        shown = _listed(differing.pop("images", None) or differing.pop(_DIGEST))
        sentences.append(f"The reports are of different images ({shown}): compare accuracies within one table only.")
    elif any(report.context.get("dataset") is None for report in reports):
        sentences.append("Not all reports name their dataset: that their images are the same was not checked.")
    if "threat models" in differing:
        shown = _listed(differing.pop("threat models"))
        sentences.append(f"The reports have different threat models ({shown}): compare accuracies in one column only.")
    for name, values in differing.items():
        sentences.append(f"The reports differ in {name}: {_listed(values)}.")
    columns = _columns(reports)
    titles = [(column["attack"], column["threat"]) for column in columns]
    for attack, threat in dict.fromkeys(title for title in titles if titles.count(title) > 1):
        sentences.append(f"{attack} ({threat}) has different settings in the reports: each has a column of its own.")
    if columns and not any(len(column["rows"]) > 1 for column in columns):
        sentences.append("No attack is in two reports with the same settings: only clean accuracies can be compared.")
    return sentences


def _listed(values):
    return "; ".join(f"{number}: {value}" for number, value in enumerate(values, 1))


def _images_key(report):
    """Returns what identifies the images of a report. Reports without examples are told apart by dataset and split."""
    columns = [report.examples.get(name) for name in ("index", "label")]
    named = [report.context.get(name) for name in ("dataset", "split")]
    return json.dumps([*named, summary.baseline(report), report["clean"].n, columns])


def _threats(report):
    """Returns the threat models of a report as text, by norm and epsilon."""

    def order(row):
        return row.settings.get("norm", ""), np.max(row.settings["epsilon"])

    rows = sorted(summary.adversarial(report), key=order)
    return "; ".join(dict.fromkeys(map(summary.threat, rows))) or "none"


def _compared(reports):
    """Returns {setting: its value in each report} of the settings that differ, and {setting: value} of the equal ones.

    Images that differ although their descriptions are equal differ in their digests.
    """
    settings = {
        "images": [summary.images(report) for report in reports],
        _DIGEST: [files.fingerprint(_images_key(report)) for report in reports],
        "threat models": [_threats(report) for report in reports],
        "preprocessing": [summary.preprocessing(report) for report in reports],
    }
    if len(set(settings["images"])) > 1:
        del settings[_DIGEST]
    for name in ("seed", "attack_precision", "batch_norm"):
        settings[name.replace("_", " ")] = [report.context.get(name, "-") for report in reports]
    for name in ("keras_sat", "tensorflow", "keras"):
        settings[f"version of {name}"] = [report.context.get("versions", {}).get(name, "-") for report in reports]
    differing = {name: values for name, values in settings.items() if len(set(values)) > 1}
    return differing, {name: values[0] for name, values in settings.items() if name not in differing}


def _columns(reports: Sequence[RobustnessReport]) -> list[dict[str, Any]]:
    """Returns the attacks of all reports; those with equal settings are one.

    Returns:
        Dicts of "attack", "threat", "settings" and "rows", {index of the report: row}, by norm and epsilon.
    """
    columns: dict[str, dict[str, Any]] = {}
    for place, report in enumerate(reports):
        for row in report.results:
            if row.settings:
                settings = _settings_of(report, row)
                title = {"attack": summary.attack(report, row), "threat": summary.threat_model(report, row) or "-"}
                key = json.dumps([title["attack"], settings], sort_keys=True)
                columns.setdefault(key, {**title, "settings": settings, "rows": {}})["rows"][place] = row
    return sorted(columns.values(), key=_order)


def _settings_of(report, row):
    """Returns the settings of a row; those of `worst_of` are the settings of its rows."""
    if "worst_of" not in row.settings:
        return row.settings
    return {
        "worst_of": {other.name: other.settings for other in report.results if other.name in row.settings["worst_of"]}
    }


def _order(column):
    epsilon = column["settings"].get("epsilon")
    largest = max(epsilon) if isinstance(epsilon, (list, tuple)) else epsilon
    return largest is None, column["settings"].get("norm", ""), largest or 0


def _warnings(reports):
    sentences = differences(reports)
    if not sentences:
        return []
    heading = element("strong", "Before you compare")
    return [element("div", heading, *(element("p", sentence) for sentence in sentences), style="verdict alarm")]


def _tables(reports):
    """Returns a table of networks and attacks for each set of images."""
    groups: dict[str, list[int]] = {}
    for place, report in enumerate(reports):
        groups.setdefault(_images_key(report), []).append(place)
    columns = _columns(reports)
    parts = [element("h2", "Accuracy, with 95 % intervals")]
    for places in groups.values():
        if len(groups) > 1:
            parts.append(element("h3", f"On {summary.images(reports[places[0]])}"))
        parts.append(_table(reports, places, [column for column in columns if column["rows"].keys() & set(places)]))
    text = (
        "An accuracy under attack is an upper bound: a stronger attack can lower it. Figures whose intervals overlap "
        "may differ by chance."
    )
    sweep = " In a sweep, an image that is broken at one epsilon counts as broken at all larger ones."
    has_sweep = any("sweep" in report.context for report in reports)
    return [*parts, element("p", text + sweep * has_sweep, style="quiet")]


def _table(reports, places, columns):
    attacks = [_heading(column, columns) for column in columns]
    header = ["network", summary.baseline(reports[places[0]]), *attacks, "signs of masked gradients"]
    rows = []
    for place in places:
        report = reports[place]
        figures = [_cell(column["rows"].get(place)) for column in columns]
        seen = _seen(report)
        rows.append([f"{place + 1}: {summary.network(report)}", _cell(report["clean"]), *figures, seen])
    return table(header, rows)


def _cell(row):
    if row is None:
        return "-"
    accuracy, interval = intervals.percent(row.accuracy), intervals.text(row.interval)
    return Html(f"{element('strong', accuracy)}<br>{element('small', interval)}")


def _heading(column, columns):
    """Returns the attack and its threat model; also the settings in which it differs from its namesakes."""
    namesakes = [
        one["settings"] for one in columns if (one["attack"], one["threat"]) == (column["attack"], column["threat"])
    ]
    own = [
        f"{name} {value}"
        for name, value in column["settings"].items()
        if any(other.get(name) != value for other in namesakes)
    ]
    lines = [column["threat"], *own]
    return Html(element("span", column["attack"]) + "".join(f"<br>{element('small', line)}" for line in lines))


def _seen(report):
    outcome, _ = summary.masking(report)
    return element("span", element("strong", outcome), style="alarm") if outcome == summary.SEEN else outcome


def _plots(reports):
    """Returns the plots of accuracy against epsilon: for each set of images, norm and range of values."""
    groups: dict[str, dict] = {}
    for number, report in enumerate(reports, 1):
        for attack, curve in summary.curves(report).items():
            label = f"{number}: {summary.network(report)}, {attack}"
            groups.setdefault(_images_key(report), {})[label] = (report, curve)
    found: dict[str, Any] = {}
    for number, group in enumerate(groups.values(), 1):
        curves = {label: curve for label, (_, curve) in group.items()}
        report, _ = next(iter(group.values()))
        drawn = plots.against_epsilon(curves, f"; {summary.images(report)}")
        found |= {name if number == 1 else f"{name}-of-images-{number}": plot for name, plot in drawn.items()}
    return found


def _sources(reports):
    rows = [
        (f"{number}: {summary.network(report)}", path, summary.weights(report), summary.masking(report)[1])
        for number, (path, report) in enumerate(reports.items(), 1)
    ]
    return [element("h2", "The reports"), table(("network", "report", "weights", "masked gradients"), rows)]


def _settings(reports):
    differing, equal = _compared(reports)
    parts = [element("h2", "Settings that differ")]
    if differing:
        header = ("setting", *(f"{number + 1}: {summary.network(report)}" for number, report in enumerate(reports)))
        parts.append(table(header, [(name, *values) for name, values in differing.items()]))
    else:
        parts.append(element("p", "None of those that are compared."))
    return [*parts, element("h2", "Settings that are equal"), html_page.definitions(equal)]
