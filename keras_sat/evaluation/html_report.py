"""Writes a report as one HTML page that loads no other files, and its plots as SVG and PNG files."""

import json
import os
from typing import TYPE_CHECKING

import numpy as np

from keras_sat import files
from keras_sat.evaluation import html_page, intervals, plots, signs, summary
from keras_sat.evaluation._audit import AuditReport
from keras_sat.evaluation.html_page import Html, element, table
from keras_sat.typing import Path

if TYPE_CHECKING:  # report imports this module
    from keras_sat.evaluation.report import RobustnessReport


def write(report: "RobustnessReport", path: Path, audit: AuditReport | None = None, command: str | None = None) -> None:
    """Writes the page and its plots. See `RobustnessReport.to_html`."""
    drawn = plots.of_report(report)
    plots.write(drawn, os.path.splitext(path)[0])
    parts = [_facts(report), _verdict(report, audit), *_results(report), figures(drawn), *_stages(report)]
    parts += [*_pictures(report), *_signs(report), *(_audit(audit) if audit else []), *_repetition(report, command)]
    files.write_text(path, html_page.document(f"Robustness of {summary.network(report)}", parts))


def figures(drawn: dict) -> Html:
    """Returns plots as elements side by side. `drawn` is {name: (figure, caption)}."""
    return element("div", *(html_page.figure(*plot) for plot in drawn.values()), style="plots")


def configuration(report: "RobustnessReport") -> str:
    """Returns the settings of a report as JSON text."""
    settings = {row.name: row.settings for row in report.results if row.settings}
    return json.dumps({"context": report.context, "attacks": settings}, indent=2)


def _facts(report):
    threats = dict.fromkeys(threat for threat, _ in summary.strongest(report))
    described = report.context.get("network") or {}
    form = f"{described.get('name')} (form {described.get('form')})" if described else summary.network(report)
    facts = {
        "Dataset": summary.images(report),
        "Preprocessing": summary.preprocessing(report),
        "Network": form,
        "Activation": summary.activation(described.get("activation", summary.NOT_GIVEN)),
        "Weights": summary.weights(report),
        "Threat model": "; ".join(threats) or "none: no attack was run within a ball",
    }
    return html_page.definitions(facts)


def _verdict(report, audit):
    strongest = summary.strongest(report)
    rows = [(summary.baseline(report), _large(report["clean"]), "no attack")]
    rows += [(threat, _large(row), summary.attack(report, row)) for threat, row in strongest]
    if corrupted := [row.accuracy for row in summary.corrupted(report)]:
        mean = element("span", intervals.percent(float(np.mean(corrupted))), style="large")
        rows.append(("corruptions", mean, f"mean of {len(corrupted)} rows"))
    header = ("threat model", "accuracy, 95 % interval", "strongest attack of this report")
    outcome, sentence = summary.masking(report)
    masked = outcome == summary.SEEN
    parts = [table(header, rows), element("p", element("strong", sentence) if masked else sentence)]
    if strongest:
        parts.append(element("p", _bound(report)))
    if audit:
        masked = masked or not audit.passed
        parts.append(element("p", f"Audit for masked gradients: {_audit_verdict(audit)}."))
    return element("div", *parts, style="verdict alarm" if masked else "verdict")


def _large(row):
    share = element("span", intervals.percent(row.accuracy), style="large")
    return Html(f"{share}<br>{element('small', intervals.text(row.interval))}")


def _bound(report):
    text = "An accuracy under attack is an upper bound: a stronger attack can lower it."
    more = " AutoAttack, the standard ensemble of attacks, is not among the attacks of this report."
    return text if summary.has_autoattack(report) else text + more


