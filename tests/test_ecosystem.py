"""Classifiers of keras.applications, KerasHub and KerasCV are attacked and trained as they are.

The last two are tested where they are installed: pip install 'keras-sat[ecosystem]'.
"""

import keras
import numpy as np
import pytest

from keras_sat import losses, models
from keras_sat.attacks import PGD, LinfBall
from keras_sat.evaluation import evaluate
from keras_sat.training import AdversarialModel


def keras_applications():
    """A model that ends in a softmax, for images in -1..1."""
    model = keras.applications.MobileNet((32, 32, 3), weights=None, classes=4, alpha=0.25)
    return models.without_softmax(model), (-1, 1)


def keras_hub():
    """A model that returns logits, for the output of its preprocessor, here images in 0..1."""
    library = pytest.importorskip("keras_hub")
    backbone = library.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(32, 32, 3),
    )
    return library.models.ResNetImageClassifier(backbone=backbone, num_classes=4), (0, 1)


def keras_cv():
    """A model that ends in a softmax, for images in 0..255."""
    library = pytest.importorskip("keras_cv")
    backbone = library.models.ResNetBackbone(
        stackwise_filters=[64, 64],
        stackwise_blocks=[1, 1],
        stackwise_strides=[1, 2],
        include_rescaling=True,
        block_type="basic_block",
        input_shape=(32, 32, 3),
    )
    return models.without_softmax(library.models.ImageClassifier(backbone=backbone, num_classes=4)), (0, 255)


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("build", [keras_applications, keras_hub, keras_cv])
def test_attacked_trained_and_evaluated(build):
    keras.utils.set_random_seed(0)
    model, (low, high) = build()
    epsilon = (high - low) * 8 / 255
    attack = PGD(LinfBall(epsilon, bounds=(low, high)), steps=3)
    images = np.random.default_rng(0).uniform(low, high, (8, 32, 32, 3)).astype(np.float32)
    labels = np.argmax(model(images), -1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    adversarial = attack(model, images, labels)
    assert np.abs(adversarial - images).max() <= epsilon + 1e-5
    margins = [np.mean(losses.margin(labels, model(x))) for x in (images, adversarial)]
    assert margins[1] > margins[0]

    trainer = AdversarialModel(model, attack)
    trainer.compile("sgd", loss, metrics=["accuracy"], jit_compile=False)
    before = [weight.numpy() for weight in model.trainable_weights]
    history = trainer.fit(images, labels, batch_size=8, validation_data=(images, labels), verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert any(np.any(old != weight.numpy()) for old, weight in zip(before, model.trainable_weights))
    assert evaluate(model, (images, labels), attack, progress=False)["PGD-3"].n == 8
