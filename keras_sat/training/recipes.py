"""Published settings of adversarial training, as settings of `keras_sat.run.Run`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings that someone published, and what they cost.

        keras-sat train --recipe=sat_resnet --output=runs/sat_resnet

    Attributes:
        paper: where they stand.
        command: trains by them.
        cost: of a step, in plain steps, by counting passes (1 + 2k/3 for PGD-k); `training.cost` measures.
        differs: in what this differs from what was published.
        settings: fields of `Run` that are not its defaults.
    """

    paper: str
    command: str
    cost: str
    differs: str
    settings: dict


_SGD = {"optimizer": "sgd", "schedule": "steps", "warmup_epochs": 0.0}
_IMAGENET = {"dataset": "imagenet2012", "image_size": 224, "augment": True, "epsilon": 4.0, "batch_size": 256} | _SGD
_CIFAR = {"dataset": "cifar10", "augment": True, "epsilon": 8.0, "batch_size": 128} | _SGD

RECIPES = {
    "sat_resnet": Recipe(
        paper="Xie et al., Smooth Adversarial Training, arXiv:2006.14536",
        command="keras-sat train --recipe=sat_resnet --output=runs/sat_resnet",
        cost="1.7 plain steps; 100 epochs of ImageNet",
        differs="no colour jitter in the augmentation; BGR in the authors' input, RGB here",
        settings=_IMAGENET
        | {
            "model": "ResNet50",
            "activation": "silu",
            "steps": 1,
            "clean_start": 0.2,
            "epochs": 100,
            "learning_rate": 0.1,
            "decay_epochs": "30,60,90",
            "weight_decay": 1e-4,
            "label_smoothing": 0.1,
        },
    ),
    "sat_efficientnet": Recipe(
        paper="Xie et al., Smooth Adversarial Training, arXiv:2006.14536",
        command="keras-sat train --recipe=sat_efficientnet --output=runs/sat_efficientnet",
        cost="1.7 plain steps; 100 epochs of ImageNet",
        differs="the authors released no training of EfficientNet: this is that of their ResNet, with the averaged "
        "weights (0.9999) of their EfficientNet-L1-Enhanced",
        settings=_IMAGENET
        | {
            "model": "EfficientNetB0",
            "activation": "silu",
            "steps": 1,
            "clean_start": 0.2,
            "epochs": 100,
            "learning_rate": 0.1,
            "decay_epochs": "30,60,90",
            "weight_decay": 1e-4,
            "label_smoothing": 0.1,
            "ema": 0.9999,
        },
    ),
    "free": Recipe(
        paper="Shafahi et al., Adversarial Training for Free!, arXiv:1904.12843",
        command="keras-sat train --recipe=free --output=runs/free",
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
    "fast": Recipe(
        paper="Wong et al., Fast is better than free, arXiv:2001.03994",
        command="keras-sat train --recipe=fast --output=runs/fast",
        cost="1.7 plain steps; 30 epochs of CIFAR-10",
        differs="ResNet-18 in place of PreAct ResNet-18; a cosine in place of a triangle; Nesterov's momentum",
        settings=_CIFAR
        | {
            "model": "ResNet18",
            "activation": "relu",
            "steps": 1,
            "step_size": 10.0,
            "epochs": 30,
            "learning_rate": 0.2,
            "schedule": "cosine",
            "warmup_epochs": 12.0,
            "weight_decay": 5e-4,
        },
    ),
    "madry": Recipe(
        paper="Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv:1706.06083",
        command="keras-sat train --recipe=madry --output=runs/madry",
        cost="5.7 plain steps; 205 epochs of CIFAR-10",
        differs="ResNet-18 in place of a wide ResNet-32; Nesterov's momentum",
        settings=_CIFAR
        | {
            "model": "ResNet18",
            "activation": "relu",
            "steps": 7,
            "step_size": 2.0,
            "epochs": 205,
            "learning_rate": 0.1,
            "decay_epochs": "102,154",
            "weight_decay": 2e-4,
        },
    ),
    "trades": Recipe(
        paper="Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, arXiv:1901.08573",
        command="keras-sat train --recipe=trades --output=runs/trades",
        cost="8.7 plain steps; 76 epochs of CIFAR-10",
        differs="ResNet-18 in place of WideResNet-34-10; Nesterov's momentum; a uniform start",
        settings=_CIFAR
        | {
            "model": "ResNet18",
            "activation": "relu",
            "objective": "trades",
            "steps": 10,
            "step_size": 2.0,
            "epochs": 76,
            "learning_rate": 0.1,
            "decay_epochs": "75",
            "weight_decay": 2e-4,
        },
    ),
    "small": Recipe(
        paper="this project: smooth adversarial training of small images",
        command="keras-sat train --recipe=small --output=runs/small",
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
}
