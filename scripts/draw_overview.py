"""Draws the README's picture, docs/figures/overview.png, with the networks that come with the package.

    pip install '.[report]'
    python scripts/draw_overview.py [--images=200]

Left: images, the same images attacked by PGD-50, and the perturbations, with the class that ResNet8 with SiLU gives to
each. Right: accuracy against epsilon under APGD-CE and APGD-T, on the first test images. It takes ten minutes.
"""

import argparse
import pathlib

import matplotlib
import numpy as np

import keras_sat
from keras_sat import files
from keras_sat.attacks import PGD, AutoAttack, LinfBall

PATH = pathlib.Path(__file__).parent.parent / "docs" / "figures" / "overview.png"
EPSILON = 25.5  # of the networks' training
EPSILONS = (0.0, 6.375, 12.75, 19.125, 25.5, 31.875, 38.25, 51.0)
PICTURES = 5


def network(activation):
    """Returns the ResNet8 of the package with an activation."""
    return keras_sat.models.ResNet8(activation=activation, weights="sat-fashion-mnist")


def examples(model, images, labels):
    """Returns images of different classes that the attack breaks: clean and adversarial, and their labels."""
    adversarial = PGD(LinfBall(EPSILON), steps=50)(model, images, labels, seed=0).numpy()
    clean, broken = (np.argmax(model(points), -1) for points in (images, adversarial))
    chosen = np.flatnonzero((clean == labels) & (broken != labels))
    _, first = np.unique(labels[chosen], return_index=True)
    chosen = np.sort(chosen[first])[:PICTURES]
    return images[chosen], adversarial[chosen], labels[chosen], broken[chosen]


def curve(model, images, labels):
    """Returns the accuracy in % at each of EPSILONS."""
    attacks = {str(epsilon): AutoAttack(LinfBall(epsilon), "short") for epsilon in EPSILONS[1:]}
    report = keras_sat.evaluation.evaluate(model, (images, labels), attacks)
    return [100 * row.accuracy for row in report.results]


def draw(pictures, curves, classes):
    """Writes the picture."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    clean, adversarial, labels, broken = pictures
    figure = plt.figure(figsize=(10, 4), dpi=120, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1))
    grid = left.subplots(3, len(labels))
    rows = {"clean": clean, "attacked": adversarial, "difference": 127.5 + 127.5 * (adversarial - clean) / EPSILON}
    for axes, (name, row) in zip(grid, rows.items()):
        for axis, image in zip(axes, row):
            axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name)
    for row, names in ((0, labels), (1, broken)):
        for axis, name in zip(grid[row], names):
            axis.set_title(classes[name], fontsize=9)
    axis = right.subplots()
    for name, values in curves.items():
        axis.plot(EPSILONS, values, "o-", label=name, markersize=3)
    axis.axvline(EPSILON, color="grey", linewidth=0.8)
    axis.set(xlabel="epsilon, pixels of 0..255 (trained with 25.5)", ylabel="accuracy under APGD, %", ylim=(0, 100))
    axis.grid(alpha=0.3)
    axis.legend()
    with files.atomic_write(PATH) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="number of test images of the curves (default: 200)")
    args = parser.parse_args()
    split = f"test[:{args.images}]"
    ((images, labels),) = keras_sat.data.load("fashion_mnist_mini", split, args.images).as_numpy_iterator()
    images = images.astype(np.float32)
    networks = {activation: network(activation) for activation in ("relu", "silu")}
    curves = {f"ResNet8, {name}": curve(model, images, labels) for name, model in networks.items()}
    classes = keras_sat.data.info("fashion_mnist_mini").features["label"].names
    draw(examples(networks["silu"], images, labels), curves, classes)


if __name__ == "__main__":
    main()
