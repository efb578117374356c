import dataclasses
import json
import os

import keras
import numpy as np
import pytest

from keras_sat import deployed
from keras_sat import run as run_lib
from keras_sat.attacks import PGD, LinfBall
from keras_sat.run import Run

SHORT = Run(epochs=1, batch_size=500, steps=1, image_size=14, strategy="mirrored", ema=0.5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "short"
    model, finished = run_lib.train(SHORT, folder)
    assert finished
    return folder, model


def test_the_folder_holds_the_weights_the_configuration_and_the_curves(trained):
    folder, _ = trained
    assert set(os.listdir(folder)) == {"model.weights.h5", "run.json", "logs", "checkpoints"}
    assert set(os.listdir(folder / "logs")) == {"train", "validation"}
    record = json.loads((folder / "run.json").read_text())
    assert {name: record[name] for name in SHORT.settings()} == SHORT.settings()
    assert record["data"]["preprocessing"]["crop"] == "stretch"
    assert record["data"]["classes"][9] == "Ankle boot"
    assert record["finished"] is True
    assert record["iterations"] == 20
    assert record["attack_batch_norm"] == "frozen"
    assert set(record["versions"]) == {"keras_sat", "keras", "tensorflow", "python"}
    assert set(record["history"]) >= {"loss", "accuracy", "val_accuracy", "val_robust_accuracy"}


def test_load_gives_the_trained_network_back(trained):
    folder, model = trained
    run, loaded = run_lib.load(folder)
    assert run.settings() == SHORT.settings()
    assert run.description == SHORT.description
    images = np.random.default_rng(0).integers(0, 256, (3, 14, 14, 1)).astype(np.uint8)
    np.testing.assert_array_equal(loaded(images), model(images))
    adversarial = PGD(LinfBall(8), steps=2)(model, images, [0, 1, 2])  # though it was trained by two replicas
    np.testing.assert_allclose(loaded(adversarial), model(adversarial), atol=1e-5)


def test_a_folder_is_not_overwritten(trained):
    folder, _ = trained
    before = (folder / "model.weights.h5").read_bytes()
    with pytest.raises(ValueError, match="holds a finished run already.*--continue"):
        run_lib.train(SHORT, folder)
    assert (folder / "model.weights.h5").read_bytes() == before


def test_what_cannot_be_read_is_named(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(ValueError, match="no folder"):
        run_lib.load(tmp_path / "none")
    with pytest.raises(ValueError, match="run.json is missing"):
        run_lib.load(tmp_path)
    (tmp_path / "run.json").write_text('{"model": "ResNet8"')
    with pytest.raises(ValueError, match="run.json is damaged"):
        run_lib.load(tmp_path)
    (tmp_path / "run.json").write_bytes((folder / "run.json").read_bytes())
    with pytest.raises(ValueError, match="no weights file"):
        run_lib.load(tmp_path)
    (tmp_path / "model.weights.h5").write_bytes((folder / "model.weights.h5").read_bytes()[:9999])
    with pytest.raises(ValueError, match="model.weights.h5 is damaged"):
        run_lib.load(tmp_path)


def test_a_failure_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="tfds build cifar10"):
        run_lib.train(Run(dataset="cifar10", data_dir=str(tmp_path / "data")), tmp_path / "run")
    assert not os.path.exists(tmp_path / "run")


def test_a_run_that_failed_before_its_first_checkpoint_does_not_bind_the_next(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(dataclasses.replace(SHORT, learning_rate=9.0).settings()))
    assert run_lib._check_goes_on(SHORT, tmp_path / "run", go_on=False) == []
    (folder / "step-3.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other settings \(learning_rate=9.0\)"):
        run_lib._check_goes_on(SHORT, tmp_path / "run", go_on=False)


def test_a_failure_in_the_first_step_leaves_nothing(tmp_path):
    wrong = dataclasses.replace(SHORT, learning_rate=1e30, ema=0.0, clip_norm=None, optimizer="sgd")
    with pytest.raises(FloatingPointError):
        run_lib.train(wrong, tmp_path / "run")
    assert os.listdir(tmp_path) == []


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


def quick(photos, **options):
    return Run(**{"dataset": str(photos), "image_size": 12, "epochs": 1, "batch_size": 6, "steps": 1, **options})


def test_a_run_knows_its_classes_and_pixels(photos, tmp_path, monkeypatch):
    """Neither pictures nor the working folder are needed any more, and other classes are refused."""
    monkeypatch.chdir(tmp_path)
    run_lib.train(quick("photos", crop="shortest_edge"), "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["dataset"] == str(photos)
    assert record["data"]["classes"] == ["bright", "dark"]
    assert record["data"]["splits"]["train"]["classes"] == {"bright": 12, "dark": 12}
    expected = {"height": 12, "width": 12, "channels": 3, "crop": "shortest_edge", "interpolation": "bicubic"}
    assert record["data"]["preprocessing"] == expected

    run, _ = run_lib.load("run")
    labels = [label for _, y in run.load_data("test", 4).as_numpy_iterator() for label in y]
    os.rename(photos, tmp_path / "moved")
    monkeypatch.chdir("/")
    run, model = run_lib.load(tmp_path / "run")
    run_lib.export(run, model, tmp_path / "run", tmp_path / "saved")
    assert (tmp_path / "saved" / "assets" / "labels.txt").read_text() == "bright\ndark\n"
    assert deployed.preprocessing_of(str(tmp_path / "saved")) == run.description.preprocessing
    with pytest.raises(ValueError, match="photos, which the network was trained on, is not there.*--dataset=FOLDER"):
        run.load_data("test")

    elsewhere = dataclasses.replace(run, dataset=str(tmp_path / "moved"))
    assert [label for _, y in elsewhere.load_data("test", 4).as_numpy_iterator() for label in y] == labels
    for split in ("train", "test"):
        os.rename(tmp_path / "moved" / split / "bright", tmp_path / "moved" / split / "light")
    with pytest.raises(ValueError, match="the network does not know: 'light' .*lacks 'bright'"):
        dataclasses.replace(run, dataset=str(tmp_path / "moved")).load_data("test")


def test_validation_and_calibration_see_all_classes(photos, monkeypatch):
    monkeypatch.setattr(run_lib, "VALIDATION_IMAGES", 6)
    monkeypatch.setattr(run_lib, "CALIBRATION_IMAGES", 4)
    run = quick(photos)
    ((images, labels),) = run.validation_data()
    assert sorted(labels.numpy()) == [0, 0, 0, 1, 1, 1]
    calibration = run.calibration_images()
    means = sorted(calibration.mean((1, 2, 3)))
    assert means[2] > 2 * means[1]  # two are bright
    pixels = {image.tobytes() for x, _ in run.load_data("train", 24) for image in x.numpy()}
    assert {image.tobytes() for image in calibration} <= pixels  # evaluation's own


def test_data_that_changed_are_noticed_when_a_run_goes_on(photos, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run_lib.train(quick(photos), folder)
    path = photos / "train" / "bright" / "0.png"
    (photos / "train" / "bright" / "new.png").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="The data of the run in .* changed: train: 24 images then, 25 now"):
        run_lib.train(quick(photos, epochs=2), folder, go_on=True)


def test_a_finished_run_can_be_continued(photos, tmp_path):
    folder = tmp_path / "run"
    run_lib.train(quick(photos), folder)
    with pytest.raises(ValueError, match="finished run already"):
        run_lib.train(quick(photos, epochs=3), folder)
    with pytest.raises(ValueError, match="finished run already.*a larger N"):
        run_lib.train(quick(photos), folder, go_on=True)
    with pytest.raises(ValueError, match="holds no run to go on with"):
        run_lib.train(quick(photos, epochs=3), tmp_path / "typo", go_on=True)
    os.rename(photos, tmp_path / "moved")  # the same data elsewhere
    photos = tmp_path / "moved"
    with pytest.raises(ValueError, match="other settings .activation='silu'"):
        run_lib.train(quick(photos, epochs=3, activation="relu"), folder, go_on=True)
    run_lib.train(quick(photos, epochs=3), folder, go_on=True)
    record = json.loads((folder / "run.json").read_text())
    assert (record["epochs"], record["continued"], record["iterations"]) == (3, [1], 12)
    assert [len(values) for values in record["history"].values()] == [3] * len(record["history"])
    assert None not in record["history"]["val_accuracy"]


def test_precision_is_that_of_the_run_alone(tmp_path):
    model = dataclasses.replace(SHORT, precision="mixed_bfloat16")
    with run_lib._policy(model.precision):
        assert model.build().get_layer("conv0").compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ResNet9"}, "model must be one of ResNet8"),
        ({"activation": "swich"}, "Known are"),
        ({"norm": "l1"}, "linf, l2"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"precision": "fp16"}, "mixed_float16"),
        ({"attack_precision": "bf16"}, "attack_precision must be one of"),
        ({"image_size": 0}, "image_size"),
        ({"rand_augment": 5.0}, r"rand_augment must be in 0..1"),
        ({"cutmix": -1.0}, r"cutmix must be in 0..1"),
        ({"mixup": 0.0}, "mixup must be positive"),
        ({"clip_norm": -1.0}, "clip_norm must be positive"),
        ({"warmup_epochs": -1.0}, "warmup_epochs must be in 0"),
        ({"crop": "centre"}, "crop must be one of stretch, padded"),
        ({"channels": 2}, "channels must be 1 or 3"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ValueError, match=message):
        Run(**options)


def test_weight_decay_is_on_kernels_only():
    optimizer = run_lib._trainer(dataclasses.replace(SHORT, activation="smooth_relu"), steps=10).optimizer
    model = SHORT.build()
    decayed = {w.name for w in model.trainable_weights if optimizer._use_weight_decay(w)}
    assert decayed == {"kernel"}
