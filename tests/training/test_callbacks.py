import keras
import pytest
import tensorflow as tf

import keras_sat
from keras_sat.attacks import PGD, LinfBall
from keras_sat.training import (
    AdversarialModel,
    CatastrophicOverfittingGuard,
    PerturbationImages,
    RobustAccuracy,
    callbacks,
)

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def trainer_of(model, attack, optimizer="sgd", **options):
    trainer = AdversarialModel(model, attack, **options)
    trainer.compile(optimizer, LOSS, metrics=["accuracy"])
    return trainer


def test_robust_accuracy_is_measured_every_few_epochs_and_can_be_monitored(tiny_model, images, labels, tmp_path):
    model, attack = tiny_model(), PGD(LinfBall(2), steps=3)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(3)
    measure = RobustAccuracy(dataset, attack, every=2)
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="val_robust_accuracy", mode="max", save_best_only=True
    )
    trainer = trainer_of(model, attack, keras.optimizers.Adam(0.02))
    history = trainer.fit(images, labels, epochs=6, verbose=0, callbacks=[measure, best]).history
    values = history["val_robust_accuracy"]
    assert values[1] == values[2]
    assert values[3] == values[4]
    assert max(values) > values[0]
    saved = keras.models.load_model(tmp_path / "best.keras")
    assert callbacks.robust_accuracy(saved, dataset, attack) == max(values)


def test_perturbations_are_shown_in_tensorboard(tiny_model, images, labels, tmp_path):
    attack = PGD(LinfBall(8), steps=2)
    show = PerturbationImages(images[:3], labels[:3], attack, str(tmp_path), every=2)
    trainer_of(tiny_model(), attack).fit(images, labels, epochs=4, verbose=0, callbacks=[show])
    (path,) = tmp_path.glob("events*")
    seen = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            width, height, *pictures = value.tensor.string_val
            seen.setdefault(value.tag, []).append((event.step, int(width), len(pictures)))
            assert tf.io.decode_png(pictures[0]).shape == (8, 8, 3)
    expected = [(1, 8, 3), (3, 8, 3)]
    assert seen == {f"attack/{name}": expected for name in ("clean", "adversarial", "perturbation")}


@pytest.fixture(scope="module")
def fashion():
    train = keras_sat.data.load("fashion_mnist_mini", "train[:4000]", 100, training=True, augment=False)
    test = keras_sat.data.load("fashion_mnist_mini", "test[:200]", 200)
    return train, test


def collapsing(fashion, **options):
    """A run that collapses: one step of a large epsilon, ReLU, a high learning rate."""
    keras.utils.set_random_seed(0)
    model = keras_sat.models.ResNet8(activation="relu", input_shape=(28, 28, 1), classes=10)
    attack = PGD(LinfBall(40), steps=1, step_size=50.0)
    train, test = fashion
    trainer = trainer_of(model, attack, keras.optimizers.Adam(0.01))
    guard = CatastrophicOverfittingGuard(test, PGD(LinfBall(40), steps=10), every=20, **options)
    trainer.fit(train, epochs=4, shuffle=False, verbose=0, callbacks=[guard])
    return trainer, guard


def test_refusals(tiny_model, images, labels):
    attack = PGD(LinfBall(8))
    with pytest.raises(ValueError, match='"stop" or "roll back"'):
        CatastrophicOverfittingGuard([], attack, action="panic")
    with pytest.raises(ValueError, match="between 0 and 1"):
        CatastrophicOverfittingGuard([], attack, collapse=2)
    with pytest.raises(ValueError, match="no images"):
        callbacks.robust_accuracy(tiny_model(), [], attack)