def _results(report):
    rows = []
    for row in report.results:
        shares = (intervals.percent(row.accuracy), intervals.text(row.interval))
        rows.append((row.name, *shares, row.n, summary.threat_model(report, row) or "-", f"{row.seconds:.1f}"))
    header = ("", "accuracy", "95 % interval", "images", "threat model", "seconds")
    about_signs = signs.sentences(report.signs, report.results, report.examples)  # they have a table of their own
    remarks = [element("p", remark) for remark in report.remarks() if remark not in about_signs]
    if "sweep" in report.context:
        text = f"{report.context['sweep']} at several epsilons: an image broken at one counts as broken at larger ones."
        remarks.append(element("p", text))
    return [element("h2", "All results"), table(header, rows), *remarks]


def _stages(report):
    broken = [
        (row.name, stage, count)
        for row in report.results
        if "epsilon" in row.settings or "worst_of" in row.settings
        for stage, count in row.broken_by.items()
    ]
    if not broken:
        return []
    return [element("h2", "Which attack broke what"), table(("row", "attack", "images broken"), broken)]


def _pictures(report):
    rows = [row for row in summary.adversarial(report) if report.pictures.get(row.name)]
    if not report.pictures and summary.adversarial(report):
        text = "A JSON file holds no pictures. `keras-sat evaluate --html` and `report.to_html` show them."
        return [element("p", text, style="quiet")]
    if not rows:
        return []
    explanation = (
        "The first images that each attack broke. Left: the image, which the network classified correctly. Middle: the "
        "adversarial image. Right: their difference, amplified; grey is no change."
    )
    grids = [_grid(report, row) for row in rows]
    return [element("h2", "Adversarial images"), element("p", explanation), *grids]


def _grid(report, row):
    labels = dict(zip(report.examples.get("index", ()), report.examples.get("label", ())))
    cells = [_picture(report, row, labels, *picture) for picture in report.pictures[row.name]]
    heading = f"{summary.attack(report, row)}: {summary.threat(row)}"
    return Html(element("h3", heading) + element("div", *cells, style="pictures"))


def _picture(report, row, labels, index, image, adversarial, predicted):
    """Returns the image, the adversarial image and their difference, with their classes."""
    low, high = (np.asarray(bound, np.float32) for bound in row.settings["bounds"])
    image, adversarial = ((np.asarray(each, np.float32) - low) * (255 / (high - low)) for each in (image, adversarial))
    difference = adversarial - image
    largest = max(float(np.abs(difference).max()), 1e-6)
    label = labels.get(int(index))
    true = "unknown" if label is None else summary.class_name(report, label)
    taken = summary.class_name(report, int(predicted))
    shown = (
        (image, "image", f"true class: {true}"),
        (adversarial, "adversarial image", f"taken for: {taken}"),
        (128 + 127 / largest * difference, "perturbation", f"change x {127 / largest:.3g}"),
    )
    cells = [Html(f"<div>{html_page.image(x, alt)}{element('small', text)}</div>") for x, alt, text in shown]
    caption = f"Image {int(index)}. Black is a change by -{largest:.3g}, white by +{largest:.3g}, of 255."
    return element("figure", element("div", *cells, style="three"), element("figcaption", caption))


def _signs(report):
    rows = [
        (one.name, summary.NOT_LOOKED_FOR if one.measured is None else one.measured, " ".join(one.warnings) or "-")
        for one in signs.findings(report.signs, report.results, report.examples)
    ]
    text = "Outputs that are probabilities are refused before the first attack."
    heading = element("h2", "Warning signs of masked gradients")
    return [heading, table(("sign", "seen", "warning"), rows), element("p", text, style="quiet")]


def _audit(audit):
    rows = [
        (check.name, check.outcome, check.measured, check.meaning if check.name in audit.failed else "")
        for check in audit.checks
    ]
    heading = element("h2", f"Audit for masked gradients: {_audit_verdict(audit)}")
    return [heading, table(("check", "outcome", "measured", "what it means"), rows)]


def _audit_verdict(audit):
    return "no check failed" if audit.passed else f"failed: {', '.join(audit.failed)}"


def _repetition(report, command):
    parts = [element("h2", "To repeat it"), *([element("pre", command)] if command else [])]
    return [*parts, html_page.details("All settings, as JSON", configuration(report))]
