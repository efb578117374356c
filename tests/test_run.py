import dataclasses
import json
import os

import keras
import numpy as np
import pytest

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
    assert set(os.listdir(folder)) == {"model.weights.h5", "run.json", "logs"}
    assert set(os.listdir(folder / "logs")) == {"train", "validation"}
    record = json.loads((folder / "run.json").read_text())
    assert {field.name: record[field.name] for field in dataclasses.fields(Run)} == dataclasses.asdict(SHORT)
    assert record["finished"] is True
    assert record["iterations"] == 20
    assert record["attack_batch_norm"] == "frozen"
    assert set(record["versions"]) == {"keras_sat", "keras", "tensorflow", "python"}
    assert set(record["history"]) >= {"loss", "accuracy", "val_accuracy", "val_robust_accuracy"}


def test_load_gives_the_trained_network_back(trained):
    folder, model = trained
    run, loaded = run_lib.load(folder)
    assert run == SHORT
    images = np.random.default_rng(0).integers(0, 256, (3, 14, 14, 1)).astype(np.uint8)
    np.testing.assert_array_equal(loaded(images), model(images))
    adversarial = PGD(LinfBall(8), steps=2)(model, images, [0, 1, 2])  # though it was trained by two replicas
    np.testing.assert_allclose(loaded(adversarial), model(adversarial), atol=1e-5)


def test_a_folder_is_not_overwritten(trained):
    folder, _ = trained
    before = (folder / "model.weights.h5").read_bytes()
    with pytest.raises(ValueError, match="holds a run already"):
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
    (folder / "run.json").write_text(json.dumps(dataclasses.asdict(dataclasses.replace(SHORT, learning_rate=9.0))))
    run_lib._check_is_unfinished(SHORT, tmp_path / "run")
    (folder / "step-3.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other settings \(learning_rate=9.0\)"):
        run_lib._check_is_unfinished(SHORT, tmp_path / "run")


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
