"""The tables of docs/study.md agree with the results in studies/."""

import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def study():
    """The two scripts as modules: (smooth_activations, tables)."""
    sys.path.insert(0, str(ROOT / "studies"))
    try:
        import smooth_activations
        import tables

        return smooth_activations, tables
    finally:
        sys.path.remove(str(ROOT / "studies"))


def test_the_runs_of_each_study(study):
    for name, number, kinds in (("pgd_1", 24, 11), ("pgd_10", 18, 6), ("pgd_10_short_steps", 6, 6), ("resnet20", 6, 3)):
        names = study[0].STUDIES[name].names()
        assert len(names) == len(set(names)) == number
        assert {run.rsplit("-", 1)[0] for run in names[:kinds]} == set(study[0].STUDIES[name].seeds)  # seed 0 first
    for name, step in (("pgd_10", 25.5 / 4), ("pgd_10_short_steps", 25.5 / 10), ("resnet20", 25.5 / 4)):
        assert study[0].STUDIES[name].training["step_size"] == step  # as the page says
    assert study[0].activation("relu_smooth_both") == '{"name": "relu", "smooth_backward": "both"}'
    assert study[0].activation("gelu") == "gelu"


@pytest.mark.parametrize("name", ["pgd_1", "pgd_10", "pgd_10_short_steps", "resnet20"])
def test_the_settings_of_a_study_are_those_of_its_results(study, name):
    """A setting that was changed after a run would describe the run wrongly."""
    path, settings = ROOT / "studies" / f"{name}.json", study[0].STUDIES[name]
    results = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    assert results.get("training", {}).items() <= settings.training.items()
    assert set(results["runs"]) <= set(settings.names())
    for run in results["runs"].values():
        assert set(run["attacks"]) <= set(settings.evaluations)  # what is missing is measured by the next start


def test_the_page_says_what_was_found(study):
    page = (ROOT / "docs" / "study.md").read_text()
    studies = {name: study[0].results(name) for name in study[0].STUDIES}
    assert study[1].filled(page, study[1].tables(studies)) == page


def test_runs_are_made_anew_for_another_folder_of_results(study, tmp_path, monkeypatch, capsys):
    made = []

    def measure(settings, name, folder):
        made.append(name)
        return study[0].results()[name]

    monkeypatch.setattr(study[0], "measure", measure)
    only = ["--only=relu-0,silu-0", f"--output={tmp_path}"]
    for flags in ([], [f"--results={tmp_path / 'mine'}"], [f"--results={tmp_path / 'mine'}"]):
        monkeypatch.setattr(sys, "argv", ["smooth_activations.py", *only, *flags])
        study[0].main()
    assert sorted(made) == ["relu-0", "silu-0"]  # of the second start alone: for ours, nothing is left to do
    assert study[0].results("pgd_1", tmp_path / "mine").keys() == {"relu-0", "silu-0"}
    monkeypatch.setattr(sys, "argv", ["tables.py", f"--results={tmp_path / 'mine'}"])
    study[1].main()
    assert "| `silu` | 1 |" in capsys.readouterr().out


def test_bits(study):
    values = np.random.default_rng(0).integers(0, 2, 10_000).astype(bool)
    np.testing.assert_array_equal(study[1].bits(study[0].digits(values)), values)


def run(study, clean):
    digits = study[0].digits(clean)
    return {"attacks": {"pgd-50": {"clean": digits}}}


def test_mean_deviation_and_paired_difference(study):
    half, most = [True, False] * 200, [True, True, True, False] * 100
    runs = {"relu-0": run(study, half), "relu-1": run(study, most), "silu-0": run(study, most)}
    assert study[1].summary(runs, "relu", "clean") == pytest.approx((62.5, 25 / np.sqrt(2)))
    assert np.isnan(study[1].summary(runs, "silu", "clean")[1])
    mean, low, high = study[1].difference(runs, "silu", "clean")  # of seed 0 only, which both have
    assert mean == pytest.approx(25)
    assert low == pytest.approx(25 - 1.96 * 100 * np.sqrt(0.25 * 0.75 / 400), abs=0.7)
    assert high == pytest.approx(25 + 1.96 * 100 * np.sqrt(0.25 * 0.75 / 400), abs=0.7)


def test_runs_of_a_gpu_have_tables_without_probes(study):
    """They have no history, because there was no guard."""
    digits, made = study[0].digits([True, False] * 4), {}
    for evaluation, rows in {"pgd-50": ["clean", "PGD-50"], "autoattack-short": ["AutoAttack-short"]}.items():
        made[evaluation] = dict.fromkeys(rows, digits)
    made |= {
        "curve": {"epsilon 8": digits},
        "beyond": dict.fromkeys(("PGD-50", "APGD-T", "Square", "worst case"), digits),
    }
    runs = {f"{kind}-0": {"attacks": made} for kind in ("relu", "silu")}
    tables = study[1].tables(dict.fromkeys(study[0].STUDIES, {}) | {"resnet20": runs})
    assert set(tables) == {"resnet20", "resnet20_curve", "resnet20_beyond"}
    assert "| `silu` | 1 | 50.0 |" in tables["resnet20"]


def test_a_page_without_a_place_for_a_table_is_an_error(study):
    with pytest.raises(ValueError, match="no place for curve"):
        study[1].filled("nothing", {"curve": ""})
