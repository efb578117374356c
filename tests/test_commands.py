"""Runs the commands of README and docs one after the other, unchanged except for their size: marked slow."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request

import keras
import pytest

from keras_sat import cli, data, models

ROOT = pathlib.Path(__file__).parent.parent
COMMAND = re.compile(r"^ *(keras-sat .*?) *(?: #.*)?$", re.MULTILINE)
COMMANDS = {
    page.name: COMMAND.findall(re.sub(r" *\\\n *", " ", page.read_text()))  # a backslash ends a line of a long command
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
PAGES = [name for name, commands in COMMANDS.items() if commands]
BEFORE = {"serving.md": ["keras-sat train --output=runs/gelu --activation=gelu"]}
# Added to each command, where the last of two equal flags counts: the same work, on eight images of 16 pixels.
SMALLER = {
    "train": "--dataset=photos --image_size=16 --epochs=1 --batch_size=8 --model=ResNet8 --strategy=none "
    "--validation=0",
    "evaluate": "--split=test --batch_size=8",
    "compare": "--split=test --batch_size=8",
    "certify": "--split=test --samples=100",
}
ELSEWHERE = {
    "keras-sat quickstart": "make quickstart",
    "keras-sat train --recipe=wang2023 --extra_data=1m.npz --output=runs/wang2023": "the authors' file",
    "keras-sat evaluate --model=ResNet50 --activation=silu --weights=sat-imagenet --attack=pgd-50": "Google Drive",
    "keras-sat evaluate runs/trained": "what a device trained, see tests/scripts/test_run_on_pjrt.py",
    "keras-sat evaluate runs/mine --attack=autoattack --split='test[:1000]' --audit --html": "the reader's run",
}
pytestmark = pytest.mark.slow


@pytest.fixture
def here(tmp_path, monkeypatch, write_release):
    """A folder with photos/SPLIT/CLASS/*.png, and the checkpoints that the pages convert."""
    monkeypatch.chdir(tmp_path)
    images, labels = next(iter(data.load("fashion_mnist_mini", "test", 24, image_size=16)))
    for number, (image, label) in enumerate(zip(images.numpy(), labels.numpy())):
        folder = tmp_path / "photos" / ("train" if number < 16 else "test") / str(label % 3)
        folder.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(folder / f"{number}.png", image, scale=False)
    shutil.copy(folder / f"{number}.png", tmp_path / "shoe.png")
    write_release("Res50-silu", models.ResNet50(input_shape=(None, None, 3)))
    robust = models.PreActResNet18(form="batch_norm", activation="relu", input_shape=(16, 16, 1), classes=3)
    models.pytorch.save(robust, "robust.safetensors")
    shutil.move("robust.safetensors", "robust.pt")
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of eight images and three classes there is much to warn about
def test_the_commands_of_a_page_run(page, here):
    for command in [*BEFORE.get(page, []), *COMMANDS[page]]:
        if command not in ELSEWHERE:
            print(command, flush=True)
            run(shlex.split(command))


def run(words):
    if words[1] == "serve":
        return serve(words)
    smaller = shlex.split(SMALLER.get(words[1], ""))
    if any(word.startswith("--form=") for word in words):  # of its own network
        smaller = [word for word in smaller if not word.startswith("--model=")]
    if any(word.startswith("--validation_split") for word in words):
        smaller[smaller.index("--validation=0")] = "--validation_split=test"
    if any(word.startswith("--head_epochs") for word in words):
        smaller.append("--epochs=3")
    if "--weights=sat-fashion-mnist" in words and words[1] == "evaluate":  # their own dataset is larger than the photos
        smaller.append("--split=test[:8]")
    args = cli.parse([*words, *smaller])
    if words[1] == "train":
        shutil.rmtree(args.output, ignore_errors=True)  # a page shows one run in several ways
    assert args.run(args) == 0


def serve(words):
    with subprocess.Popen([pathlib.Path(sys.executable).parent / "keras-sat", *words[1:]]) as process:
        try:
            url = f"http://127.0.0.1:8501/v1/models/{pathlib.Path(words[2]).name}"
            assert b"AVAILABLE" in answer(url, process)
        finally:
            process.terminate()


def answer(url, process, patience=60):
    for _ in range(patience):
        assert process.poll() is None
        try:
            with urllib.request.urlopen(url) as response:
                return response.read()
        except OSError:
            time.sleep(1)
    raise AssertionError(f"{url} did not answer")
