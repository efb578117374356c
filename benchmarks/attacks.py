"""Compares the attacks with reference implementations: robust accuracy and time of both, in one run.

    pip install -e '.[bench]'     # the reference packages, pinned
    python benchmarks/attacks.py RUN [--only pgd ensemble ...] [--images 500] [--norm Linf] [--epsilon 25.5]

RUN is the folder of a network on Fashion-MNIST that `keras-sat train` wrote, or MODEL-ACTIVATION, such as
ResNet20-silu, for the weights in the package. A PyTorch twin has the same weights (benchmarks/twin.py); the difference
of the logits is printed. All attacks run on the same images and the same cores: ours through `evaluate`, theirs through
their own evaluation. An image counts as robust if it is classified correctly both clean and attacked. The time is the
time of the whole evaluation, ours with compilation. PGD is compared at an epsilon at which 40 to 60 % of the images are
robust, over several seeds. The first seed is a warm-up.
"""

import argparse
import os
import time
import warnings

import numpy as np
import torch
from twin import Twin

from keras_sat import attacks, evaluation, models, run

STAGES = {"apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T", "square": "Square"}
BALLS = {"Linf": attacks.LinfBall, "L2": attacks.L2Ball, "L1": attacks.L1Ball}
PGD_STEPS = 50
SEEDS = 3


class Comparison:
    """The network, its PyTorch twin and the images, with methods that attack them."""

    def __init__(self, subject, count, norm, epsilon, batch_size):
        config, self.model = run.load(subject) if os.path.isdir(subject) else (run.Run(), _embedded(subject))
        (self.images, self.labels), *_ = config.load_data(f"test[:{count}]", count).as_numpy_iterator()
        self.ball, self.batch_size = BALLS[norm](epsilon), batch_size
        self.norm = norm
        self.twin = Twin(self.model)
        self.torch_images = torch.from_numpy(self.images.transpose(0, 3, 1, 2) / 255).float()
        self.torch_labels = torch.from_numpy(self.labels).long()
        self.correct = self._predict_torch(self.torch_images) == self.labels

    def logits_difference(self):
        """Returns the largest difference between the logits of model and twin, relative to their range."""
        ours, theirs = np.array(self.model(self.images)), self.twin(self.torch_images).detach().numpy()
        return np.abs(ours - theirs).max() / np.ptp(ours)

    def ours(self, attack, seed=0):
        """Returns the robust accuracy and the seconds of one of our attacks."""
        start, data = time.perf_counter(), (self.images, self.labels)
        report = evaluation.evaluate(
            self.model, data, {"it": attack}, seed=seed, batch_size=self.batch_size, progress=False
        )
        return report["it"].accuracy, time.perf_counter() - start

    def theirs(self, perturb):
        """Returns the robust accuracy and the seconds of an attack on the twin.

        Args:
            perturb: a function from a batch of PyTorch images and labels to adversarial images.
        """
        start = time.perf_counter()
        batches = zip(self.torch_images.split(self.batch_size), self.torch_labels.split(self.batch_size))
        adversarial = torch.cat([perturb(images, labels) for images, labels in batches])
        robust = self.correct & (self._predict_torch(adversarial) == self.labels)
        return robust.mean(), time.perf_counter() - start

    def reference(self, names):
        """Returns the robust accuracy and the seconds of pyautoattack's own evaluation.

        Args:
            names: names of its attacks.
        """
        from pyautoattack import AutoAttack

        start = time.perf_counter()
        reference = AutoAttack(self.twin, norm=self.norm, eps=self.ball.epsilon / 255, version="standard", seed=0)
        reference.version, reference.attacks_to_run = "custom", names  # these attacks, with the settings of "standard"
        adversarial, _ = reference.run_standard_evaluation(
            self.torch_images, self.torch_labels, batch_size=self.batch_size
        )
        robust = self.correct & (self._predict_torch(adversarial) == self.labels)
        return robust.mean(), time.perf_counter() - start

    def _predict_torch(self, images):
        with torch.no_grad():
            return np.concatenate([self.twin(part).argmax(1).numpy() for part in images.split(self.batch_size)])


def _embedded(name):
    model, activation = name.split("-")
    return models.builder(model)(activation=activation, weights="sat-fashion-mnist")


def step(comparison):
    """Returns Madry's step size, 2.5 epsilon / steps, in pixels."""
    return 2.5 * comparison.ball.epsilon / PGD_STEPS


def torchattacks_pgd(comparison):
    import torchattacks

    epsilon = comparison.ball.epsilon / 255
    return comparison.theirs(
        torchattacks.PGD(comparison.twin, eps=epsilon, alpha=step(comparison) / 255, steps=PGD_STEPS)
    )


