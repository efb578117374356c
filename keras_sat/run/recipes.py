"""Published settings of adversarial training, as settings of `keras_sat.run.Run`."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Published settings of a training run, and their cost: `Run(**RECIPES["sat_resnet"].settings)`.

    All recipes hold out training images for validation, and keep the weights of the best epoch, as Rice et al.
    (arXiv:2002.11569) recommend. `validation=0` trains on all images, and then keeps the last weights.

    Attributes:
        name: name of the recipe in `RECIPES` and on the command line.
        paper: source of the settings.
        cost: cost of a training step as a multiple of a step of plain training, computed from the number of passes
            (1 + 2k/3 for PGD-k), and length of the training. `training.cost` measures the cost of a step.
        differs: how the recipe differs from the published training.
        settings: values of the fields of `Run` that differ from the defaults.
        needs: {name of a field of `Run`: what it must be given}, for what no package can hold.
    """

    name: str
    paper: str
    cost: str
    differs: str
    settings: dict[str, Any]
    needs: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command that trains with this recipe."""
        needed = "".join(f" --{name}=FILE" for name in self.needs)
        return f"keras-sat train --recipe={self.name}{needed} --output=runs/{self.name}"

    def check(self, settings: dict[str, Any]) -> None:
        """Raises ValueError if settings lack what the recipe needs.

        Args:
            settings: the settings of the run: those of the recipe, and the others.
        """
        for name, what in self.needs.items():
            if not settings.get(name):
                raise ValueError(f"The recipe {self.name} needs {what}: say --{name}=FILE.")


_SGD = {"optimizer": "torch_sgd", "schedule": "steps", "warmup_epochs": 0.0}
_PLAIN_SGD = _SGD | {"nesterov": False, "weight_decay_on": "all"}
_IMAGENET = {"dataset": "imagenet2012", "image_size": 224, "augment": True, "epsilon": 4.0, "batch_size": 256}
_IMAGENET |= {"validation": 5000}
_CIFAR = {"dataset": "cifar10", "augment": True, "epsilon": 8.0, "batch_size": 128, "validation": 1000}
_SAT = (
    _IMAGENET
    | _SGD
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
    }
)
_FAST = (
    _CIFAR
    | _PLAIN_SGD
    | {
        "model": "PreActResNet18",
        "form": "plain",
        "normalization": "cifar10",
        "activation": "relu",
        "steps": 1,
        "step_size": 10.0,
        "attack_batch_norm": "batch",
        "epochs": 15,
        "schedule": "triangle",
        "cycle_momentum": "0.8,0.9",
        "learning_rate": 0.2,
        "warmup_epochs": 7.5,
        "weight_decay": 5e-4,
    }
)
_WIDE = _CIFAR | _PLAIN_SGD | {"model": "WideResNet34_10", "activation": "relu", "learning_rate": 0.1}
_GENERATED = (
    _CIFAR
    | _SGD
    | {
        "model": "WideResNet28_10",
        "form": "dm",
        "activation": "silu",
        "objective": "trades",
        "steps": 10,
        "step_size": 2.0,
        "attack_batch_norm": "batch",
        "epochs": 400,
        "warmup_epochs": 10.0,
        "weight_decay": 5e-4,
        "weight_decay_on": "all_but_batch_norm",
        "ema": 0.995,
        "extra_share": 0.7,
        "validation": 1024,
    }
)
_DEEPMIND = _GENERATED | {
    "beta": 6.0,
    "clean_statistics": False,
    "batch_size": 1024,
    "schedule": "cosine",
    "learning_rate": 0.4,
    "ema_warmup": 0.0,
    "extra_label_smoothing": 0.1,
}
_NEEDS_GENERATED = {
    "extra_data": "generated images of CIFAR-10 (docs/recipes.md says where their authors publish them)"
}
_HALF = "float32 in place of half precision (`--precision=mixed_float16`)"
_START = "the random start is not cut off at 0 and 255 before the first gradient"
_LAST_BATCH = "the last, smaller batch of an epoch is left out"
_STATISTICS = "the attack does not move the statistics of batch norms"
_OF_DEEPMIND = (
    f"an attack of signed steps of 2 pixels in place of Adam's (0.1, then 0.01 of 1); {_START}; each training image is "
    "once in a batch, where the authors' code has a fourth as many images, each in four augmentations; 18,800 steps in "
    "place of 19,531; generated images are drawn with replacement; PyTorch's initial weights; the moving averages of "
    "batch norms are not corrected for their start at 0 and 1"
)

_ALL = (
    Recipe(
        name="sat_resnet",
        paper="Xie et al., Smooth Adversarial Training, arXiv:2006.14536",
        cost="1.7 plain steps; 100 epochs of ImageNet",
        differs="no colour jitter in the augmentation; random crops are resized bilinearly, where the authors resize "
        "bicubically; BGR in the authors' input, RGB here",
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
        differs="every batch starts at a random point of its ball, where the authors keep the perturbation of the "
        f"batch before: a run keeps no state in its attack; {_LAST_BATCH}",
        settings=_IMAGENET
        | _PLAIN_SGD
        | {
            "model": "ResNet50",
            "form": "torchvision",
            "activation": "relu",
            "replays": 4,
            "epochs": 23,
            "learning_rate": 0.1,
            "decay_epochs": "8,16",
            "weight_decay": 1e-4,
        },
    ),
    Recipe(
        name="fast",
        paper="Wong et al., Fast is better than free, arXiv:2001.03994",
        cost="1.7 plain steps; 15 epochs of CIFAR-10",
        differs=f"{_HALF}; {_START}; {_STATISTICS}; {_LAST_BATCH}; He's initial weights of convolutions in place of "
        "PyTorch's; the network of the paper's checkpoint, without the last batch norm that the authors' code has now",
        settings=_FAST,
    ),
    Recipe(
        name="grad_align",
        paper="Andriushchenko and Flammarion, Understanding and Improving Fast Adversarial Training, arXiv:2007.02617",
        cost="about 3 plain steps; 30 epochs of CIFAR-10",
        differs=f"{_HALF}; {_STATISTICS}, nor does the penalty; {_LAST_BATCH}; both gradients of the cosine "
        "are differentiated, as in the paper, where the authors' code takes one as a constant",
        settings=_FAST
        | {
            "normalization": None,
            "clean_start": 1.0,
            "step_size": 8.0,
            "grad_align": 0.2,
            "epochs": 30,
            "learning_rate": 0.3,
            "cycle_momentum": None,
            "warmup_epochs": 12.0,
        },
    ),
    Recipe(
        name="madry",
        paper="Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv:1706.06083",
        cost="5.7 plain steps; 205 epochs of CIFAR-10 (78,310 steps)",
        differs="the network: convolutions in its shortcuts in place of zeros, ReLU in place of a leaky one, 1e-5 in "
        "place of 0.001 as epsilon of batch norms, pixels / 255 in place of standardized images; images are shifted by "
        f"up to 4 pixels, not 2; {_START}; {_STATISTICS}; 7 steps as in the paper, where the authors' code has 10",
        settings=_WIDE
        | {
            "steps": 7,
            "step_size": 2.0,
            "attack_batch_norm": "batch",
            "epochs": 205,
            "decay_epochs": "102,154",
            "weight_decay": 2e-4,
            "weight_decay_on": "kernels",
        },
    ),
    Recipe(
        name="trades",
        paper="Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, arXiv:1901.08573",
        cost="9 plain steps; 76 epochs of CIFAR-10",
        differs=_LAST_BATCH,
        settings=_WIDE
        | {
            "objective": "trades",
            "beta": 6.0,
            "clean_passes": 2,
            "epsilon": 0.031 * 255,
            "steps": 10,
            "step_size": 0.007 * 255,
            "start_std": 0.001 * 255,
            "epochs": 76,
            "decay_epochs": "74",
            "weight_decay": 2e-4,
        },
    ),
    Recipe(
        name="gowal",
        paper="Gowal et al., Improving Robustness using Generated Data, arXiv:2110.09468",
        cost="8.7 plain steps; 400 epochs of CIFAR-10",
        differs=_OF_DEEPMIND,
        settings=_DEEPMIND,
        needs=_NEEDS_GENERATED,
    ),
    Recipe(
        name="rebuffi",
        paper="Rebuffi et al., Fixing Data Augmentation to Improve Adversarial Robustness, arXiv:2103.01946",
        cost="8.7 plain steps; 400 epochs of CIFAR-10",
        differs=f"{_OF_DEEPMIND}; Keras' CutMix over the whole batch, with a box for each image, where the authors mix "
        "within four parts of it, with one box for all",
        settings=_DEEPMIND | {"cutmix": 1.0},
        needs=_NEEDS_GENERATED,
    ),
    Recipe(
        name="wang2023",
        paper="Wang et al., Better Diffusion Models Further Improve Adversarial Training, arXiv:2302.04638",
        cost="8.7 plain steps; 400 epochs of CIFAR-10",
        differs="batch norms start at mean 0 and variance 1, where the authors take those of the first batch; 95 steps "
        f"in an epoch in place of 98, because 1,024 images are held out and {_LAST_BATCH}; {_START}; the best epoch is "
        "that under PGD-10, where the authors take a CW attack of 40 steps",
        settings=_GENERATED
        | {
            "beta": 5.0,
            "batch_size": 512,
            "schedule": "onecycle_by_epoch",
            "cycle_momentum": "0.85,0.95",
            "learning_rate": 0.2,
            "label_smoothing": 0.1,
            "ema_warmup": 10.0,
        },
        needs=_NEEDS_GENERATED,
    ),
    Recipe(
        name="revisiting_at",
        paper="Singh et al., Revisiting Adversarial Training for ImageNet, arXiv:2303.01870",
        cost="2.3 plain steps; 300 epochs of ImageNet",
        differs="PGD-2 with steps of epsilon from the image itself in place of APGD-2; Keras' RandAugment, MixUp and "
        "CutMix in place of timm's; the attack ascends the loss to the class of the largest share, where the authors' "
        "ascends that to the mixed, smoothed labels; an epsilon of 1e-7 in AdamW in place of 1e-8; no random erasing; "
        f"{_HALF}; 640 images in a batch, as 8 devices with the 80 of the authors' script",
        settings=_IMAGENET
        | {
            "model": "ConvNeXtTiny",
            "form": "conv",
            "activation": {"name": "gelu", "approximate": False},
            "normalization": "none",
            "steps": 2,
            "step_size": 4.0,
            "clean_start": 1.0,
            "epochs": 300,
            "batch_size": 640,
            "beta_2": 0.95,
            "learning_rate": 1e-3,
            "final_learning_rate": 5e-6,
            "warmup_epochs": 20.0,
            "warmup_from": 1e-7,
            "weight_decay": 0.05,
            "weight_decay_on": "all_but_biases",
            "label_smoothing": 0.1,
            "rand_augment": 0.9,
            "mixup": 0.8,
            "cutmix": 1.0,
            "ema": 0.9999,
        },
        needs={"weights": "clean weights of ConvNeXt-T to begin with (or --weights=none)"},
    ),
    Recipe(
        name="small",
        paper="this project: smooth adversarial training of small images",
        cost="2.3 plain steps; 30 epochs of CIFAR-10",
        differs="nothing",
        settings=_CIFAR
        | {
            "model": "ResNet20",
            "epochs": 30,
            "learning_rate": 0.004,
        },
    ),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}
