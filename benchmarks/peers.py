"""Compares the time of attacks and of adversarial training with other packages: same weights, images and cores.

    pip install -e '.[bench]'
    python benchmarks/peers.py [--only torchattacks cleverhans art] [--networks ResNet50 WideResNet28_10] [--repeats 5]

PGD-10 on each of NETWORKS is compared with torchattacks on a PyTorch twin (channels last; benchmarks/twin.py), and on
ResNet-50 (silu, 64 px, batch 32) with CleverHans on TensorFlow 2. An adversarial training step (PGD-7) of ResNet-50,
and of ResNet-8 on 28 px, is compared with ART's AdversarialTrainer on TensorFlow 2, and with a plain step of Keras.
PGD-7 needs 5.7 times the passes of a plain step. The candidates run in turns after a warm-up, and medians are compared.
Before, the results of the attacks are compared: the cross entropy and the pixels. For this, all attacks start at the
clean images, so that they differ only by rounding.
"""

import argparse
import functools
import statistics

import keras
import numpy as np
import tensorflow as tf
from race import race

import keras_sat
from keras_sat.attacks import PGD, LinfBall
from keras_sat.models import convnext, folding

EPSILON, STEP, PIXELS = 4.0, 1.0, 255.0
NETWORKS = {"ResNet50": (64, 32), "WideResNet28_10": (32, 16), "ConvNeXtTiny": (64, 16)}  # {name: (size, batch)}


