"""Trains with several workers, which are children of this process: it imports TensorFlow once.

Each line of standard input is FOLDER TASK,LAST,PORT,PORT TASK,LAST,PORT,PORT ..., separated by tabs. Each worker
trains, evaluates, and writes FOLDER/TASK.json, and errors to FOLDER/TASK.txt. The answer lists their exit statuses.
Training continues from FOLDER/checkpoints. After step LAST, if LAST is not 0, the second worker kills itself.
"""

import json
import os
import signal
import sys
import traceback

import keras
import numpy as np

from keras_sat.attacks import PGD, LinfBall
from keras_sat.training import AdversarialModel, BestWeights, CatastrophicOverfittingGuard, Checkpoint, distribution

STEPS, EPOCHS = 5, 2


class Death(keras.callbacks.Callback):
    def __init__(self, last):
        super().__init__()
        self.last = last

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def batches(images, labels):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    return dataset.filter(lambda *_: True)  # see Checkpoint


def main(folder, task, last, *ports):
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
    callbacks = [Death(int(last))] if task == "1" else []
    name = "alone" if task == "alone" else "checkpoints"
    is_chief = distribution.is_chief(strategy)
    guard = CatastrophicOverfittingGuard((images[:8], labels[:8]), PGD(LinfBall(4), steps=1), every=3, collapse=1e-9)
    best = BestWeights(
        os.path.join(folder, f"{name}.weights.h5"), keras.Model.save_weights, monitor="adversarial_accuracy"
    )
    stateful = [guard, best]
    with Checkpoint(os.path.join(folder, name), STEPS, 2, is_chief=is_chief, callbacks=stateful) as checkpoint:
        done = checkpoint.restore(trainer)
        with distribution.report_lost_workers(strategy):
            history = trainer.fit(
                batches(*(np.concatenate([x] * EPOCHS)[8 * done :] for x in (images, labels))),
                steps_per_epoch=STEPS,
                epochs=EPOCHS,
                initial_epoch=checkpoint.epoch,
                shuffle=False,
                verbose=0,
                callbacks=[*callbacks, *stateful, checkpoint],
            ).history
    evaluated = trainer.evaluate(batches(images[:17], labels[:17]), verbose=0, return_dict=True)
    record = {"replicas": strategy.num_replicas_in_sync, "history": history, "evaluated": evaluated}
    record |= {"probes": list(guard.probes), "best": best.best}
    record["weights"] = [weight.tolist() for weight in model.get_weights()]
    with open(os.path.join(folder, f"{task}.json"), "w", encoding="utf-8") as file:
        json.dump(record, file)


def child(folder, task, *arguments):
    """Starts one worker. Returns its process id."""
    if pid := os.fork():
        return pid
    os.dup2(os.open(os.path.join(folder, f"{task}.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    try:
        main(folder, task, *arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    for line in sys.stdin:
        folder, *tasks = line.rstrip("\n").split("\t")
        children = [child(folder, *task.split(",")) for task in tasks]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]), flush=True)
