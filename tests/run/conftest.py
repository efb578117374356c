"""Short runs, and folders of them."""

import shutil

import pytest

from keras_sat import run as run_lib
from keras_sat.run import Run

SHORT = Run(
    train_split="train[:500]",
    validation=100,
    epochs=1,
    batch_size=100,
    steps=1,
    image_size=14,
    strategy="mirrored",
    ema=0.5,
    guard="none",
)


@pytest.fixture(scope="session")
def short():
    return SHORT


@pytest.fixture(scope="session")
def built():
    """Returns a function that builds a trainer's optimizer and metrics: a step that builds them is traced twice."""

    def build(trainer, images, labels):
        trainer.optimizer.build(trainer.trainable_variables)
        trainer.compute_metrics(images, labels, trainer.classifier(images))
        trainer.reset_metrics()
        return trainer

    return build


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "short"
    model, finished = run_lib.train(SHORT, folder)
    assert finished
    return folder, model


def _write_photos(folder, shades):
    """Writes a folder of two classes, bright and dark, of photos of two sizes."""
    for split, number in (("train", 12), ("test", 6)):
        for name, factor in (("bright", 1.0), ("dark", 0.3)):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                picture = shades(size=(20 + index % 2, 24)).point(lambda value, factor=factor: int(value * factor))
                picture.save(folder / split / name / f"{index}.png")


@pytest.fixture
def photos(tmp_path, shades):
    _write_photos(tmp_path / "photos", shades)
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def quick():
    """Returns a function that configures a run on a folder of photos."""

    def configured(photos, **options):
        options = {"image_size": 12, "crop": "shortest_edge", "epochs": 1, "batch_size": 6, "steps": 1} | options
        return Run(dataset=str(photos), **options)

    return configured


@pytest.fixture(scope="session")
def trained_on_photos(quick, shades, tmp_path_factory):
    """A folder with photos and a finished run on them, which was started in this folder, with relative paths."""
    root = tmp_path_factory.mktemp("trained_on_photos")
    _write_photos(root / "photos", shades)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_lib.train(quick("photos"), "run")
    return root


@pytest.fixture
def run_on_photos(trained_on_photos, tmp_path):
    """The folders of a finished run and of its photos: copies, which a test may change."""
    shutil.copytree(trained_on_photos, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "run").rglob("run.json"):
        path.write_text(path.read_text().replace(str(trained_on_photos), str(tmp_path)))
    return tmp_path / "run", tmp_path / "photos"