def data(size, channels, batch, classes):
    """Returns a batch of random images and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, channels)).astype(np.float32)
    return images, rng.integers(0, classes, batch)


def show(title, seconds, theirs):
    """Prints the times of all candidates, and their ratios to the candidate `theirs`."""
    print(title)
    reference = statistics.median(seconds[theirs])
    for name, times in seconds.items():
        median = statistics.median(times)
        spread = f"({min(times):.3f}..{max(times):.3f})"
        print(f"    {name:<16}{median:8.3f} s  {spread}  over theirs {median / reference:.3f}")
    print()


def agreement(model, images, labels, adversarial):
    """Prints the mean cross entropy on adversarial images, and the share of pixels that equal those of the first.

    Args:
        adversarial: {name: adversarial images}.
    """
    first = next(iter(adversarial.values()))
    for name, points in ({"no attack": images} | adversarial).items():
        logits = model(np.clip(points, 0, PIXELS), training=False)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        same = 100 * np.mean(np.abs(points - first) < 0.01)
        print(f"    {name:<16}cross entropy {float(loss):8.4f}, the same pixels {same:5.1f} %")


def network(name):
    """Returns a network of NETWORKS that behaves like a trained one, and a batch of random images and labels.

    Its batch norms have the statistics of their inputs, and no gamma is nearly 0, so that all layers have gradients.
    """
    size, batch = NETWORKS[name]
    model, rng = keras_sat.models.BUILDERS[name](input_shape=(size, size, 3)), np.random.default_rng(1)
    images, labels = data(size, 3, batch, model.output_shape[-1])
    for layer in model.layers:
        if isinstance(layer, (keras.layers.BatchNormalization, convnext.LayerScale)):
            layer.gamma.assign(rng.uniform(0.2, 1, layer.gamma.shape))
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the next batch determines the statistics
    model(images, training=True)
    return model, images, labels


def ours(model, precision, random_start=True):
    """Returns our PGD-10 as evaluation and training run it, on a copy with folded batch norms."""
    attack = PGD(LinfBall(EPSILON), steps=10, step_size=STEP, random_start=random_start)
    logits_fn = folding.Folding(model, precision).bind()
    return lambda images, labels: attack(logits_fn, images, labels, 0).numpy()


def versus(model, images, labels, name, theirs, repeats):
    """Compares our PGD-10 in two precisions with theirs.

    Args:
        theirs: a function from random_start (bool) to adversarial images.
    """
    rows = {"keras_sat": None, "keras_sat bf16": "mixed_bfloat16"}
    adversarial = {row: ours(model, precision, random_start=False)(images, labels) for row, precision in rows.items()}
    agreement(model, images, labels, adversarial | {name: theirs(False)})
    attacks = {row: ours(model, precision) for row, precision in rows.items()}
    candidates = {row: lambda attack=attack: attack(images, labels) for row, attack in attacks.items()}
    title = f"PGD-10, {model.name}, {images.shape[1]} px, batch {len(images)}"
    show(title, race(candidates | {name: lambda: theirs(True)}, repeats), name)


def torchattacks(args):
    for name in args.networks:
        _torchattacks_on(*network(name), args.repeats)


def _torchattacks_on(model, images, labels, repeats):
    import torch
    import torchattacks as peer
    from twin import Twin

    twin = Twin(model)
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2) / PIXELS).contiguous(memory_format=torch.channels_last)
    targets = torch.from_numpy(labels)
    logits = model(images).numpy()
    difference = np.abs(twin(inputs).detach().numpy() - logits).max() / np.ptp(logits)
    print(f"PyTorch twin: logits differ by {difference:.1e} of their range")
    attacks = {s: peer.PGD(twin, EPSILON / PIXELS, STEP / PIXELS, steps=10, random_start=s) for s in (False, True)}

    def theirs(random_start):
        return attacks[random_start](inputs, targets).numpy().transpose(0, 2, 3, 1) * PIXELS

    versus(model, images, labels, "torchattacks", theirs, repeats)


def cleverhans(args):
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    model, images, labels = network("ResNet50")

    def theirs(random_start):
        limits = {"clip_min": 0.0, "clip_max": PIXELS, "rand_init": random_start, "sanity_checks": False}
        attack = projected_gradient_descent
        return attack(model, tf.constant(images), EPSILON, STEP, 10, np.inf, y=labels, **limits).numpy()

    versus(model, images, labels, "cleverhans", theirs, args.repeats)


def art(args):
    for name, shape, classes in (("ResNet8", (28, 28, 1), 10), ("ResNet50", (64, 64, 3), 1000)):
        build = keras_sat.models.BUILDERS[name]
        models = [build(input_shape=shape, classes=classes) for _ in range(2)]
        images, labels = data(shape[0], shape[2], 32, classes)
        trainer = keras_sat.training.AdversarialModel(models[0], PGD(LinfBall(EPSILON), steps=7, step_size=STEP))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(keras.optimizers.SGD(0.01), loss)
        plain = build(input_shape=shape, classes=classes)
        plain.compile(keras.optimizers.SGD(0.01), loss)
        candidates = {
            "plain step": functools.partial(plain.train_on_batch, images, labels),
            "keras_sat": functools.partial(trainer.train_on_batch, images, labels),
            "art": functools.partial(_art_trainer(models[1], shape, classes).fit, images, labels, 32, 1),
        }
        show(f"adversarial training step, PGD-7, {name}, batch 32", race(candidates, args.repeats), "art")


def _art_trainer(model, shape, classes):
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainer
    from art.estimators.classification import TensorFlowV2Classifier

    loss, optimizer = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True), keras.optimizers.SGD(0.01)

    @tf.function
    def train_step(model, images, labels):
        with tf.GradientTape() as tape:
            value = loss(labels, model(images, training=True))
        optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)

    classifier = TensorFlowV2Classifier(
        model, classes, shape, loss_object=loss, train_step=train_step, clip_values=(0, PIXELS)
    )
    options = {"eps": EPSILON, "eps_step": STEP, "max_iter": 7, "num_random_init": 1, "verbose": False}
    return AdversarialTrainer(classifier, ProjectedGradientDescent(classifier, batch_size=32, **options), ratio=1.0)


PEERS = {"torchattacks": torchattacks, "cleverhans": cleverhans, "art": art}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    networks = {"choices": NETWORKS, "default": list(NETWORKS)}
    parser.add_argument("--networks", nargs="+", **networks, help="what torchattacks attacks; default: all")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for name in args.only:
        PEERS[name](args)


if __name__ == "__main__":
    main()
