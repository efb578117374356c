"""The HTML report, in a browser if one is installed."""

import re
import shutil
import subprocess

import keras
import numpy as np
import pytest

from keras_sat.attacks import PGD, LinfBall
from keras_sat.evaluation import RobustnessReport, audit, sweep

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--enable-logging=stderr"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
PHONE = "--window-size=500,900"  # the narrowest that headless Chromium has


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(2 / 255, -1.0), keras.layers.Conv2D(8, 3)]
    model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(4)])
    images = np.random.default_rng(7).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    labels = np.argmax(model(images), -1)
    attack = PGD(LinfBall(1), steps=4)
    report = sweep(model, (images, labels), attack, [1, 4], progress=False)
    report.context["model"] = "a<b>c"
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.to_html(path, audit(model, (images, labels), LinfBall(4), steps=4, queries=10), "keras-sat evaluate <it>")
    return path


def chromium(page, folder, *flags):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def test_all_of_it_is_there(page):
    text = page.read_text()
    for part in ("a&lt;b&gt;c", "epsilon 4", "95 % interval", "Which attack broke what", "masked gradients",
                 "keras-sat evaluate &lt;it&gt;", "step_size", "Accuracy of each class", "against epsilon",
                 'alt="difference"', "data:image/png;base64"):  # fmt: skip
        assert part in text, part
    assert "a<b>c" not in text
    written = {path.name for path in page.parent.iterdir()}
    plots = {f"report-{name}.{kind}" for name in ("accuracy", "epsilon", "classes") for kind in ("svg", "png")}
    assert written == {"report.html", *plots}
    assert (page.parent / "report-epsilon.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_fetched_from_elsewhere(page):
    text = page.read_text()
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)""", text) + re.findall(r"url\(([^)]*)\)", text)
    assert addresses
    assert all(address.strip("\"'").startswith(("data:", "#")) for address in addresses)
    assert "default-src 'none'" in text  # and the browser would refuse it


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_renders_in_a_browser_without_an_error(page, tmp_path):
    done = chromium(page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    assert "Robustness of a&lt;b&gt;c" in done.stdout
    shot = tmp_path / "shot.png"
    chromium(page, tmp_path, f"--screenshot={shot}", PHONE)
    assert shot.stat().st_size > 10_000  # not an empty page


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_fits_on_a_phone(page, tmp_path):
    """Only elements with their own scroll bar are wider than the window. (A script measures it, without the policy.)"""
    script = "<script>document.title = document.documentElement.scrollWidth + ' of ' + window.innerWidth</script>"
    copy = tmp_path / "copy.html"
    copy.write_text(re.sub(r"<meta http-equiv.*?>", "", page.read_text()).replace("</body>", script + "</body>"))
    title = re.search(r"<title>(\d+) of (\d+)</title>", chromium(copy, tmp_path, "--dump-dom", PHONE).stdout)
    assert int(title[1]) <= int(title[2])


def test_a_report_without_examples(tmp_path):
    from keras_sat.evaluation import AttackResult

    rows = [AttackResult.of("clean", 20, 15, 0.1, {})]
    RobustnessReport(rows, {}).to_html(tmp_path / "report.html")
    assert "75.0 %" in (tmp_path / "report.html").read_text()
