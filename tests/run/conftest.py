"""Short runs, and folders of them."""

import pytest

from keras_sat import run as run_lib
from keras_sat.run import Run

SHORT = Run(epochs=1, batch_size=500, steps=1, image_size=14, strategy="mirrored", ema=0.5)


@pytest.fixture(scope="session")
def short():
    return SHORT


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "short"
    model, finished = run_lib.train(SHORT, folder)
    assert finished
    return folder, model


@pytest.fixture
def photos(tmp_path, shades):
    """A folder of two classes, bright and dark, of photos of two sizes."""
    for split, number in (("train", 12), ("test", 6)):
        for name, factor in (("bright", 1.0), ("dark", 0.3)):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                picture = shades(size=(20 + index % 2, 24)).point(lambda value, factor=factor: int(value * factor))
                picture.save(folder / f"{index}.png")
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def quick():
    """Returns a function that configures a run on a folder of photos."""

    def configured(photos, **options):
        return Run(**{"dataset": str(photos), "image_size": 12, "epochs": 1, "batch_size": 6, "steps": 1, **options})

    return configured
