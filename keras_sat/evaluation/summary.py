"""What a report says at a glance: the network, the images, the threat models, and the strongest attack in each."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_sat.evaluation import signs

if TYPE_CHECKING:  # report imports html_report, which imports this module
    from keras_sat.evaluation.report import AttackResult, RobustnessReport

NOT_GIVEN = "not given"
SEEN, NONE_FOUND, NOT_LOOKED_FOR = "seen", "none found by its checks", "not looked for"
_NORMS = {"linf": "L-inf", "l2": "L2", "l1": "L1"}
_WITH_EPSILON = ("epsilon", "step_size")  # the settings that differ within a curve over epsilon


def network(report: "RobustnessReport") -> str:
    """Returns the network's name and activation, such as "ResNet8, silu", or the name of the model."""
    described = report.context.get("network")
    if not described:
        return str(report.context.get("model", "a model"))
    return f"{described['name']}, {activation(described['activation'])}"


def activation(value: Any) -> str:
    """Returns an activation as text: a name, or the name and the other settings of a configuration."""
    if not isinstance(value, dict):
        return str(value)
    more = ", ".join(f"{key} {one}" for key, one in value.items() if key != "name")
    return f"{value.get('name')} ({more})" if more else str(value.get("name"))


def images(report: "RobustnessReport") -> str:
    """Returns the dataset, the split and the number of images, as text."""
    dataset, split = (report.context.get(name) for name in ("dataset", "split"))
    named = NOT_GIVEN if dataset is None else f"{dataset}, {split}" if split else str(dataset)
    return f"{named} ({report['clean'].n} images)"


def preprocessing(report: "RobustnessReport") -> str:
    """Returns how the images were prepared, as text, such as "28 x 28 pixels, grey, crop stretch"."""
    how = report.context.get("preprocessing")
    if not how:
        return NOT_GIVEN
    colour = {1: "grey", 3: "RGB"}.get(how.get("channels"), "")
    return f"{how.get('height')} x {how.get('width')} pixels, {colour}, crop {how.get('crop')}"


def weights(report: "RobustnessReport") -> str:
    """Returns where the weights are from, and the first digits of their SHA-256."""
    where = report.context.get("weights") or report.context.get("run")
    digest = report.context.get("weights_sha256")
    parts = [str(where)] if where else []
    return "; ".join([*parts, f"SHA-256 {digest[:12]}..."] if digest else parts) or NOT_GIVEN


def class_name(report: "RobustnessReport", label: int) -> str:
    """Returns the name of a class, or "class 3" if the report does not know the names."""
    names = report.context.get("classes") or ()
    return str(names[label]) if label < len(names) else f"class {label}"


def baseline(report: "RobustnessReport") -> str:
    """Returns what the row "clean" is of: that of `evaluate_corrupted` is of all corrupted images together."""
    return "all corruptions together" if any(row.settings.get("files") for row in report.results) else "clean"


def corrupted(report: "RobustnessReport") -> "list[AttackResult]":
    """Returns the rows of corruptions."""
    return [row for row in report.results if "corruption" in row.settings]


def adversarial(report: "RobustnessReport") -> "list[AttackResult]":
    """Returns the rows of attacks with a threat model, without those of corruptions and noise."""
    return [row for row in report.results if "epsilon" in row.settings]


def attack(report: "RobustnessReport", row: "AttackResult") -> str:
    """Returns the name of a row's attack. The rows of a sweep are named by their epsilons."""
    sweep = report.context.get("sweep")
    return f"{sweep} (sweep)" if sweep and "epsilon" in row.settings else row.name


def threat(row: "AttackResult") -> str:
    """Returns the threat model of an attack, such as "L-inf, epsilon 8 (pixels 0..255)"; "-" for a row without one."""
    if "epsilon" not in row.settings:
        return "-"
    norm: Any = row.settings.get("norm")
    return f"{_NORMS.get(norm, norm)}, epsilon {row.epsilon_text()} ({unit(row)})"


def unit(row: "AttackResult") -> str:
    """Returns the range of the images' values, which is the unit of epsilon, as text."""
    low, high = row.settings.get("bounds", (0.0, 255.0))
    if np.ndim(low) or np.ndim(high):
        return "values with bounds for each channel"
    return f"{'pixels' if (low, high) == (0, 255) else 'values'} {low:g}..{high:g}"


def axis(row: "AttackResult") -> str:
    """Returns the norm and the unit of an attack's epsilon, such as "epsilon in L-inf, pixels 0..255"."""
    norm: Any = row.settings.get("norm")
    return f"epsilon in {_NORMS.get(norm, norm)}, {unit(row)}"


def strongest(report: "RobustnessReport") -> "list[tuple[str, AttackResult]]":
    """Returns (threat model, row of the lowest accuracy) for each threat model of the report."""
    lowest: dict[str, Any] = {}
    for row in report.results:
        of = threat_model(report, row)
        if of is not None and (of not in lowest or row.accuracy < lowest[of].accuracy):
            lowest[of] = row
    return list(lowest.items())


def threat_model(report: "RobustnessReport", row: "AttackResult") -> str | None:
    """Returns the threat model of a row as text; None without one. That of `worst_of` is the union of its rows'."""
    if "worst_of" not in row.settings:
        return threat(row) if "epsilon" in row.settings else None
    names = [other.name for other in report.results]
    parts = [threat(report[name]) for name in row.settings["worst_of"] if name in names]
    return " or ".join(dict.fromkeys(parts)) or None


def has_autoattack(report: "RobustnessReport") -> bool:
    """Returns whether the standard version of AutoAttack, or a larger one, is among the attacks."""
    return any(row.settings.get("version") in ("standard", "plus", "rand") for row in adversarial(report))


def masking(report: "RobustnessReport") -> tuple[str, str]:
    """Returns SEEN, NONE_FOUND or NOT_LOOKED_FOR, and a sentence about warning signs of masked gradients."""
    findings = signs.findings(report.signs, report.results, report.examples)
    looked = [one.name for one in findings if one.measured is not None]
    seen = [one.name for one in findings if one.warnings]
    if seen:
        return SEEN, f"Warning signs of masked gradients were seen: {', '.join(seen)}. The figures may be too high."
    if not looked:
        return NOT_LOOKED_FOR, "This report did not look for warning signs of masked gradients."
    checked = f"Warning signs of masked gradients: none was found by these checks: {', '.join(looked)}."
    return NONE_FOUND, checked + signs.unchecked(findings, report.results)


def curves(report: "RobustnessReport") -> "dict[str, list[tuple[float, AttackResult]]]":
    """Returns {attack: [(epsilon, row)]} for each attack with several epsilons; the clean row has epsilon 0.

    The rows of a curve have equal settings, except for epsilon and the step size.
    """
    groups: dict[str, dict[float, Any]] = {}
    for row in adversarial(report):
        kind = {name: value for name, value in row.settings.items() if name not in _WITH_EPSILON}
        groups.setdefault(json.dumps(kind, sort_keys=True), {})[float(np.max(row.settings["epsilon"]))] = row
    found: dict[str, list] = {}
    for group in groups.values():
        if len(group) > 1:
            name = _curve_name(report, next(iter(group.values())), found)
            points: dict[float, Any] = {0.0: report["clean"], **group}
            found[name] = sorted(points.items(), key=lambda point: point[0])
    return found


def _curve_name(report, row, taken):
    name = report.context.get("sweep") or str(row.settings.get("attack", row.name))
    return f"{name} ({row.name}, ...)" if name in taken else name
