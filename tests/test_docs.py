"""README and docs: links, names, flags and figures that have a source; and the site, which is marked slow."""

import argparse
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from keras_sat import attacks, models
from keras_sat.attacks import LinfBall
from keras_sat.cli import _main
from keras_sat.evaluation import attack_names, intervals

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("*.ipynb"))]
HISTORIES = {"CONTRIBUTING.md"}  # it also names what is no longer there
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")
CODE_WIDTH = 88  # what fits the column of the site
WITH_LONG_LINES = {"README.md", "CONTRIBUTING.md"}


def text_of(page):
    """Returns the Markdown of a page or a notebook."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def prose(page):
    return FENCE.sub("", text_of(page))


def anchors(page):
    """Returns the anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def table(page, heading, columns):
    """Returns the rows of the first table under a heading, as lists of so many cells."""
    section = prose(DOCS / page).split(f"{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows and all(len(row) == columns for row in rows)
    return rows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    links = LINK.findall(prose(page))
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_index_has_each_page():
    listed = re.findall(r"^(\w+)$", "\n".join(FENCE.findall((DOCS / "index.md").read_text())), re.MULTILINE)
    assert sorted(listed) == sorted({page.stem for page in PAGES if page.parent == DOCS} - {"index"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    named = re.findall(r"`((?:tests|scripts|benchmarks|studies|keras_sat)/[\w./-]+)`", prose(page))
    named += re.findall(r"python ((?:scripts|benchmarks|studies)/\S+\.py)", text_of(page))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_a_page_uses_are_there(page):
    parts = "activations|attacks|data|deployed|distribution|evaluation|export|losses|models|preprocessing|run|training"
    names = rf"(?<![\w./])(?:keras_sat\.)?((?:{parts})(?:\.[A-Za-z]\w*)+)"
    for name in re.findall(names, " ".join(CODE.findall(prose(page)))):
        first, *rest = name.split(".")
        if rest[-1] in ("py", "json", "md"):
            continue
        found = importlib.import_module(f"keras_sat.{'training.' if first == 'distribution' else ''}{first}")
        for attribute in rest:
            assert hasattr(found, attribute), name
            found = getattr(found, attribute)


def test_flags_that_pages_use_are_there():
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    for command in _main.COMMANDS:
        command.add_flags(parser)
    known = {option for action in parser._actions for option in action.option_strings} | {"--traceback"}
    for page in PAGES:
        if page.name not in HISTORIES:
            ours = [code for code in CODE.findall(prose(page)) if code.startswith(("--", "keras-sat "))]
            words = " ".join(ours).split()
            flags = {re.match(r"--[a-z_\d]+", word)[0] for word in words if re.match(r"--[a-z]", word)}
            assert flags <= known | {"--help"}, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_fits_the_column(page):
    lines = [line for block in FENCE.findall(text_of(page)) for line in block.splitlines()]
    if page.name not in WITH_LONG_LINES:
        assert [line for line in lines if len(line) > CODE_WIDTH] == []


def test_the_figures_of_the_networks_in_the_package():
    registry = json.loads((ROOT / "keras_sat" / "models" / "weights.json").read_text())["sat-fashion-mnist"]
    measured = {(row["model"], row["activation"]): row["measured"] for row in registry["checkpoints"]}
    rows = table("getting_started.md", "## Measure the figures of its card", 4)
    assert len(rows) == len(measured)
    for network, *cells in rows:
        figures = measured[tuple(network.split(", "))].values()
        expected = ["{accuracy} % ({interval[0]} .. {interval[1]})".format(**figure) for figure in figures]
        assert cells == expected


def test_the_counts_of_robustbench():
    rows = [row for row in models.list_weights() if row["tag"].startswith("robustbench/")]
    total = 0
    for dataset, threat, here, _ in table("robustbench.md", "## Which networks are in the registry", 4):
        count = sum((row["dataset"], row["threat"]) == (dataset, threat) for row in rows)
        assert int(here) == count
        total += count
    assert total == len(rows)
    for page in ("robustbench.md", "pytorch.md"):
        assert f"{total} of" in " ".join((DOCS / page).read_text().split())


def test_the_passes_of_attacks():
    names = {name: getattr(attacks, name) for name in attacks.__all__} | {"ball": LinfBall(8)}
    rows = table("attacks.md", "## Attacks", 3)
    for code, _, passes in rows[:-1]:  # the last one is Transfer, which takes those of its attack
        assert f"{eval(code.strip('`'), names).max_forward_passes:,}" == passes
    assert rows[-1][0].startswith("`Transfer")


def test_the_names_of_attacks():
    rows = table("attacks.md", "## Names for `--attack=`", 2)
    named = [name for cell, _ in rows for name in CODE.findall(cell)]
    for name in named:
        assert attack_names.from_names(name, LinfBall(8))
    plain = {re.sub("-?STEPS.*", "", name) for name in attack_names.names()}
    assert plain <= {re.sub(r"-\d.*", "", name) for name in named}


def test_the_intervals_of_an_example():
    for images, interval in table("robustness_figure.md", "## The images, and the interval", 2):
        n = int(images.replace(",", ""))
        low, high = intervals.wilson(round(0.7 * n), n)
        assert interval == f"{100 * low:.1f} .. {100 * high:.1f}"


@pytest.mark.slow
def test_the_site_and_its_notebook(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    environment = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1"}
    done = subprocess.run([*command, ROOT / "docs", tmp_path / "html"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    notebook = (tmp_path / "html" / "robust_network.html").read_text()
    assert notebook.count("<img") >= 2  # the grid and the curves
    assert "of 100 clean" in notebook
    reference = (tmp_path / "html" / "api.html").read_text()
    for name in ("attacks.AutoAttack", "training.AdversarialModel", "evaluation.evaluate", "export.export_saved_model"):
        assert f'id="keras_sat.{name}"' in reference
