"""The configuration of a run."""

import dataclasses

import keras
import pytest

from keras_sat.attacks import GaussianNoise
from keras_sat.run import Run, configuration
from keras_sat.training import AdversarialTraining, Free


def test_validation_and_calibration_see_all_classes(quick, photos, monkeypatch):
    monkeypatch.setattr(configuration, "CALIBRATION_IMAGES", 4)
    run = quick(photos, validation=6)
    ((images, labels),) = run.validation_data()
    assert sorted(labels.numpy()) == [0, 0, 0, 1, 1, 1]
    assert run.steps_per_epoch() == 3  # of the other 18
    ((_, labels),) = quick(photos, validation_split="test[:6]").validation_data()
    assert sorted(labels.numpy()) == [0, 0, 0, 1, 1, 1]
    assert quick(photos, validation_split="test").steps_per_epoch() == 4
    calibration = run.calibration_images()
    means = sorted(calibration.mean((1, 2, 3)))
    assert means[2] > 2 * means[1]  # two are bright
    pixels = {image.tobytes() for x, _ in run.load_data("train", 24) for image in x.numpy()}
    assert {image.tobytes() for image in calibration} <= pixels  # evaluation's own


def test_precision_is_that_of_the_run_alone(short, tmp_path):
    model = dataclasses.replace(short, precision="mixed_bfloat16")
    with configuration.dtype_policy(model.precision):
        assert model.build().get_layer("conv0").compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ResNet9"}, "model must be one of ResNet8"),
        ({"model": "ResNet18", "form": "sat"}, "form of ResNet18 must be one of small, torchvision. Received: 'sat'"),
        ({"normalization": "cifar"}, "one of published, none, cifar10, cifar100, imagenet"),
        ({"normalization": [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], "channels": 1}, "The images have 1 channels"),
        ({"activation": "swich"}, "Known are"),
        ({"norm": "l0"}, "linf, l2, l1"),
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
        ({"warmup_epochs": -1.0}, "warmup_epochs must be at least 0"),
        ({"crop": "centre"}, "crop must be one of stretch, padded"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"freeze": "head"}, "freeze must be one of backbone, batch_norm"),
        ({"keep": "first"}, "keep must be one of best, last"),
        ({"guard": "roll back"}, "guard must be one of none, stop, roll_back"),
        ({"probe": "pgd"}, "attack must be one of"),
        ({"validation": -1.0}, "validation must be a share of the split"),
        ({"patience": 3, "validation": 0}, "patience must be left out without validation images"),
        ({"extra_share": 0.7}, "extra_share must be above 0 with extra_data, such as 0.7, and 0 without"),
        ({"extra_data": "x.npz"}, "extra_share must be above 0 with extra_data"),
        ({"start_std": 0.2, "replays": 2}, "start_std must be left out with replays"),
        ({"clean_statistics": False}, "clean_statistics must be True unless objective is trades"),
        ({"augment": "no"}, "augment must be true or false. Received: 'no'"),
        ({"epochs": 2.5}, "epochs must be a whole number. Received: 2.5"),
        ({"checkpoint_every": 1.5}, "checkpoint_every must be a whole number"),
        ({"epochs": True}, "epochs must be a whole number. Received: True"),
        ({"validation": 10**400}, "validation must be a finite number"),
        ({"schedule": "steps", "decay_epochs": "\u00b2"}, "decay_epochs must be whole numbers"),
        ({"seed": "x"}, "seed must be a whole number. Received: 'x'"),
        ({"seed": -1}, "seed must be in 0..2147483647. Received: -1"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number. Received: inf"),
        ({"probe": None}, "probe must be a text. Received: None"),
        ({"probe": "pgd"}, "probe: attack must be one of"),
        ({"dataset": 3}, "dataset must be a text. Received: 3"),
        ({"normalization": 3}, "normalization must be a text or a list. Received: 3"),
        ({"validation": 1.5}, "validation must be a share of the split, at least 0 and below 1, or a whole number of"),
        ({"clean_passes": 2}, "clean_passes must be 1 unless objective is trades, with clean_statistics. Received: 2"),
        ({"clean_passes": 3, "objective": "trades"}, "clean_passes must be 1 or 2. Received: 3"),
        ({"cycle_momentum": "0.9"}, "cycle_momentum must be two numbers in 0..1, the smaller first"),
        ({"cycle_momentum": "0.9,0.8"}, "cycle_momentum must be two numbers in 0..1, the smaller first"),
        ({"cycle_momentum": "a,b"}, "cycle_momentum must be two numbers in 0..1, the smaller first"),
        (
            {"cycle_momentum": "0.8,0.9"},
            "cycle_momentum must be none, or with optimizer=torch_sgd and the schedule",
        ),
        ({"extra_label_smoothing": 0.1}, "extra_label_smoothing must be 0 without extra_data"),
        ({"epochs": "5"}, "epochs must be a whole number"),
        ({"ema_warmup": 1.0}, "ema_warmup must be left out without ema"),
        ({"objective": "gaussian"}, "sigma must be given with objective=gaussian"),
        ({"sigma": 64.0}, "sigma must be given with objective=gaussian, and left out without. Received: 64.0"),
        ({"sigma": 0.0, "objective": "gaussian"}, "sigma must be positive"),
        ({"sigma": 64.0, "objective": "gaussian", "beta": 6.0}, "beta must be left out"),
        ({"sigma": 64.0, "objective": "gaussian", "replays": 2}, "objective must be adversarial with replays"),
        ({"sigma": 64.0, "objective": "gaussian", "step_size": 2.0}, "step_size must be left out.*has no attack"),
        ({"sigma": 64.0, "objective": "gaussian", "guard": "stop"}, "guard must be left out.*has no attack"),
        ({"beta": 5.0}, "beta must be left out unless the objective is trades or mart"),
        ({"grad_align": 0.2, "replays": 2}, "grad_align must be 0 with replays"),
        ({"weights": "sat-fashion-mnist", "model": "ResNet18"}, "ResNet18"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ValueError, match=message):
        Run(**options)


def test_form_and_normalization_are_those_of_the_network():
    run = Run(model="WideResNet10_1", form="dm", normalization=((0.25,), (0.5,)), image_size=8)
    assert run.settings()["normalization"] == [[0.25], [0.5]]  # as JSON gives it back
    model = run.build()
    assert {"init_conv", "logits"} <= {layer.name for layer in model.layers}
    expected = {"name": "WideResNet10_1", "form": "dm", "activation": "silu", "normalization": [[0.25], [0.5]]}
    assert run.network(model) == expected
    other = dataclasses.replace(run, form=None, normalization="none")
    assert other.network(other.build()) == expected | {"form": "trades", "normalization": [0.0, 1.0]}


def test_replays_are_free_adversarial_training():
    """The attack gives the ball and the step size, which is epsilon unless the run has another one."""
    run = Run(replays=4, epsilon=8.0)
    assert run.attack().resolved_step_size == 8
    assert run.training_objective() == Free(4)
    assert dataclasses.replace(run, step_size=3.0).attack().resolved_step_size == 3
    with pytest.raises(ValueError, match="objective must be adversarial with replays. Received: 'trades'"):
        Run(replays=4, objective="trades")
    with pytest.raises(ValueError, match="attack_precision must be left out with replays"):
        Run(replays=4, attack_precision="mixed_bfloat16")


def test_noise_takes_the_place_of_the_attack():
    run = Run(objective="gaussian", sigma=64, steps=1, validation=100)
    assert run.attack() == run.validation_attack() == GaussianNoise(64)
    assert run.training_objective() == AdversarialTraining()
    assert run.guard_action() == "none"
    assert Run(steps=1, validation=100).guard_action() == "stop"


def test_held_out_images_are_not_trained_on():
    run = Run(train_split="train[:300]", image_size=8, batch_size=20, validation=60)
    held_out = {image.tobytes() for x, _ in run.validation_data() for image in x.numpy()}
    trained_on = {image.tobytes() for x, _ in run.training_data().take(run.steps_per_epoch()) for image in x.numpy()}
    assert (len(held_out), len(trained_on), run.steps_per_epoch()) == (60, 240, 12)
    assert not held_out & trained_on
    probed = {image.tobytes() for x, _ in run.probed_data() for image in x.numpy()}
    assert probed == held_out
    assert next(run.validation_data(sample=20).unbatch().batch(30).as_numpy_iterator())[0].shape == (20, 8, 8, 1)


def test_images_for_validation_are_no_extra_images():
    run = Run(train_split="train[:100]", batch_size=10, extra_data="fashion_mnist_mini", extra_share=0.5)
    for options in ({}, {"validation_split": "train[200:]"}):
        with pytest.raises(ValueError, match="extra_data must be apart from the images for validation, of train"):
            dataclasses.replace(run, **options).steps_per_epoch()
    for options in ({"validation": 0}, {"validation_split": "test[:20]"}):
        assert dataclasses.replace(run, **options).steps_per_epoch() == 10
