"""One of several workers: worker.py FOLDER TASK PORT PORT trains, evaluates, and writes FOLDER/TASK.json."""

import json
import os
import sys

import keras
import numpy as np

from keras_sat.attacks import PGD, LinfBall
from keras_sat.training import AdversarialModel, Checkpoint, distribution


def batches(images, labels):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)


def main(folder, task, *ports):
    if ports:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": int(task)}})
    strategy = distribution.strategy("auto")
    keras.utils.set_random_seed(0)
    with strategy.scope():
        layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(2 / 255, -1.0), keras.layers.Conv2D(8, 3)]
        layers += [keras.layers.BatchNormalization(synchronized=True), keras.layers.Activation("silu")]
        model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(4)])
        trainer = AdversarialModel(model, PGD(LinfBall(4), steps=2, random_start=False))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9, global_clipnorm=1.0)
        trainer.compile(optimizer, loss, metrics=["accuracy"])
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8), rng.integers(0, 4, 40)
    is_chief = distribution.is_chief(strategy)
    folder_of = {"alone": "alone-checkpoints"}.get(task, "checkpoints")
    with Checkpoint(os.path.join(folder, folder_of), 5, every=2, is_chief=is_chief) as checkpoint:
        history = trainer.fit(
            batches(images, labels), epochs=1, shuffle=False, verbose=0, callbacks=[checkpoint]
        ).history
    evaluated = trainer.evaluate(batches(images[:17], labels[:17]), verbose=0, return_dict=True)
    record = {"replicas": strategy.num_replicas_in_sync, "history": history, "evaluated": evaluated}
    record["weights"] = [weight.tolist() for weight in model.get_weights()]
    with open(os.path.join(folder, f"{task}.json"), "w", encoding="utf-8") as file:
        json.dump(record, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
