"""The HTML pages of one report and of several, in a browser if one is installed."""

import html
import json
import re
import shutil
import subprocess

import keras
import numpy as np
import pytest

from keras_sat.attacks import PGD, L2Ball, LinfBall
from keras_sat.evaluation import AttackResult, RobustnessReport, audit, evaluate, html_comparison, sweep
from keras_sat.evaluation.report import from_json
from keras_sat.evaluation.signs import Signs

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--enable-logging=stderr"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
CLASSES = ["T-shirt/top", "<trouser>", "pullover", "ankle boot"]
NETWORK = {"name": "Tiny", "form": "sat", "activation": "silu", "normalization": None}
CONTEXT = {"dataset": "squares", "split": "test[:40]", "classes": CLASSES, "network": NETWORK}


@pytest.fixture(scope="module")
def subject():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(2 / 255, -1.0), keras.layers.Conv2D(8, 3)]
    model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(4)])
    images = np.random.default_rng(7).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    return model, (images, np.argmax(model(images), -1))


@pytest.fixture(scope="module")
def report(subject):
    attack = PGD(LinfBall(1), steps=4)
    return sweep(*subject, attack, [1, 4], progress=False, context=CONTEXT)


@pytest.fixture(scope="module")
def page(subject, report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.to_html(path, audit(*subject, LinfBall(4), steps=4, queries=10), "keras-sat evaluate <it>")
    return path


@pytest.fixture(scope="module")
def reports(subject, report):
    """Three reports: two of the same images, of which one has an attack more, and one of other images."""
    attacks = {"PGD-4": PGD(LinfBall(4), steps=4), "far": PGD(L2Ball(60), steps=2)}
    other = evaluate(*subject, attacks, progress=False, seed=3, context=CONTEXT)
    rows = [AttackResult.of(row.name, 20, 10, 1.0, row.settings) for row in other.results]
    fewer = RobustnessReport(rows, other.context | {"seed": 0, "split": "test[:20]"})
    return {"runs/a": report, "runs/b & c": other, "d.json": fewer}


@pytest.fixture(scope="module")
def comparison(reports, tmp_path_factory):
    path = tmp_path_factory.mktemp("comparison") / "both.html"
    html_comparison.write(reports, path)
    return path


def chromium(page, folder, *flags):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def test_all_of_it_is_there(page):
    text = page.read_text()
    for part in ("Robustness of Tiny, silu", "squares, test[:40] (40 images)", "L-inf, epsilon 4 (pixels 0..255)",
                 "PGD-4 (sweep)", "95 % interval", "Which attack broke what", "none was found by these checks",
                 "AutoAttack, the standard ensemble of attacks, is not among", "masked gradients: no check failed",
                 "keras-sat evaluate &lt;it&gt;", "<details>", "step_size", "Accuracy of each class", "against epsilon",
                 "true class: &lt;trouser&gt;", "taken for: ankle boot", "change x 31.8", "white by +4, of 255",
                 'alt="perturbation"', "data:image/png;base64"):  # fmt: skip
        assert part in text, part
    assert "<trouser>" not in text
    written = {path.name for path in page.parent.iterdir()}
    plots = {f"report-{name}.{kind}" for name in ("accuracy", "epsilon", "classes") for kind in ("svg", "png")}
    assert written == {"report.html", *plots}
    assert (page.parent / "report-epsilon.png").read_bytes().startswith(b"\x89PNG")


def test_the_verdict_is_that_of_the_strongest_attack_in_each_threat_model(tmp_path):
    four, one = ({"norm": "linf", "epsilon": epsilon, "bounds": (0, 255)} for epsilon in (4, 1))
    found = {"clean": (38, {}), "weak": (30, four), "strong": (20, four), "small": (33, one)}
    rows = [AttackResult.of(name, 40, correct, 1, settings) for name, (correct, settings) in found.items()]
    RobustnessReport(rows, {}).to_html(tmp_path / "report.html")
    verdict = re.search(r'<div class="verdict">.*?</div>\n?', (tmp_path / "report.html").read_text(), re.DOTALL)[0]
    assert re.findall(r"<td>(clean|L-inf.*?)</td><td>.*?</td><td>(.*?)</td>", verdict) == [
        ("clean", "no attack"),
        ("L-inf, epsilon 4 (pixels 0..255)", "strong"),
        ("L-inf, epsilon 1 (pixels 0..255)", "small"),
    ]


def test_plots_follow_the_colours_of_the_page(page):
    inside = re.findall(r"<svg.*?</svg>", page.read_text(), re.DOTALL)
    assert len(inside) == 3
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", "".join(inside)))
    assert colours == {"none", "currentColor", "var(--series-0)"}


def test_nothing_is_fetched_from_elsewhere(page, comparison):
    text = page.read_text() + comparison.read_text()
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)""", text) + re.findall(r"url\(([^)]*)\)", text)
    assert addresses
    assert all(address.strip("\"'").startswith(("data:", "#")) for address in addresses)
    assert text.count("default-src 'none'") == 2  # and the browser would refuse it


def test_several_reports_on_one_page(comparison, reports):
    text = comparison.read_text()
    tables = re.findall(r"<table>.*?</table>", text, re.DOTALL)
    first, second = (re.findall(r"<tr>.*?</tr>", table) for table in tables[:2])
    assert [re.search(r"<td>(.*?)</td>", row)[1] for row in first[1:]] == ["1: Tiny, silu", "2: Tiny, silu"]
    assert len(second) == 2  # header and the report of other images
    shares = re.findall(r"<strong>([\d.]+) %</strong>", first[2])
    assert shares == [f"{100 * reports['runs/b & c'][name].accuracy:.1f}" for name in ("clean", "far", "PGD-4")]
    assert "runs/b &amp; c" in text
    assert text.count("<svg") == 1  # one report has a curve
    assert (comparison.parent / "both-epsilon.svg").exists()


def test_what_differs_is_said(reports):
    one, other, fewer = reports.values()
    of_two = "\n".join(html_comparison.differences([one, other]))
    assert "different images" not in of_two
    assert "different threat models (1: L-inf, epsilon 1 (pixels 0..255); L-inf, epsilon 4" in of_two
    assert "differ in seed: 1: 0; 2: 3." in of_two
    assert "No attack is in two reports with the same settings" in of_two  # a sweep is an attack of its own
    (images, seed) = html_comparison.differences([other, fewer])
    assert images.startswith("The reports are of different images (1: squares, test[:40] (40 images); 2: ")
    assert seed == "The reports differ in seed: 1: 3; 2: 0."
    settings = other["PGD-4"].settings | {"steps": 5}
    longer = RobustnessReport([other["clean"], AttackResult.of("PGD-4", 40, 9, 1, settings)], other.context,
                              other.examples)  # fmt: skip
    assert any("PGD-4 (L-inf, epsilon 4 (pixels 0..255)) has different settings" in sentence
               for sentence in html_comparison.differences([other, longer]))  # fmt: skip
    assert html_comparison.differences([other, other]) == []


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_renders_in_a_browser_without_an_error(page, tmp_path):
    done = chromium(page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    assert "Robustness of Tiny, silu" in done.stdout


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_fits_on_a_phone_light_and_dark(page, comparison, tmp_path):
    """Only elements with their own scroll bar are wider than the window: measured in frames of 390 pixels."""
    frames = [
        f'<iframe width="390" height="800" style="border: 0; color-scheme: {scheme}" srcdoc="{html.escape(text)}">'
        for text in (page.read_text(), comparison.read_text())
        for scheme in ("light", "dark")
    ]
    outer = tmp_path / "frames.html"
    script = """addEventListener("load", () => { document.title = JSON.stringify(Array.from(frames).map(frame => ({
        width: frame.document.documentElement.scrollWidth, height: frame.document.documentElement.scrollHeight,
        picture: frame.document.querySelector("img")?.getBoundingClientRect().width,
        back: frame.getComputedStyle(frame.document.body).backgroundColor,
        text: frame.getComputedStyle(frame.document.querySelector("figure svg")).fill }))) })"""
    outer.write_text(f"<!doctype html><script>{script}</script>" + "</iframe>".join([*frames, ""]))
    shown = json.loads(re.search(r"<title>(.*?)</title>", chromium(outer, tmp_path, "--dump-dom").stdout)[1])
    assert [one["width"] for one in shown] == [390] * 4
    assert all(one["height"] > 1000 for one in shown)
    assert shown[0]["picture"] > 100
    assert [one["back"] for one in shown] == ["rgb(255, 255, 255)", "rgb(20, 24, 29)"] * 2
    assert [one["text"] for one in shown] == ["rgb(27, 31, 36)", "rgb(228, 232, 236)"] * 2


def test_a_report_without_examples(tmp_path):
    rows = [AttackResult.of("clean", 20, 15, 0.1, {})]
    RobustnessReport(rows, {}).to_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "75.0 %" in text
    assert "did not look for warning signs" in text


def test_signs_are_shown_and_a_file_has_no_pictures(report, tmp_path):
    report.to_json(tmp_path / "report.json")
    read = from_json(tmp_path / "report.json")
    masked = RobustnessReport(read.results, read.context, read.examples, signs=Signs(40, True, 3))
    masked.to_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "were seen: outputs that change from pass to pass, gradients that are zero. The figures may be" in text
    assert "<td>3 of 40 images</td><td>Warning: for 3 of 40 images" in text
    assert "A JSON file holds no pictures" in text