def foolbox_pgd(comparison):
    import foolbox

    model = foolbox.PyTorchModel(comparison.twin.eval(), bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=step(comparison) / 255, steps=PGD_STEPS)
    return comparison.theirs(lambda x, y: attack(model, x, y, epsilons=comparison.ball.epsilon / 255)[1])


def art_pgd(comparison, batch_size=None):
    import tensorflow as tf
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import TensorFlowV2Classifier

    classifier = TensorFlowV2Classifier(
        comparison.model,
        nb_classes=10,
        input_shape=comparison.images.shape[1:],
        loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0, 255),
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=comparison.ball.epsilon,
        eps_step=step(comparison),
        max_iter=PGD_STEPS,
        num_random_init=1,
        batch_size=batch_size or comparison.batch_size,
        verbose=False,
    )
    start = time.perf_counter()
    adversarial = attack.generate(comparison.images.astype(np.float32), comparison.labels)
    robust = comparison.correct & (np.argmax(comparison.model(adversarial), -1) == comparison.labels)
    return robust.mean(), time.perf_counter() - start


def compare_pgd(comparison):
    """Compares PGD with all peers. Prints means of the accuracies, and medians of the seconds after the warm-up."""
    ours = attacks.PGD(comparison.ball, PGD_STEPS, step(comparison), keep="first")
    contestants = {"ours": lambda seed: comparison.ours(ours, seed)}
    peers = {"torchattacks": torchattacks_pgd, "Foolbox": foolbox_pgd, "ART, TF 2": art_pgd}
    peers |= {"ART, batch 32": lambda comparison: art_pgd(comparison, 32)}  # ART's default
    contestants |= {peer: lambda _, theirs=theirs: theirs(comparison) for peer, theirs in peers.items()}
    results = {name: [] for name in contestants}
    for seed in range(SEEDS + 1):
        for name, contestant in contestants.items():
            torch.manual_seed(seed)
            np.random.seed(seed)
            results[name].append(contestant(seed))
    means = {
        name: (np.mean([accuracy for accuracy, _ in pairs]), np.median([seconds for _, seconds in pairs[1:]]))
        for name, pairs in results.items()
    }
    for peer in peers:
        row(f"PGD-{PGD_STEPS}", peer, means["ours"], means[peer])
    for name, pairs in results.items():
        print(f"{'':<12}{name:<14}" + "  ".join(f"{100 * a:.1f} % {s:.1f} s" for a, s in pairs), flush=True)


def row(name, peer, ours, theirs):
    """Prints a row: accuracies in %, seconds, and the ratio of the seconds."""
    accuracies = f"{100 * ours[0]:>8.1f}{100 * theirs[0]:>8.1f}{100 * (ours[0] - theirs[0]):>+7.1f}"
    print(f"{name:<12}{peer:<14}{accuracies}{ours[1]:>9.1f}{theirs[1]:>9.1f}{ours[1] / theirs[1]:>7.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", metavar="RUN")
    parser.add_argument("--only", nargs="+", default=["pgd", *STAGES, "ensemble"], help="default: all")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=250)
    parser.add_argument("--norm", choices=BALLS, default="Linf", help="of all but PGD, which is compared in Linf")
    parser.add_argument("--epsilon", type=float, default=25.5)
    parser.add_argument("--pgd_images", type=int, default=1000)
    parser.add_argument("--pgd_epsilon", type=float, default=36)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # the peers give many warnings
    torch.manual_seed(0)
    print(f"{'attack':<12}{'peer':<14}{'robust accuracy %':>23}{'seconds':>18}")
    print(f"{'':<26}{'ours':>8}{'theirs':>8}{'diff':>7}{'ours':>9}{'theirs':>9}{'ratio':>7}")
    if "pgd" in args.only:
        comparison = Comparison(args.subject, args.pgd_images, "Linf", args.pgd_epsilon, args.batch_size)
        compare_pgd(comparison)
    comparison = Comparison(args.subject, args.images, args.norm, args.epsilon, args.batch_size)
    standard = attacks.AutoAttack(comparison.ball)
    for name, attack in zip(STAGES, standard.stages):
        if name in args.only:
            row(STAGES[name], "pyautoattack", comparison.ours(attack), comparison.reference([name]))
    if "ensemble" in args.only:
        row("AutoAttack", "pyautoattack", comparison.ours(standard), comparison.reference(list(STAGES)))
    print(f"\nlogits, ours and the twin's: {comparison.logits_difference():.1e} of their range apart")


if __name__ == "__main__":
    main()
