"""Checks of a training step for TPUs that need no TPU: it can be lowered, has static shapes and no host operations."""

import importlib.util
import pathlib
import re
import sys

import keras
import pytest
import tensorflow as tf

from keras_sat.attacks import FGSM, PGD, LinfBall
from keras_sat.training import AWP, MART, TRADES, AdversarialModel, Free

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "run_on_pjrt.py"
BALL = LinfBall(8)
HOST = (
    "custom_call",
    "infeed",
    "outfeed",
    "send",
    "recv",
    "get_dimension_size",
    "real_dynamic_slice",
    "dynamic_reshape",
)


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[SCRIPT.stem] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    yield module
    del sys.modules[SCRIPT.stem]


@pytest.mark.parametrize(
    "options",
    [
        {"attack": PGD(BALL, steps=2, clean_start=0.2)},
        {"attack": PGD(BALL, steps=2, keep="first"), "static_shapes": True, "attack_precision": "mixed_bfloat16"},
        {"attack": PGD(BALL, steps=2), "objective": TRADES(), "weight_perturbation": AWP()},
        {"attack": PGD(BALL, steps=2), "objective": MART(), "attack_batch_norm": "batch"},
        {"attack": FGSM(BALL), "objective": Free(replays=2)},
    ],
    ids=["pgd", "mask", "trades awp", "mart", "free"],
)
def test_a_step_lowers_to_static_shapes_and_nothing_for_the_host(options, script, tiny_model):
    trainer = AdversarialModel(tiny_model(), **options)
    optimizer = keras.optimizers.SGD(0.1, 0.9, nesterov=True, global_clipnorm=1.0, use_ema=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    images, labels = tf.zeros((4, 8, 8, 3), tf.uint8), tf.zeros(4, tf.int64)
    variables = sum(script.prepare(trainer, images, labels).values(), [])
    specs = {"images": tf.TensorSpec(images.shape, tf.uint8), "labels": tf.TensorSpec(labels.shape, tf.int64)}
    text = script.lower(lambda images, labels: trainer.train_step((images, labels)), specs, variables).text
    assert text.count("stablehlo.convolution") >= 3
    assert "tensor<?" not in text
    operations = set(re.findall(r"stablehlo\.(\w+)", text))
    assert {"while", "convolution"} <= operations or "objective" in options and options["objective"].replays
    assert not operations & set(HOST)
    assert not re.findall(r"= mhlo\.\w+", text)  # operations of TensorFlow alone
