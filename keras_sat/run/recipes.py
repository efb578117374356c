"""Published settings of adversarial training, as settings of `keras_sat.run.Run`."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Published settings of a training run, and their cost: `Run(**RECIPES["sat_resnet"].settings)`.

    Attributes:
        name: name of the recipe in `RECIPES` and on the command line.
        paper: source of the settings.
        cost: cost of a training step as a multiple of a step of plain training, computed from the number of passes
            (1 + 2k/3 for PGD-k), and length of the training. `training.cost` measures the cost of a step.
        differs: how the recipe differs from the published training.
        settings: values of the fields of `Run` that differ from the defaults.
    """

    name: str
    paper: str
    cost: str
    differs: str
    settings: dict[str, Any]

    @property
    def command(self) -> str:
        """The command that trains with this recipe."""
        return f"keras-sat train --recipe={self.name} --output=runs/{self.name}"


_SGD = {"optimizer": "sgd", "schedule": "steps", "warmup_epochs": 0.0}
_IMAGENET = {"dataset": "imagenet2012", "image_size": 224, "augment": True, "epsilon": 4.0, "batch_size": 256} | _SGD
_CIFAR = {"dataset": "cifar10", "augment": True, "epsilon": 8.0, "batch_size": 128} | _SGD
_CIFAR_RESNET = _CIFAR | {"model": "ResNet18", "activation": "relu"}
_SAT = _IMAGENET | {
    "model": "ResNet50",
    "activation": "silu",
    "steps": 1,
    "clean_start": 0.2,
    "epochs": 100,
    "learning_rate": 0.1,
    "decay_epochs": "30,60,90",
    "weight_decay": 1e-4,
    "label_smoothing": 0.1,
}

_ALL = (
    Recipe(
        name="sat_resnet",
        paper="Xie et al., Smooth Adversarial Training, arXiv:2006.14536",
        cost="1.7 plain steps; 100 epochs of ImageNet",
        differs="no colour jitter in the augmentation; BGR in the authors' input, RGB here",
        settings=_SAT,
    ),
    Recipe(
        name="sat_efficientnet",
        paper="Xie et al., Smooth Adversarial Training, arXiv:2006.14536",
        cost="1.7 plain steps; 100 epochs of ImageNet",
        differs="the authors released no training of EfficientNet: these are the settings of their ResNet, with the "
        "averaged weights (0.9999) of their EfficientNet-L1-Enhanced",
        settings=_SAT | {"model": "EfficientNetB0", "ema": 0.9999},
    ),
    Recipe(
        name="free",
        paper="Shafahi et al., Adversarial Training for Free!, arXiv:1904.12843",
        cost="1 plain step for each replay; 23 epochs of 4 replays, as much as 92 plain ones",
        differs="every batch starts at a random point of its ball",
        settings=_IMAGENET
        | {
            "model": "ResNet50",
            "activation": "relu",
            "replays": 4,
            "epochs": 23,
            "learning_rate": 0.1,
            "decay_epochs": "8,15,23",
            "weight_decay": 1e-4,
        },
    ),
    Recipe(
        name="fast",
        paper="Wong et al., Fast is better than free, arXiv:2001.03994",
        cost="1.7 plain steps; 30 epochs of CIFAR-10",
        differs="ResNet-18 in place of PreAct ResNet-18; a cosine in place of a triangle; Nesterov's momentum",
        settings=_CIFAR_RESNET
        | {
            "steps": 1,
            "step_size": 10.0,
            "epochs": 30,
            "learning_rate": 0.2,
            "schedule": "cosine",
            "warmup_epochs": 12.0,
            "weight_decay": 5e-4,
        },
    ),
    Recipe(
        name="madry",
        paper="Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv:1706.06083",
        cost="5.7 plain steps; 205 epochs of CIFAR-10",
        differs="ResNet-18 in place of a wide ResNet-32; Nesterov's momentum",
        settings=_CIFAR_RESNET
        | {
            "steps": 7,
            "step_size": 2.0,
            "epochs": 205,
            "learning_rate": 0.1,
            "decay_epochs": "102,154",
            "weight_decay": 2e-4,
        },
    ),
    Recipe(
        name="trades",
        paper="Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, arXiv:1901.08573",
        cost="8.7 plain steps; 76 epochs of CIFAR-10",
        differs="ResNet-18 in place of WideResNet-34-10; Nesterov's momentum; a uniform start",
        settings=_CIFAR_RESNET
        | {
            "objective": "trades",
            "steps": 10,
            "step_size": 2.0,
            "epochs": 76,
            "learning_rate": 0.1,
            "decay_epochs": "75",
            "weight_decay": 2e-4,
        },
    ),
    Recipe(
        name="small",
        paper="this project: smooth adversarial training of small images",
        cost="2.3 plain steps; 30 epochs of CIFAR-10",
        differs="nothing",
        settings={
            "model": "ResNet20",
            "dataset": "cifar10",
            "augment": True,
            "epsilon": 8.0,
            "batch_size": 128,
            "epochs": 30,
            "learning_rate": 0.004,
        },
    ),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}
