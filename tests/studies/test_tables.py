"""The tables of docs/study.md agree with studies/results.json."""

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


def test_there_are_24_runs_three_seeds_of_relu_and_silu(study):
    names = study[0].names()
    assert len(names) == len(set(names)) == 24
    assert set(names[:6]) == {f"{kind}-{seed}" for kind in ("relu", "silu") for seed in range(3)}
    assert study[0].activation("relu_smooth_both") == '{"name": "relu", "smooth_backward": "both"}'
    assert study[0].activation("gelu") == "gelu"


def test_the_page_says_what_was_found(study):
    page = (ROOT / "docs" / "study.md").read_text()
    assert study[1].filled(page, study[1].tables(study[0].results())) == page


def test_bits(study):
    values = np.random.default_rng(0).integers(0, 2, 10_000).astype(bool)
    np.testing.assert_array_equal(study[1].bits(study[0]._bits(values)), values)


def run(study, clean):
    digits = study[0]._bits(clean)
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


def test_a_page_without_a_place_for_a_table_is_an_error(study):
    with pytest.raises(ValueError, match="no place for curve"):
        study[1].filled("nothing", {"curve": ""})
